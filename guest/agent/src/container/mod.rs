//! Creating an instance's container, and starting processes in it.
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
//! The helper lives until the agent watches process N, so its exit status cannot be missed. A process that joins an existing
//! container is started in the same way; it enters the container's namespaces and its cgroup instead of making new ones.

mod descriptor;
#[cfg(feature = "containers")]
mod executor;
#[cfg(feature = "containers")]
pub mod helper;
#[cfg(feature = "containers")]
mod program;
pub mod spec;
#[cfg(feature = "containers")]
mod terminal;
#[cfg(feature = "containers")]
mod zygote;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bellows_protocol::START_LIMIT;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::spec::ProcessSpec;
use crate::accounts::Credentials;
use crate::error::{AgentError, Result};
use crate::placement::Placement;
use crate::reaper::{Exit, Reaper};
use crate::streams::{ChildPipes, StdioSpec, Streams};
use crate::sys;

/// The argument that makes the agent's program a helper.
pub const HELPER: &str = "container";
/// Longest report of a helper, in bytes.
const MAX_REPORT: u64 = 16 << 10;

/// The order to a helper, as its argument.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The container.
    id: String,
    /// Folder of the container library's state.
    state: PathBuf,
    /// Columns and rows of the process's terminal, if it gets one. Its master comes over the helper's standard output then.
    terminal: Option<(u16, u16)>,
    /// Standard input has been sent over the socket; otherwise it is `/dev/null`. The descriptor of the role follows.
    stdin: bool,
    step: Step,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Create the container that `bundle` describes, and start its first process.
    Create { bundle: PathBuf, role: Role },
    /// Start another process in it: the one that the file describes.
    Join { process: PathBuf, policy: Option<u32> },
}

/// What a container's first process becomes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// The command.
    Command,
    /// The parent of the command, which is a zygote. Its end of the control socket has been sent.
    Zygote,
    /// A fork of a zygote, whose pidfd has been sent.
    Fork,
}

/// What a container runs.
#[derive(Debug, Clone, Copy)]
pub enum Running<'a> {
    /// The command, as its first process.
    Command,
    /// The command, as a zygote with this end of the control socket, beside the first process.
    Zygote(BorrowedFd<'a>),
    /// A fork of the zygote with this pidfd, as its first process.
    Fork(BorrowedFd<'a>),
}

impl<'a> Running<'a> {
    fn role(self) -> (Role, Option<BorrowedFd<'a>>) {
        match self {
            Self::Command => (Role::Command, None),
            Self::Zygote(control) => (Role::Zygote, Some(control)),
            Self::Fork(zygote) => (Role::Fork, Some(zygote)),
        }
    }
}

/// The report of a helper at its end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The process runs; its number as the agent sees it.
    Pid(i32),
    /// The command is not in the root file system.
    NotFound(String),
    /// The command cannot be executed.
    NotExecutable(String),
    /// The kernel did not make it a fork of the zygote: the number of its error.
    NotAdopted(i32),
    /// Another failure.
    Failed(String),
}

/// The report of a failure at `what`.
fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Report {
    move |error| Report::Failed(format!("{what}: {error}"))
}

/// A process of a container.
#[derive(Debug)]
pub struct Process {
    /// Its number as the agent sees it.
    pub pid: Pid,
    /// Its exit.
    pub exit: Arc<Exit>,
    /// Readable when the process has ended.
    pub ended: Arc<OwnedFd>,
    /// Its standard streams.
    pub streams: Streams,
}

/// The container that another process is started in.
#[derive(Debug)]
pub struct Joining<'a> {
    /// The container.
    pub container: &'a str,
    /// Folder of its files.
    pub folder: &'a Path,
    /// The process's unique name.
    pub name: &'a str,
    /// The source of the container's memory.
    pub placement: Placement,
}

