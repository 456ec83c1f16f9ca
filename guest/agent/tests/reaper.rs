//! The reaper waits for every child of its process, so it has a test process to itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_agent::reaper::Reaper;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// One test, as one reaper belongs to a process.
#[test]
fn every_child_is_collected_and_no_status_is_lost() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let reaper = Reaper::start().unwrap();

    // Codes and signals, as a shell gives them.
    let (_, exit) = reaper.spawn(&mut shell("exit 7")).unwrap();
    assert_eq!(exit.wait(), 7);
    let (pid, exit) = reaper.spawn(&mut shell("kill -TERM $$; sleep 60")).unwrap();
    assert_eq!(exit.wait(), 128 + 15);
    reaper.signal(pid, Signal::SIGKILL).expect("one that has ended ignores it");

    // With no children left it sleeps; a new child wakes it.
    let (pid, exit) = reaper.spawn(&mut shell("exec sleep 60")).unwrap();
    assert_eq!(exit.wait_for(Duration::from_millis(20)), None);
    reaper.signal(pid, Signal::SIGKILL).unwrap();
    assert_eq!(exit.wait(), 128 + 9);

    // The standard library waits for a child whose exec failed; that one must be left to it.
    for _ in 0..50 {
        let error = reaper.spawn(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        // SAFETY: a closure that does nothing is safe between fork and exec; it makes the library fork.
        let error = unsafe {
            use std::os::unix::process::CommandExt;
            reaper.spawn(Command::new("/nonexistent/program").pre_exec(|| Ok(()))).unwrap_err()
        };
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }

    // Many at once, each with its own code, while orphans arrive.
    let threads: Vec<_> = (0..20)
        .map(|code| {
            let reaper = Arc::clone(&reaper);
            std::thread::spawn(move || {
                let (_, exit) = reaper.spawn(&mut shell(&format!("(true; true) & exit {code}"))).unwrap();
                (code, exit.wait())
            })
        })
        .collect();
    for thread in threads {
        let (expected, code) = thread.join().unwrap();
        assert_eq!(code, expected);
    }

    // No zombie stays: once the last orphan is collected there is no child at all.
    let deadline = Instant::now() + Duration::from_secs(30);
    while waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG) != Err(Errno::ECHILD) {
        assert!(Instant::now() < deadline, "a child stays");
        std::thread::yield_now();
    }
}
