//! The helper's side: a process of one thread that creates one container and ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use tracing::Level;

use super::Report;
use super::executor::CommandExecutor;
use crate::log;

/// Runs the helper. Arguments: the container's identifier, its bundle, the library's state folder. Standard input is the
/// socket to the agent; standard output and error are the container's.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    log::start(Level::WARN);
    let (Some(id), Some(bundle), Some(state)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let agent = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => return ExitCode::from(2),
    };
    let report = create(id, bundle.into(), state.into()).map_or_else(|report| report, Report::Pid);
    if say(&agent, &report).is_err() {
        return ExitCode::FAILURE;
    }
    // Until the agent watches the container's first process, that must not become its child.
    let _ = (&agent).read(&mut [0]);
    if matches!(report, Report::Pid(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(mut agent: &UnixStream, report: &Report) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    agent.write_all(&line)
}

fn create(id: String, bundle: PathBuf, state: PathBuf) -> Result<i32, Report> {
    let (failures, failures_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
    let built = build(id, bundle, state, failures_end);
    // Building has let go of this process's writing end.
    let (mut container, pid) = match built {
        Ok(container) => container,
        Err(error) => return Err(first_failure(failures).unwrap_or(Report::Failed(chain(&error)))),
    };
    bring_up_loopback(pid)?;
    if let Err(error) = container.start() {
        return Err(first_failure(failures).unwrap_or(Report::Failed(chain(&error))));
    }
    // Ends with a successful exec, which closes the last writing end, or with a report.
    match first_failure(failures) {
        Some(report) => Err(report),
        None => Ok(pid),
    }
}

fn build(
    id: String,
    bundle: PathBuf,
    state: PathBuf,
    failures: OwnedFd,
) -> Result<(libcontainer::container::Container, i32), LibcontainerError> {
    let container = ContainerBuilder::new(id, SyscallType::default())
        .with_root_path(state)?
        .with_executor(CommandExecutor::new(File::from(failures)))
        .with_stdin(File::open("/dev/null").map_err(LibcontainerError::OtherIO)?)
        .with_stdout(duplicate(std::io::stdout())?)
        .with_stderr(duplicate(std::io::stderr())?)
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    let pid = container.pid().ok_or_else(|| LibcontainerError::Other("the container has no process".into()))?;
    Ok((container, pid.as_raw()))
}

fn duplicate(stream: impl AsFd) -> Result<OwnedFd, LibcontainerError> {
    stream.as_fd().try_clone_to_owned().map_err(LibcontainerError::OtherIO)
}

/// What the container's first process has reported as its failure, once it has ended or become the command.
fn first_failure(failures: OwnedFd) -> Option<Report> {
    let mut text = Vec::new();
    File::from(failures).take(super::MAX_REPORT).read_to_end(&mut text).ok()?;
    if text.is_empty() {
        return None;
    }
    Some(serde_json::from_slice(&text).unwrap_or_else(|_| Report::Failed(String::from_utf8_lossy(&text).into())))
}

/// Brings up `lo` in the container's network namespace. This process joins it for that, and
/// stays in it: the agent finds it here.
fn bring_up_loopback(pid: i32) -> Result<(), Report> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed("network namespace"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(failed("setns"))?;
    crate::settings::bring_up_loopback().map_err(failed("loopback"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Report {
    move |error| Report::Failed(format!("{what}: {error}"))
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let error_text = error.to_string();
        // Transparent errors repeat their cause.
        if !text.ends_with(&error_text) {
            text.push_str(": ");
            text.push_str(&error_text);
        }
        cause = error.source();
    }
    text
}