/// Creates containers, and processes in them.
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

    /// Creates and starts the container that `bundle`, a folder with a `config.json`, describes, with `process` in it, as
    /// `running` says; returns its first process and its network namespace.
    ///
    /// # Errors
    /// [`AgentError::CommandNotFound`], [`AgentError::CommandNotExecutable`], [`AgentError::NotAdopted`], [`AgentError::Container`],
    /// [`AgentError::TimedOut`], [`AgentError::Path`], [`AgentError::System`]. Processes may remain in the
    /// container's cgroup then, and state here: see [`Launcher::forget`].
    pub fn launch(
        &self,
        id: &str,
        bundle: &Path,
        process: &ProcessSpec,
        credentials: &Credentials,
        running: Running<'_>,
    ) -> Result<(Process, OwnedFd)> {
        crate::files::make_directory(&self.state)?;
        let open_network = |helper| {
            // The helper has joined it and still lives; the container's process may have ended.
            let network = format!("/proc/{helper}/ns/net");
            Ok(File::open(&network).map_err(AgentError::path("open", network))?.into())
        };
        let (role, sent) = running.role();
        self.start(id, Step::Create { bundle: bundle.into(), role }, sent, process.stdio, credentials, open_network)
    }

    /// Starts another process in a running container.
    ///
    /// # Errors
    /// Those of [`Launcher::launch`].
    pub fn join(&self, joining: &Joining<'_>, process: &ProcessSpec, credentials: &Credentials) -> Result<Process> {
        let Joining { container, folder, name, placement } = *joining;
        let file = folder.join(format!("process-{name}.json"));
        let description = spec::process(container, process, credentials).to_string();
        std::fs::write(&file, description).map_err(AgentError::path("write", &file))?;
        let policy = match placement {
            Placement::Policy(node) => Some(node.number()),
            Placement::Base | Placement::Private(_) => None,
        };
        let step = Step::Join { process: file.clone(), policy };
        let joined = self.start(container, step, None, process.stdio, credentials, |_| Ok(()));
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::warn!(path = %file.display(), %error, "cannot remove a file");
        }
        joined.map(|(process, ())| process)
    }

    /// Has a helper take `step`, for which it gets the descriptor `sent`. Calls `look` with the helper's number after the step, while the helper still lives.
    fn start<T>(
        &self,
        id: &str,
        step: Step,
        sent: Option<BorrowedFd<'_>>,
        stdio: StdioSpec,
        credentials: &Credentials,
        look: impl FnOnce(Pid) -> Result<T>,
    ) -> Result<(Process, T)> {
        let (ours, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs)));
        let mut order = Order { id: id.into(), state: self.state.clone(), terminal: None, stdin: false, step };
        let streams = match stdio {
            StdioSpec::Pipes { stdin } => {
                let pipes = Streams::pipes(stdin, credentials.uid, credentials.gid);
                let pipes = pipes.map_err(AgentError::system("pipe"))?;
                let (streams, ChildPipes { stdin, stdout, stderr }) = pipes;
                command.stdout(stdout).stderr(stderr);
                if let Some(stdin) = stdin {
                    order.stdin = true;
                    descriptor::send(&ours, &stdin).map_err(AgentError::system("sendmsg"))?;
                }
                Source::Pipes(streams)
            }
            StdioSpec::Terminal(size) => {
                let (ours, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
                command.stdout(OwnedFd::from(theirs)).stderr(Stdio::null());
                order.terminal = Some((size.columns, size.rows));
                Source::Terminal(ours)
            }
        };
        if let Some(descriptor) = sent {
            descriptor::send(&ours, &descriptor).map_err(AgentError::system("sendmsg"))?;
        }
        let order = serde_json::to_string(&order).map_err(|error| AgentError::Container(error.to_string()))?;
        command.arg(HELPER).arg(order);
        let (helper, helper_exit) = self.reaper.spawn(&mut command).map_err(AgentError::path("run", &self.program))?;
        // The command holds the child's ends of pipes and sockets.
        drop(command);

        match read_report(&ours)? {
            Some(Report::Pid(pid)) => {
                let pid = Pid::from_raw(pid);
                let exit = self.reaper.watch(pid);
                // The process exists even if it has ended: the helper is its parent and does not wait for it.
                let ended = Arc::new(sys::pidfd(pid).map_err(AgentError::system("pidfd_open"))?);
                let seen = look(helper)?;
                let streams = streams.ready().map_err(AgentError::system("terminal"))?;
                drop(ours);
                Ok((Process { pid, exit, ended, streams }, seen))
            }
            Some(Report::NotFound(message)) => Err(AgentError::CommandNotFound(message)),
            Some(Report::NotExecutable(message)) => Err(AgentError::CommandNotExecutable(message)),
            Some(Report::NotAdopted(number)) => Err(AgentError::NotAdopted(io::Error::from_raw_os_error(number))),
            Some(Report::Failed(message)) => Err(AgentError::Container(message)),
            None => {
                let error = match helper_exit.get() {
                    Some(code) => AgentError::Container(format!("its helper ended with {code}")),
                    None => AgentError::TimedOut { what: format!("container {id}"), after: START_LIMIT },
                };
                // It may hang in the kernel; all processes that it has started are in the container's cgroup.
                let _ = self.reaper.signal(helper, Signal::SIGKILL);
                Err(error)
            }
        }
    }

    /// Removes the library's state of a container that is gone.
    pub fn forget(&self, id: &str) {
        let folder = self.state.join(id);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %folder.display(), %error, "cannot remove container state");
            }
            _ => {}
        }
    }
}

/// The source of our ends of a process's streams.
enum Source {
    Pipes(Streams),
    /// The process sends the terminal's master before it executes the command.
    Terminal(UnixStream),
}

impl Source {
    fn ready(self) -> io::Result<Streams> {
        match self {
            Self::Pipes(streams) => Ok(streams),
            Self::Terminal(socket) => Streams::terminal(descriptor::receive(&socket)?),
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
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(AgentError::system("read")(error)),
    }
}
