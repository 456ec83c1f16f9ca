//! Layers that come and go while others are read.

use std::fs;

use bellows_vmm::{DriveConfig, Shape};

use crate::fixture::{Guest, PATIENCE, demo};

#[test]
fn a_disk_comes_and_goes_while_layers_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, vec![7; 4 << 20]).unwrap();
    let guest = Guest::ours().vcpus(2).boot();
    let reader = guest.start("reader", "echo reads; cat /usr/bin/* /usr/lib/python3*/*.py | md5sum; echo done", None);
    reader.wait_for("reads");
    for _ in 0..3 {
        let drive = DriveConfig { path: path.clone(), read_only: true };
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
        guest = guest.drive(DriveConfig { path, read_only: true });
    }
    let guest = guest.boot();
    let count = guest.shell("count", "ls /sys/block | grep -c ^vd");
    assert_eq!(count.trim().parse(), Ok(64 + demo().layers.len()));
    guest.shutdown();
}
