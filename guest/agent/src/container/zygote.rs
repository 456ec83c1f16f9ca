//! The last steps of a first process that becomes a zygote's container, or a fork of a zygote.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::plan::ProcessPlan;
use super::{Report, failed, program};
use crate::sys;
use crate::zygote::{CONTROL, START};

/// Descriptors that stay open from here on have at least this number.
pub(super) const FIRST_OTHER: i32 = CONTROL + 1;
/// Process numbers that are used up before a zygote gets one.
///
/// Some libraries notice a fork only by another process number; OpenSSL's generator of random numbers does. So a zygote must
/// have one that no instance has, and no process that an instance is likely to start before it uses such a library.
const UNUSED_NUMBERS: usize = 1024;

/// Runs the zygote's program as a child of this process, with `control` as its control socket. This process waits for it, and ends
/// as it does.
pub(super) fn run(file: &Path, process: &ProcessPlan, control: &OwnedFd) -> Result<Infallible, Report> {
    for _ in 0..UNUSED_NUMBERS {
        // A thread has a number of the same kind.
        let thread = thread::Builder::new().stack_size(16 << 10).spawn(|| ()).map_err(failed("thread"))?;
        // It cannot panic.
        let _ = thread.join();
    }
    sys::place(control, CONTROL).map_err(failed("control socket"))?;
    let name = process.arguments.first().map(OsStr::new).unwrap_or_default();
    let variables = process.environment.iter().filter_map(|variable| variable.split_once('='));
    let mut command = Command::new(file);
    command.arg0(name).args(process.arguments.iter().skip(1)).env_clear().envs(variables);
    let child = command.spawn();
    let child = child.map_err(|error| match error.raw_os_error() {
        Some(number) => program::failure(file, Errno::from_raw(number)),
        None => Report::Failed(format!("command: {error}")),
    })?;
    // The agent waits for the ends of streams, of the control socket and of the pipe for failures.
    sys::close_from(0);
    std::process::exit(wait_for(Pid::from_raw(child.id().cast_signed())))
}

/// Collects children until `child` ends; returns its exit code, as a shell gives it.
fn wait_for(child: Pid) -> i32 {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            // There is a child until it has been collected here.
            Err(_) => return 1,
        }
    }
}

/// Goes on as a fork of `zygote`, which then finds its start document.
pub(super) fn adopt(process: &ProcessPlan, zygote: &OwnedFd) -> Result<Infallible, Report> {
    let document = start_document(process).map_err(failed("start document"))?;
    sys::place(&document, START).map_err(failed("start document"))?;
    Err(Report::NotAdopted(sys::adopt(zygote).raw_os_error().unwrap_or_default()))
}

/// The arguments, environment and working directory of a fork, in a file that nobody can change.
fn start_document(process: &ProcessPlan) -> io::Result<OwnedFd> {
    let document = json!({
        "args": process.arguments,
        "env": process.environment,
        "cwd": process.working_directory,
    });
    let descriptor = memfd_create("start", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(descriptor);
    file.write_all(document.to_string().as_bytes())?;
    io::Seek::rewind(&mut file)?;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_fork_reads_what_it_is_to_run() {
        let process = ProcessPlan {
            arguments: ["python3", "-c", "1"].map(String::from).into(),
            environment: vec!["A=b=c".into()],
            working_directory: "/srv".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            terminal: None,
        };
        let mut file = std::fs::File::from(start_document(&process).unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document, json!({ "args": ["python3", "-c", "1"], "env": ["A=b=c"], "cwd": "/srv" }));
        assert_eq!(file.write_all(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
