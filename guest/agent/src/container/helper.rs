//! The helper's side: a process of one thread that creates one container, or one more process in it, and ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use tracing::Level;

use super::executor::{Becoming, CommandExecutor};
use super::{Order, Report, Role, Step, descriptor, failed, zygote};
use crate::{log, sys};

/// Runs the helper, whose one argument is its `Order`. Standard input is the socket to the agent; standard output and error
/// are the process's own, or with a terminal standard output is the socket for its master.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    log::start(Level::WARN);
    let order = arguments.next().and_then(|order| serde_json::from_str::<Order>(&order).ok());
    let (Some(order), Ok(agent)) = (order, std::io::stdin().as_fd().try_clone_to_owned()) else {
        return ExitCode::from(2);
    };
    let agent = UnixStream::from(agent);
    let report = obey(&order, &agent).map_or_else(|report| report, Report::Pid);
    if say(&agent, &report).is_err() {
        return ExitCode::FAILURE;
    }
    // The process must not become the agent's child before the agent watches it.
    let _ = (&agent).read(&mut [0]);
    if matches!(report, Report::Pid(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(mut agent: &UnixStream, report: &Report) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    agent.write_all(&line)
}

fn obey(order: &Order, agent: &UnixStream) -> Result<i32, Report> {
    let (failures, failures_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
    let failures_end = out_of_the_way(failures_end)?;
    match &order.step {
        Step::Create { bundle, role } => create(builder(order, agent, *role, failures_end, None)?, bundle, failures),
        Step::Join { process, policy } => {
            join(builder(order, agent, Role::Command, failures_end, *policy)?, process, failures)
        }
    }
}

/// Creates the container and has its first process go on.
fn create(builder: ContainerBuilder, bundle: &Path, failures: OwnedFd) -> Result<i32, Report> {
    // Building drops this process's writing end.
    let mut container = match builder.as_init(bundle).with_systemd(false).with_detach(true).build() {
        Ok(container) => container,
        Err(error) => return Err(first_failure(failures).unwrap_or(Report::Failed(chain(&error)))),
    };
    let pid = container.pid().ok_or_else(|| Report::Failed("the container has no process".into()))?.as_raw();
    bring_up_loopback(pid)?;
    let started = container.start().map(|()| pid);
    outcome(failures, started)
}

/// Starts another process in the container.
fn join(builder: ContainerBuilder, process: &Path, failures: OwnedFd) -> Result<i32, Report> {
    let joined = builder.as_tenant().with_process(Some(process)).with_detach(true).build();
    outcome(failures, joined.map(|pid| pid.as_raw()))
}

/// The result of letting a process go on: the pipe ends with a successful exec, or with a report.
fn outcome(failures: OwnedFd, started: Result<i32, LibcontainerError>) -> Result<i32, Report> {
    match first_failure(failures) {
        Some(report) => Err(report),
        None => started.map_err(|error| Report::Failed(chain(&error))),
    }
}

fn builder(
    order: &Order,
    agent: &UnixStream,
    role: Role,
    failures: OwnedFd,
    policy: Option<u32>,
) -> Result<ContainerBuilder, Report> {
    let stdin = if order.stdin {
        descriptor::receive(agent).map_err(failed("standard input"))?
    } else {
        File::open("/dev/null").map_err(failed("/dev/null"))?.into()
    };
    let becoming = match role {
        Role::Command => Becoming::Command,
        Role::Zygote => Becoming::Zygote(other(agent)?.into()),
        Role::Fork => Becoming::Fork(other(agent)?.into()),
    };
    let executor = CommandExecutor::new(becoming, File::from(failures), order.terminal, policy);
    let build = || {
        Ok(ContainerBuilder::new(order.id.clone(), SyscallType::default())
            .with_root_path(&order.state)?
            .with_executor(executor)
            .with_stdin(stdin)
            .with_stdout(duplicate(std::io::stdout())?)
            .with_stderr(duplicate(std::io::stderr())?))
    };
    build().map_err(|error: LibcontainerError| Report::Failed(chain(&error)))
}

/// The descriptor that the agent has sent for the role.
fn other(agent: &UnixStream) -> Result<OwnedFd, Report> {
    out_of_the_way(descriptor::receive(agent).map_err(failed("zygote"))?)
}

/// The descriptor with a number that neither a zygote nor a fork needs for something else.
fn out_of_the_way(descriptor: OwnedFd) -> Result<OwnedFd, Report> {
    sys::duplicate_above(&descriptor, zygote::FIRST_OTHER).map_err(failed("descriptor"))
}

fn duplicate(stream: impl AsFd) -> Result<OwnedFd, LibcontainerError> {
    stream.as_fd().try_clone_to_owned().map_err(LibcontainerError::OtherIO)
}

/// The failure that the container's first process reported, once it has ended or become the command.
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
