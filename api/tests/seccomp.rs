//! Filters of system calls. A process cannot take its filter off, so each test runs in one of its own: this program again.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::{Arc, Barrier};
use std::thread;

use bellows::seccomp::{Reach, confine, confine_threads};
use bellows_memory::threads::{ThreadRole, spawn};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::unistd::{getpid, getppid, setuid};

fn child(test: &str, variable: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]).env("ATTEMPT", variable).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a program that was taken over would try, by the system call that the report names.
const ATTEMPTS: [(&str, fn()); 13] = [
    ("clone", || {
        let _ = Command::new("/bin/true").status();
    }),
    ("ptrace", || {
        let _ = ptrace::attach(getppid());
    }),
    ("mount", || {
        let _ = mount(Some("none"), "/tmp", Some("tmpfs"), MsFlags::empty(), None::<&str>);
    }),
    ("unshare", || {
        let _ = unshare(CloneFlags::CLONE_NEWUSER);
    }),
    ("socket", || {
        let _ = TcpListener::bind("127.0.0.1:0");
    }),
    ("kill", || {
        let _ = kill(getppid(), None);
    }),
    ("setuid", || {
        let _ = setuid(getpid().as_raw().unsigned_abs().into());
    }),
    ("chroot", || {
        let _ = nix::unistd::chroot("/tmp");
    }),
    ("execve", || {
        let _ = nix::unistd::execve(c"/bin/true", &[c"true"], &[c""]);
    }),
    // SAFETY: takes numbers, and touches no memory that is in use.
    ("mmap", || unsafe {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
    }),
    // SAFETY: the byte lives through the call, which puts it into the terminal, if there is one.
    ("ioctl", || unsafe {
        libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr());
    }),
    // SAFETY: takes numbers only; the action of a signal stays.
    ("rt_sigaction", || unsafe {
        libc::signal(libc::SIGSYS, libc::SIG_IGN);
    }),
    // SAFETY: the structure lives through the call.
    ("bpf", || unsafe {
        libc::syscall(libc::SYS_bpf, 0, [0_u64; 16].as_ptr(), 128);
    }),
];

#[test]
fn a_call_that_is_not_listed_ends_the_process_and_is_named() {
    for (call, _) in ATTEMPTS {
        let output = child("attempt", call);
        let said = text(&output);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{call}: {:?} {said}", output.status);
        // The C library holds all signals while it makes a process: then the kernel ends it without a word.
        assert!(call == "clone" || said.contains(&format!("does not allow {call} (")), "{call}: {said}");
    }
}

#[test]
#[ignore = "ends its process"]
fn attempt() {
    let wanted = std::env::var("ATTEMPT").unwrap();
    let (_, attempt) = ATTEMPTS.iter().find(|(call, _)| *call == wanted).unwrap();
    confine(&[], Reach::Host).unwrap();
    attempt();
}

/// Threads that serve a guest may do less than others.
#[test]
fn a_thread_of_the_library_opens_nothing() {
    for role in ["Vcpu", "Discard", "Agent", "Console"] {
        let output = child("thread", role);
        let said = text(&output);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{role}: {said}");
        assert!(said.contains("does not allow openat ("), "{role}: {said}");
    }
    // A device asks the host how much memory it has.
    for role in ["Control", "Device"] {
        let output = child("thread", role);
        assert_eq!(output.status.success(), role == "Control", "{role}: {}", text(&output));
        assert!(text(&output).contains("has opened a file"), "{role}: {}", text(&output));
    }
}

#[test]
#[ignore = "ends its process"]
fn thread() {
    let wanted = std::env::var("ATTEMPT").unwrap();
    let role = ThreadRole::ALL.into_iter().find(|role| format!("{role:?}") == wanted).unwrap();
    confine(&[], Reach::Host).unwrap();
    let work = || {
        // What any thread may do.
        let words: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        std::thread::sleep(std::time::Duration::from_millis(1));
        eprintln!("{}", words.concat().len());
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        File::open("/dev/null").unwrap();
        eprintln!("has opened a file");
        File::options().write(true).open("/dev/null").is_ok()
    };
    assert!(spawn(role, "name", Some(256 << 10), work).unwrap().join().unwrap());
}

/// A program that embeds the library does what it likes; its VMs' threads do not.
#[test]
fn threads_that_serve_a_guest_can_be_confined_alone() {
    let output = child("alone", "");
    let said = text(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{said}");
    assert!(said.contains("has started a program") && said.contains("does not allow openat ("), "{said}");
}

#[test]
#[ignore = "ends its process"]
fn alone() {
    confine_threads().unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
    eprintln!("has started a program");
    let opens = || File::open("/dev/null").is_ok();
    assert!(spawn(ThreadRole::Control, "control", None, opens).unwrap().join().unwrap());
    spawn(ThreadRole::Vcpu, "vcpu", None, opens).unwrap().join().unwrap();
}

#[test]
fn what_a_monitor_does_late_is_allowed() {
    let output = child("late", "");
    assert!(output.status.success() && text(&output).contains("done"), "{:?} {}", output.status, text(&output));
}

#[test]
#[ignore = "in a process of its own"]
fn late() {
    // A thread that was there before.
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    let before = thread::spawn(move || begun.recv().is_err());
    let mut child = Command::new("sleep").arg("3600").spawn().unwrap();
    confine(&[child.id()], Reach::Host).unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    drop(begin);
    assert!(before.join().unwrap());
    // More threads that allocate at once than the C library has arenas for without a look at the processors.
    let barrier = Arc::new(Barrier::new(24));
    let threads: Vec<_> = (0..24)
        .map(|_| {
            let barrier = barrier.clone();
            let work = move || {
                let bytes = vec![1_u8; 1000];
                barrier.wait();
                // What goes back to the kernel when it is freed.
                drop((0..32).map(|_| vec![1_u8; 64 << 10]).collect::<Vec<_>>());
                bytes.len()
            };
            spawn(ThreadRole::Vcpu, "vcpu", Some(256 << 10), work).unwrap()
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 1000));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    fs::rename(&file, directory.path().join("other")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    let client = thread::spawn({
        let path = directory.path().join("socket");
        move || UnixStream::connect(path).unwrap().write_all(b"x").unwrap()
    });
    let mut byte = [0];
    socket.accept().unwrap().0.read_exact(&mut byte).unwrap();
    client.join().unwrap();
    // A TAP is looked for by its name.
    // SAFETY: the name ends with a zero.
    assert_eq!(unsafe { libc::if_nametoindex(c"bellows-no-tap".as_ptr()) }, 0);
    println!("done");
}
