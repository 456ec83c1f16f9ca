//! Layers that come and go while others are read.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use bellows_vmm::{DriveConfig, Shape};

use crate::command::{bellows_run, image};
use crate::fixture::{Guest, PATIENCE, artefact, demo};

#[test]
fn a_disk_comes_and_goes_while_layers_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, vec![7; 4 << 20]).unwrap();
    let guest = Guest::ours().vcpus(2).boot();
    let reader = guest.start("reader", "echo reads; cat /usr/bin/* /usr/lib/python3*/*.py | md5sum; echo done", None);
    reader.wait_for("reads");
    for _ in 0..3 {
        let drive = DriveConfig::new(&path, true);
        let disk = guest.vm.attach_drive(&drive, PATIENCE).unwrap();
        guest.vm.detach_disk(&disk.serial, PATIENCE).unwrap();
    }
    let (status, output) = reader.finish();
    assert!(status.code == 0 && output.contains("done"), "{output}");
    assert_eq!(guest.vm.disks().len(), 1);
    guest.shutdown();
}

#[test]
fn layers_and_64_more_disks_attach() {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::ours().vcpus(2).image(demo().shape(Shape::Layers));
    for number in 0..64 {
        let path = directory.path().join(format!("disk-{number}"));
        fs::write(&path, vec![number; 4096]).unwrap();
        guest = guest.drive(DriveConfig::new(path, true));
    }
    let guest = guest.boot();
    let count = guest.shell("count", "ls /sys/block | grep -c ^vd");
    // A disk for each layer: the image needs no fix-up.
    assert_eq!(count.trim().parse(), Ok(64 + demo().layers.len()));
    guest.shutdown();
}

/// Runs a command in a guest with one vCPU and that many drives, with limits of open files that `ulimit` sets.
fn run_with_drives(directory: &Path, drives: usize, limits: &str) -> Output {
    let paths = (0..drives).map(|number| directory.join(format!("disk-{number}")));
    let drives: Vec<_> = paths.inspect(|path| fs::write(path, [0; 4096]).unwrap()).collect();
    let drives: Vec<_> = drives.iter().map(|path| serde_json::json!({ "path": path, "read_only": true })).collect();
    let config = serde_json::json!({ "kernel": artefact("BELLOWS_KERNEL"), "memory": "512M", "drives": drives });
    let file = directory.join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let mut run = bellows_run();
    run.arg("--memory=0").arg("--config").arg(file).arg(image());
    run.args(["/bin/sh", "-c", "ls /sys/block | grep -c ^vd"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits} && exec \"$@\""), "sh"]).arg(run.get_program()).args(run.get_args());
    shell.output().unwrap()
}

/// As many disks as one vCPU has interrupts for all work, and the agent answers; more disks are refused, and so are more
/// files than the process may open.
#[test]
fn a_vm_with_all_disks_that_can_work_goes_as_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let all = run_with_drives(directory.path(), 91, "ulimit -Sn 256");
    let text = String::from_utf8_lossy(&all.stderr);
    assert_eq!((all.status.code(), &all.stdout[..]), (Some(0), &b"92\n"[..]), "{text}");
    for (drives, limits, named) in [
        (92, "true", "at least 2 for 192 interrupt vectors"),
        (91, "ulimit -n 200", "of the 200 that the process may have are open (RLIMIT_NOFILE)"),
    ] {
        let refused = run_with_drives(directory.path(), drives, limits);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && text.contains(named), "{text}");
    }
}
