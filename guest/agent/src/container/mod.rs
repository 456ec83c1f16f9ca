//! Creating an instance's container.
//!
//! The container library forks without `exec`, which is only safe in a process with one thread. So the agent, which has
//! many, runs *itself* as a [`helper`] that has one:
//!
//! ```text
//! agent ── spawns ──> helper ── clones ──> container's first process (waits)
//!       <── {"pid": N} over a socket ──    helper has let it go on, and its exec worked
//!  watches N, closes the socket ──────>    helper ends
//!       <── the container's first process becomes the agent's child
//! ```
//!
//! As the helper lives until the agent watches process N, its exit status cannot be missed.

mod executor;
pub mod helper;
mod program;
pub mod spec;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bellows_protocol::START_LIMIT;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{AgentError, Result};
use crate::output::OutputStream;
use crate::reaper::{Exit, Reaper};

/// The argument that makes the agent's program a helper.
pub const HELPER: &str = "container";
/// Longest report of a helper, in bytes.
const MAX_REPORT: u64 = 16 << 10;

/// What a helper says at its end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The container runs; its first process as the agent sees it.
    Pid(i32),
    /// The command is not in the root file system.
    NotFound(String),
    /// The command cannot be executed.
    NotExecutable(String),
    /// Something else.
    Failed(String),
}

/// A container's first process.
#[derive(Debug)]
pub struct Process {
    /// Its number as the agent sees it.
    pub pid: Pid,
    /// How it ends.
    pub exit: Arc<Exit>,
    /// What it writes.
    pub stdout: OutputStream,
    /// What it writes as errors.
    pub stderr: OutputStream,
}

/// Creates containers.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The agent's program.
    program: PathBuf,
    /// Where the container library keeps its state.
    state: PathBuf,
    reaper: Arc<Reaper>,
}

impl Launcher {
    /// A launcher that runs `program`, an agent, as helper and keeps state below `state`.
    pub fn new(program: impl Into<PathBuf>, state: impl Into<PathBuf>, reaper: Arc<Reaper>) -> Self {
        Self { program: program.into(), state: state.into(), reaper }
    }

    /// Creates and starts the container that `bundle`, a folder with a `config.json`, describes; answers its first process and
    /// its network namespace.
    ///
    /// # Errors
    /// [`AgentError::CommandNotFound`], [`AgentError::CommandNotExecutable`], [`AgentError::Container`],
    /// [`AgentError::TimedOut`], [`AgentError::Path`]. Processes may be left in the container's cgroup then, and state here: see
    /// [`Launcher::forget`].
    pub fn launch(&self, id: &str, bundle: &Path) -> Result<(Process, OwnedFd)> {
        let (stdout, stdout_end) = OutputStream::new().map_err(AgentError::system("pipe"))?;
        let (stderr, stderr_end) = OutputStream::new().map_err(AgentError::system("pipe"))?;
        let (ours, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
        crate::files::make_directory(&self.state)?;

        let mut command = Command::new(&self.program);
        command.arg(HELPER).arg(id).arg(bundle).arg(&self.state).env_clear().current_dir("/");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(stdout_end).stderr(stderr_end);
        let (helper, helper_exit) = self.reaper.spawn(&mut command).map_err(AgentError::path("run", &self.program))?;
        // The command holds the child's ends of pipes and socket.
        drop(command);

        match read_report(&ours)? {
            Some(Report::Pid(pid)) => {
                let pid = Pid::from_raw(pid);
                let exit = self.reaper.watch(pid);
                // The helper, which has joined it, lives still; the container's process may have ended.
                let network = format!("/proc/{helper}/ns/net");
                let network = File::open(&network).map_err(AgentError::path("open", network))?.into();
                drop(ours);
                Ok((Process { pid, exit, stdout, stderr }, network))
            }
            Some(Report::NotFound(message)) => Err(AgentError::CommandNotFound(message)),
            Some(Report::NotExecutable(message)) => Err(AgentError::CommandNotExecutable(message)),
            Some(Report::Failed(message)) => Err(AgentError::Container(message)),
            None => {
                let error = match helper_exit.get() {
                    Some(code) => AgentError::Container(format!("its helper ended with {code}")),
                    None => AgentError::TimedOut { what: format!("container {id}"), after: START_LIMIT },
                };
                // It may hang in the kernel; whatever it has started is in the container's cgroup.
                let _ = self.reaper.signal(helper, Signal::SIGKILL);
                Err(error)
            }
        }
    }

    /// Removes the library's state of a container that is gone.
    pub fn forget(&self, id: &str) {
        let folder = self.state.join(id);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %folder.display(), %error, "container state stays");
            }
            _ => {}
        }
    }
}

fn read_report(socket: &UnixStream) -> Result<Option<Report>> {
    use std::io::Read;
    socket.set_read_timeout(Some(START_LIMIT)).map_err(AgentError::system("setsockopt"))?;
    let mut line = String::new();
    match BufReader::new(socket.take(MAX_REPORT)).read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => serde_json::from_str(&line)
            .map(Some)
            .map_err(|_| AgentError::Malformed { what: "the helper's report".into(), text: line }),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(AgentError::system("read")(error)),
    }
}
