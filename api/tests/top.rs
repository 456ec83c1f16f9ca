//! `bellows top` on a terminal: however it ends, the terminal is as before.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// What shows the screen from before.
const LEAVE: &str = "\x1b[?1049l";

struct Top {
    process: Child,
    terminal: File,
    /// The end of the process, which keeps the terminal.
    theirs: OwnedFd,
    _place: tempfile::TempDir,
}

impl Top {
    /// Starts it on a terminal, and waits until it shows something.
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).unwrap();
        let stream = || Stdio::from(terminal.slave.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
        command.arg("top").env("XDG_RUNTIME_DIR", place.path());
        let process = command.stdin(stream()).stdout(stream()).stderr(Stdio::null()).spawn().unwrap();
        let mut top = Self { process, terminal: terminal.master.into(), theirs: terminal.slave, _place: place };
        top.read_until("VMs");
        assert!(!top.is_cooked(), "keys come as they are pressed");
        top
    }

    fn read_until(&mut self, end: &str) {
        let mut text = String::new();
        while !text.contains(end) {
            let mut bytes = [0; 4096];
            let count = self.terminal.read(&mut bytes).unwrap();
            text += &String::from_utf8_lossy(&bytes[..count]);
        }
    }

    /// Whether the terminal gives lines.
    fn is_cooked(&self) -> bool {
        tcgetattr(&self.theirs).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Its end, after which the terminal is as before.
    fn end(mut self) -> ExitStatus {
        self.read_until(LEAVE);
        let status = self.process.wait().unwrap();
        assert!(self.is_cooked());
        status
    }
}

#[test]
fn a_key_ends_it() {
    for key in [b"q", b"\x03"] {
        let mut top = Top::start();
        top.terminal.write_all(key).unwrap();
        assert_eq!(top.end().code(), Some(0));
    }
}

#[test]
fn a_signal_ends_it() {
    let top = Top::start();
    kill(Pid::from_raw(top.process.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(top.end().code(), Some(143));
}

/// Without a terminal it prints once.
#[test]
fn a_pipe_gets_one_table() {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
    let output = command.arg("top").env("XDG_RUNTIME_DIR", place.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("NAME ") && text.contains("\nVMs 0, "), "{text}");
}
