//! The last steps: from the superuser's process to the monitor.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::process::exit;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::setrlimit;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{
    ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, getpid, getsid, pipe2, setgroups, setresgid,
    setresuid, setsid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::error::{JailError, system};
use super::plan::{Plan, Times};
use super::sys;
use super::tree::Directory;
use super::undo::Made;

const NULL: &str = "/dev/null";

/// What a monitor without input and output has instead.
pub(super) fn open_null() -> Result<File, JailError> {
    File::options().read(true).write(true).open(NULL).map_err(system("open", NULL))
}

/// Becomes the monitor, in the background and as the first of a process namespace if that is wanted.
///
/// # Errors
/// The monitor cannot begin. Where another process was to become it, that has ended.
pub(super) fn start(plan: &Plan, root: &Directory, null: Option<File>, mut made: Made) -> Result<u8, JailError> {
    let mut times = Times { start: micros(ClockId::CLOCK_MONOTONIC), ..Times::default() };
    if let Some(null) = null {
        daemonize(null, &mut times)?;
    }
    if plan.new_pid_ns {
        return in_new_namespace(plan, root, times, made);
    }
    save_pid(plan, root, getpid(), &mut made)?;
    // From here on the process can neither make nor remove anything: what fails now is only the system's refusal to execute.
    made.keep();
    Err(become_monitor(plan, times))
}

/// A grandchild goes on, in a session of its own whose leader it is not: it never gets a terminal.
fn daemonize(null: File, times: &mut Times) -> Result<(), JailError> {
    let failed = |action| system(action, "the monitor");
    for is_second in [false, true] {
        times.parent_cpu += micros(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        // The process that goes on has what was made.
        if let ForkResult::Parent { .. } = sys::fork().map_err(failed("make a process for"))? {
            exit(0);
        }
        if !is_second {
            setsid().map_err(failed("make a session for"))?;
        }
    }
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null)).map_err(failed("detach"))
}

/// Only a child can be in a new process namespace. It says over a pipe why it did not become the monitor; the pipe closes when it does.
fn in_new_namespace(plan: &Plan, root: &Directory, times: Times, mut made: Made) -> Result<u8, JailError> {
    let failed = |action| system(action, "the monitor");
    // The end of a session's leader would end its session's other processes.
    let leads = getsid(None).map_err(failed("find the session of"))? == getpid();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe to"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(failed("make a process namespace for"))?;
    match sys::fork().map_err(failed("make a process for"))? {
        ForkResult::Child => {
            drop(reader);
            let session = if leads { setsid().map(drop) } else { Ok(()) };
            let error = match session {
                Ok(()) => become_monitor(plan, times),
                Err(error) => failed("make a session for")(error),
            };
            // Nothing of it is this process's to remove.
            made.keep();
            let _ = File::from(writer).write_all(error.with_cause().as_bytes());
            exit(1)
        }
        ForkResult::Parent { child } => {
            drop(writer);
            save_pid(plan, root, child, &mut made)?;
            match read(reader) {
                Ok(said) if said.is_empty() => {
                    made.keep();
                    Ok(0)
                }
                Ok(said) => Err(JailError::Child(said)),
                Err(error) => Err(system("hear from", "the monitor")(error)),
            }
        }
    }
}

fn read(reader: OwnedFd) -> io::Result<String> {
    let mut said = Vec::new();
    File::from(reader).take(4096).read_to_end(&mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Says beside the program which process runs it, as Firecracker's jailer does.
fn save_pid(plan: &Plan, root: &Directory, pid: Pid, made: &mut Made) -> Result<(), JailError> {
    let name = format!("{}.pid", plan.name);
    let mut file = root.new_file(&name, 0o444, made)?;
    file.write_all(pid.to_string().as_bytes()).map_err(system("write", root.path().join(name)))
}

/// Gives up all rights, and executes the monitor. Returns only if it cannot.
fn become_monitor(plan: &Plan, mut times: Times) -> JailError {
    times.cpu = micros(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    let program = format!("/{}", plan.name);
    let run = || -> io::Result<()> {
        for (resource, limit) in &plan.limits {
            setrlimit(*resource, *limit, *limit)?;
        }
        setgroups(&[])?;
        setresgid(plan.gid, plan.gid, plan.gid)?;
        setresuid(plan.uid, plan.uid, plan.uid)?;
        // They are gone by now, unless somebody has told the kernel to leave them to users.
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
        prctl::set_no_new_privs()?;
        sys::close_on_exec(3)?;
        let words = plan.command_line(times).into_iter().map(word).collect::<io::Result<Vec<_>>>()?;
        let nothing: [CString; 0] = [];
        execve(&word(OsString::from(&program))?, &words, &nothing)?;
        Ok(())
    };
    let refused = run().err().unwrap_or_else(|| io::ErrorKind::Other.into());
    system("become", &program)(refused)
}

fn word(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
