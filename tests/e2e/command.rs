//! The `bellows` command: what a person types, and what it says when that was wrong.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::archives::{import, tar};
use crate::fixture::artefact;

/// A subcommand with our kernel, the demo's image and the store that all tests share.
pub fn with_guest(subcommand: &str) -> Command {
    with_guest_and_store(subcommand, &artefact("BELLOWS_IMAGE").with_file_name("e2e-store"))
}

/// The same with a store of its own.
pub fn with_guest_and_store(subcommand: &str, store: &Path) -> Command {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.args([subcommand, "--timeout=300", "--memory=512M", "--kernel"]).arg(artefact("BELLOWS_KERNEL"));
    command.arg("--initramfs").arg(artefact("BELLOWS_INITRAMFS")).arg("--image").arg(artefact("BELLOWS_IMAGE"));
    command.arg("--store").arg(store);
    command
}

fn run(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.arg("run");
    if !arguments.contains(&"--image") {
        command.arg("--image").arg(artefact("BELLOWS_IMAGE"));
    }
    if !arguments.contains(&"--store") {
        command.arg("--store").arg(store);
    }
    command.args(arguments).env("TMPDIR", store.parent().unwrap());
    command.output().unwrap()
}

#[test]
fn a_commands_output_and_exit_code_come_through() {
    let mut command = with_guest("run");
    command.arg("--partition=256M");
    let output = command.args(["--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"out\n"[..]), "{text}");
    assert!(text.contains("err\n"), "{text}");
    let profiles = artefact("BELLOWS_IMAGE").with_file_name("e2e-store").join("profiles");
    assert!(!profiles.exists(), "a run that fails does not say what to read ahead");
}

/// A monitor that is killed can't clean up: its VM and its listening sockets go all the same.
#[test]
fn a_killed_monitor_leaves_only_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = with_guest("run");
    command.env("TMPDIR", directory.path()).stdout(Stdio::piped());
    let mut monitor = command.args(["--", "/bin/sh", "-c", "echo up; exec sleep 3600"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(monitor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    assert_ne!(sockets(directory.path()), 0, "a running VM listens");
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert_eq!(sockets(directory.path()), 0);
    assert!(!is_parent_of_any(monitor.id()), "a process stays");
}

/// The demonstration's own path, with less memory.
#[test]
fn the_demonstration_reports_what_it_should() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let mut command = with_guest("demo");
    command.args(["--partition=256M", "--mib=64", "--hold=20", "--kernel-parameter=init_on_alloc=0", "--report"]);
    let output = command.arg(&report).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["vms"].as_array().map(Vec::len), Some(2), "{report:#}");
    assert_eq!(report["layers"].as_array().map(Vec::len), Some(3), "{report:#}");
    for vm in report["vms"].as_array().unwrap() {
        for instance in vm["instances"].as_array().unwrap() {
            assert_eq!((&instance["exit_code"], &instance["output_ok"]), (&0.into(), &true.into()), "{report:#}");
        }
        for partition in vm["partitions"].as_array().unwrap() {
            assert_eq!(partition["migrated_pages"], 0, "{report:#}");
            assert_eq!(
                (&partition["mode"], &partition["zeroed_pages"]),
                (&"extension".into(), &0.into()),
                "{report:#}"
            );
            assert!(partition["discarded_bytes"].as_u64().unwrap() >= 64 << 20, "{report:#}");
        }
    }
}

/// Each wrong input gives an error that names the value, exit code 125, and no process or socket that stays.
#[test]
fn wrong_input_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let no_kernel = file("no-kernel", &[0x5a; 9000]);
    let config = file("config.json", br#"{ "kernel": "k", "memory": "512M", "colour": "red" }"#);
    let kernel = artefact("BELLOWS_KERNEL").display().to_string();
    let missing = directory.path().join("missing").display().to_string();
    let damaged = damaged_layout(directory.path()).display().to_string();
    let (store, truncated) = truncated_layer(directory.path());
    let cases: &[(&[&str], &str)] = &[
        (&["--kernel", &no_kernel, "--memory", "256M"], "no-kernel"),
        (&["--kernel", &missing, "--memory", "256M"], "missing"),
        (&["--kernel", &kernel, "--memory", "0"], "memory"),
        (&["--kernel", &kernel, "--memory", "900T"], "900"),
        (&["--kernel", &kernel, "--memory", "12Q"], "12Q"),
        (&["--kernel", &kernel, "--memory", "256M", "--vcpus", "0"], "vcpus"),
        (&["--kernel", &kernel, "--memory", "256M", "--partition", "3"], "partitions[0]"),
        (&["--kernel", &kernel, "--memory", "256M", "--initramfs", &missing], "missing"),
        (&["--kernel", &kernel, "--memory", "256M", "--image", &missing], "missing"),
        (&["--kernel", &kernel, "--memory", "256M", "--image", &damaged], "sha256:"),
        (&["--kernel", &kernel, "--memory", "256M", "--image", &truncated, "--store", &store], "1024 bytes"),
        (&["--kernel", &kernel, "--memory", "256M", "--partition", "200T"], "200"),
        (&["--kernel", &kernel, "--memory", "3G", "--partition", "3G", "--partition", "900T"], "900"),
        (&["--config", &config], "colour"),
        (&["--config", &missing], "missing"),
    ];
    for (arguments, named) in cases {
        let output = run(&directory.path().join("store"), arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {text}");
        assert!(text.contains(named), "{arguments:?} does not name {named}: {text}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    assert_eq!(sockets(directory.path()), 0, "a socket stays");
}

/// The demo's image with its manifest changed, so that it is not what the index says.
fn damaged_layout(directory: &Path) -> PathBuf {
    let (from, to) = (artefact("BELLOWS_IMAGE"), directory.join("damaged"));
    fs::create_dir_all(to.join("blobs/sha256")).unwrap();
    for name in ["oci-layout", "index.json"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let index: serde_json::Value = serde_json::from_slice(&fs::read(from.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let mut manifest = fs::read(from.join("blobs/sha256").join(digest)).unwrap();
    let last = manifest.len() - 1;
    manifest[last] = b' ';
    fs::write(to.join("blobs/sha256").join(digest), manifest).unwrap();
    to
}

/// A store with an image whose layer was cut short after the import, and the image's name.
fn truncated_layer(directory: &Path) -> (String, String) {
    let directory = directory.join("truncated");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), [1; 9000]).unwrap();
    let archive = directory.join("file.tar");
    tar(Command::new("tar").args(["-c", "-f"]).arg(&archive).arg("file"), &directory);
    let imported = import(&directory, &[archive]);
    fs::OpenOptions::new().write(true).open(&imported.config().layers[0].path).unwrap().set_len(1024).unwrap();
    let images = fs::read_dir(directory.join("store/images")).unwrap();
    let names = images.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    (directory.join("store").display().to_string(), names.last().unwrap())
}

/// Unix sockets bound below a directory.
fn sockets(directory: &Path) -> usize {
    let below = directory.to_str().unwrap();
    fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.contains(below)).count()
}

/// Whether any process has this one as its parent.
fn is_parent_of_any(id: u32) -> bool {
    let parent = format!("PPid:\t{id}");
    let statuses = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("status"));
    statuses.filter_map(|path| fs::read_to_string(path).ok()).any(|status| status.lines().any(|line| line == parent))
}
