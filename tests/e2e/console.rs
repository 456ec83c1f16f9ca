//! A console without a reader.

use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{bellows_run, image};
use crate::fixture::{PATIENCE, artefact};

/// Far more than a second, on an emulated CPU as well.
const BOUND: Duration = Duration::from_secs(60);

/// A guest whose kernel prints more than its console's pipe holds.
fn command(argv: &[&str]) -> (Command, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = bellows_run();
    command
        .args(["--memory=256M", "--serial=-", "--kernel-parameter=ignore_loglevel"])
        .arg(image())
        .args(argv)
        .stdout(writer);
    (command, reader)
}

fn wait(mut child: Child, limit: Duration) -> ExitStatus {
    let id = pid(&child);
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait().unwrap()));
    ended.recv_timeout(limit).unwrap_or_else(|_| {
        kill(id, Signal::SIGKILL).unwrap();
        panic!("it did not end within {limit:?}");
    })
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[test]
fn a_run_whose_console_nobody_reads_goes_as_any_other_and_ends() {
    let (mut run, unread) = command(&["true"]);
    let child = run.spawn().unwrap();
    assert_eq!(wait(child, PATIENCE).code(), Some(0));
    drop(unread);

    let (mut run, mut unread) = command(&["sh", "-c", "echo up >&2; exec sleep 3600"]);
    let (progress, stderr) = pipe().unwrap();
    let child = run.stderr(stderr).spawn().unwrap();
    // It holds the child's ends of the pipes.
    drop(run);
    let mut lines = BufReader::new(progress).lines();
    assert!(lines.any(|line| line.unwrap() == "up"));
    kill(pid(&child), Signal::SIGTERM).unwrap();
    wait(child, BOUND);
    let mut console = String::new();
    unread.read_to_string(&mut console).unwrap();
    assert!(console.contains("Linux version"), "{console}");
}

/// A kernel without a program to start: it has no console, and says why it dies all the same.
#[test]
fn the_error_of_a_run_has_the_last_lines_of_a_kernel_that_dies() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = directory.path().join("nothing.cpio");
    // The end of an archive (cpio(5), new ASCII format).
    let fields: String = (0..13).map(|field| if field == 11 { "0000000B" } else { "00000000" }).collect();
    std::fs::write(&nothing, format!("070701{fields}TRAILER!!!\0\0\0\0")).unwrap();
    let mut run = Command::new(artefact("BELLOWS_BINARY"));
    run.args(["run", "--timeout=300", "--kernel"]).arg(artefact("BELLOWS_KERNEL")).arg("--initramfs").arg(&nothing);
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    let error = text.lines().find(|line| line.starts_with("bellows: ")).unwrap();
    assert!(error.contains("Kernel panic - not syncing: VFS: Unable to mount root fs"), "{text}");
}
