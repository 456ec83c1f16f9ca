//! The `bellows` command: what a person types, and what it says when that was wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::fixture::artefact;

fn run(store: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.arg("run").arg("--store").arg(store).args(arguments);
    command.output().unwrap()
}

#[test]
fn a_commands_output_and_exit_code_come_through() {
    let store = artefact("BELLOWS_IMAGE").with_file_name("e2e-store");
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.args(["run", "--timeout", "300", "--memory", "512M", "--partition", "256M", "--kernel"]);
    command.arg(artefact("BELLOWS_KERNEL")).arg("--initramfs").arg(artefact("BELLOWS_INITRAMFS"));
    command.arg("--image").arg(artefact("BELLOWS_IMAGE")).arg("--store").arg(store);
    let output = command.args(["--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"out\n"[..]), "{text}");
    assert!(text.contains("err\n"), "{text}");
}

/// Each wrong input gives an error that names the value, exit code 1 or 2, and no process or socket that stays.
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
        (&["--config", &config], "colour"),
        (&["--config", &missing], "missing"),
    ];
    let before = sockets();
    for (arguments, named) in cases {
        let output = run(&directory.path().join("store"), arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?} {text}", output.status);
        assert!(text.contains(named), "{arguments:?} does not name {named}: {text}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    assert_eq!(sockets(), before, "a socket stays");
}

/// Unix sockets bound to paths on this host.
fn sockets() -> usize {
    fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.contains("bellows")).count()
}
