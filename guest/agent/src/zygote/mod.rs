//! Zygotes: instances whose process waits in `fork()`, so that other instances begin as copies of it.
//!
//! An instance is not made by its zygote. The agent makes its container as it makes any other, and where its first process would
//! call `execve`, it takes over a copy of the zygote's memory instead (`PIDFD_ADOPT` of our kernel). So a zygote chooses nothing
//! about its forks. docs/zygotes.md has the protocol of `control` and what a fork finds.

mod control;
mod inspect;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use thiserror::Error;

pub use inspect::Obstacle;

use crate::cgroup::Cgroup;
use crate::error::{AgentError, Result};
use crate::sys;

/// The descriptor of a zygote's end of its control socket.
pub const CONTROL: i32 = 3;
/// The environment variable that names it.
pub const CONTROL_VARIABLE: &str = "BELLOWS_ZYGOTE_FD";
/// The descriptor from which a fork reads its arguments, environment and working directory.
pub const START: i32 = 3;
/// The launcher for Python, an argument of its `-c`. Modules to import follow.
pub const PYTHON_LAUNCHER: &str = include_str!("launcher.py");
/// The kernel's feature, as errors name it.
pub const FEATURE: &str = "adoption of memory (PIDFD_ADOPT), which zygotes need";

/// A process that waits in `fork()`.
#[derive(Debug)]
pub struct Zygote {
    /// The process.
    pub process: OwnedFd,
    /// Its user and group, which its forks have, too.
    pub user: (u32, u32),
}

/// Why an instance cannot be a zygote.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ZygoteError {
    /// Its end of the control socket is closed.
    #[error("the zygote ended before it was ready")]
    Ended,
    /// Its own reason.
    #[error("the zygote could not start: {0}")]
    Said(String),
    /// It does not speak the protocol.
    #[error("the zygote wrote {0:?}: expected `ready` or `error <reason>`, and a newline")]
    Malformed(String),
    /// A fork copies one process.
    #[error("the zygote has {0} processes beside the first: expected one")]
    Processes(usize),
    /// A fork would share these with it, or would miss them.
    #[error("the zygote cannot be forked: it has {}", inspect::list(.0))]
    Obstacles(Vec<Obstacle>),
}

impl From<ZygoteError> for AgentError {
    fn from(error: ZygoteError) -> Self {
        match error {
            ZygoteError::Ended | ZygoteError::Malformed(_) => Self::ZygoteFailed(error.to_string()),
            ZygoteError::Said(_) | ZygoteError::Processes(_) | ZygoteError::Obstacles(_) => {
                Self::ZygoteUnfit(error.to_string())
            }
        }
    }
}

/// Waits until the zygote in `cgroup` says over `control` that it is ready, looks for what a fork could not have, and has the
/// kernel hold the zygote's forks from then on. `init` is the first process of its container, which waits for it.
///
/// # Errors
/// [`AgentError::ZygoteUnfit`], [`AgentError::ZygoteFailed`], [`AgentError::TimedOut`], [`AgentError::Unsupported`] if the kernel cannot do it; [`AgentError::Path`],
/// [`AgentError::System`].
pub fn arm(mut control: &UnixStream, init: Pid, cgroup: &Cgroup, limit: Duration) -> Result<OwnedFd> {
    control::await_ready(control, limit)?;
    let pid = only_other(&cgroup.processes()?, init)?;
    let process = sys::pidfd(pid).map_err(AgentError::system("pidfd_open"))?;
    // If it is still there, the descriptor is of a process in this cgroup: it did not end in between, or the arming fails.
    if only_other(&cgroup.processes()?, init)? != pid {
        return Err(ZygoteError::Ended.into());
    }
    let obstacles = inspect::obstacles(Path::new("/proc"), pid)?;
    if !obstacles.is_empty() {
        return Err(ZygoteError::Obstacles(obstacles).into());
    }
    sys::await_adoption(&process).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTTY) => AgentError::Unsupported(FEATURE),
        Some(libc::ESRCH) => ZygoteError::Ended.into(),
        _ => AgentError::system("PIDFD_AWAIT_ADOPTION")(error),
    })?;
    control.write_all(control::FORK).map_err(|_| ZygoteError::Ended)?;
    Ok(process)
}

/// The one process of `all` that is not `init`.
fn only_other(all: &[Pid], init: Pid) -> std::result::Result<Pid, ZygoteError> {
    let others: Vec<Pid> = all.iter().copied().filter(|pid| *pid != init).collect();
    match others[..] {
        [] => Err(ZygoteError::Ended),
        [pid] => Ok(pid),
        _ => Err(ZygoteError::Processes(others.len())),
    }
}

/// Takes `bytes` as what a zygote writes, and as the kernel's memory map of it, for fuzzing and property tests.
///
/// # Errors
/// [`AgentError::ZygoteUnfit`], [`AgentError::ZygoteFailed`], [`AgentError::System`].
#[cfg(any(test, feature = "testing"))]
pub fn exercise(bytes: &[u8]) -> Result<()> {
    let obstacles = inspect::mappings(bytes).map_err(AgentError::system("read"))?;
    if !obstacles.is_empty() {
        return Err(ZygoteError::Obstacles(obstacles).into());
    }
    Ok(control::parse(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zygote_is_the_only_process_beside_the_first() {
        let pids = |numbers: &[i32]| numbers.iter().copied().map(Pid::from_raw).collect::<Vec<_>>();
        let init = Pid::from_raw(7);
        assert_eq!(only_other(&pids(&[7, 9]), init), Ok(Pid::from_raw(9)));
        assert_eq!(only_other(&pids(&[7]), init), Err(ZygoteError::Ended));
        assert_eq!(only_other(&pids(&[9, 7, 10]), init), Err(ZygoteError::Processes(2)));
    }

    #[test]
    fn an_error_names_what_is_in_the_way() {
        let obstacles =
            vec![Obstacle::AsynchronousIo, Obstacle::Descriptor { number: 5, target: "socket:[77]".into() }];
        let text = ZygoteError::Obstacles(obstacles).to_string();
        assert!(text.contains("context of asynchronous I/O") && text.contains("descriptor 5 (socket:[77])"), "{text}");
    }
}
