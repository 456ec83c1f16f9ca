//! Making an instance's container, and starting processes in it.
//!
//! A process that enters namespaces and gives up rights has to be forked, and a fork is only safe in a process with one thread. So
//! the agent, which has many, runs *itself* as a [`helper`] that has one, and sends it orders:
//!
//! ```text
//! agent ── order, descriptors ──> helper ── forks ──> first process: enters the cgroup, makes or joins namespaces
//!   │                                                   └── forks ──> second process: finishes the container,
//!   │                                                                 executes the command
//!   ├── plan ───────────────────────────────────────────────────────> reads it
//!   <── {"pid": N} ──────────────────────────────────── ends
//!   <── the channel closes: the command is executed; or a report of what failed ──┘
//! ```
//!
//! Both processes are the agent's children. A process that joins an existing container is started in the same way; it enters the
//! container's namespaces and its cgroup instead of making new ones.

pub mod copy;
mod descriptor;
mod executor;
pub mod helper;
mod inside;
pub mod plan;
mod program;
mod rights;
mod site;
mod terminal;
mod zygote;

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_protocol::START_LIMIT;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::copy::{Copying, Direction};
use self::plan::{ContainerPlan, Place, Plan, ProcessPlan, ProcessSpec, Role};
pub use self::site::{Joining, Mounted, Network, Site};
use crate::accounts::Credentials;
use crate::error::{AgentError, Result};
use crate::reaper::{Exit, Reaper};
use crate::streams::{ChildPipes, StdioSpec, Streams};
use crate::sync::Mutex;
use crate::sys;

/// The argument that makes the agent's program a helper.
pub const HELPER: &str = "container";
/// Longest answer to an order, in bytes.
const MAX_ANSWER: usize = 16 << 10;

/// An order to the helper: the first byte of a message, which brings descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Make a container, and a process in it.
    Create = b'c' as isize,
    /// The same in the network namespace that comes with it.
    CreateIn = b'n' as isize,
    /// Make another process in a container.
    Join = b'j' as isize,
}

impl Order {
    fn parse(byte: u8) -> Option<Self> {
        [Self::Create, Self::CreateIn, Self::Join].into_iter().find(|order| *order as u8 == byte)
    }
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

/// What comes back of an order.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The process has been made; its number as the agent sees it. Its pidfd and, of a new container, the network namespace come
    /// with it.
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

/// Makes containers, and processes in them.
#[derive(Debug)]
pub struct Launcher {
    /// The agent's program.
    program: PathBuf,
    reaper: Arc<Reaper>,
    /// Where orders go, once the helper runs.
    helper: Mutex<Option<OwnedFd>>,
}

impl Launcher {
    /// A launcher that runs `program`, an agent, as helper.
    pub fn new(program: impl Into<PathBuf>, reaper: Arc<Reaper>) -> Self {
        Self { program: program.into(), reaper, helper: Mutex::default() }
    }

    /// Starts the helper if it does not run, so that a start finds it.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::System`].
    pub fn prepare(&self) -> Result<()> {
        self.with_helper(|_| Ok(()))
    }

    /// Makes a container with `process` in it, as `running` says; returns its first process and its network namespace.
    ///
    /// # Errors
    /// [`AgentError::CommandNotFound`], [`AgentError::CommandNotExecutable`], [`AgentError::NotAdopted`], [`AgentError::Container`],
    /// [`AgentError::TimedOut`], [`AgentError::Path`], [`AgentError::System`]. Processes may remain in the container's cgroup then.
    pub fn launch(
        &self,
        site: &Site<'_>,
        process: &ProcessSpec,
        credentials: &Credentials,
        running: Running<'_>,
    ) -> Result<(Process, OwnedFd)> {
        let clone = |path: &Path| sys::clone_mount(path).map_err(AgentError::path("open", path));
        let root = clone(site.root)?;
        let volumes = site.volumes.iter().map(|volume| clone(volume.source)).collect::<Result<Vec<_>>>()?;
        let (role, sent) = running.role();
        let place = |volume: &Mounted<'_>| Place { path: volume.place.to_string(), writable: volume.writable };
        let plan = Plan {
            container: Some(ContainerPlan::new(site.hostname, site.capacities, site.volumes.iter().map(place))),
            process: ProcessPlan::new(site.hostname, process, credentials),
            policy: site.placement.policy(),
            huge_pages: site.placement.node().is_some(),
            shares_network: matches!(site.network, Network::Shared(_)),
            role,
            copying: None,
        };
        let network = site.network.existing();
        let order = Ordered {
            order: if network.is_some() { Order::CreateIn } else { Order::Create },
            cgroup: site.cgroup,
            target: root.as_fd(),
            network,
            volumes: volumes.iter().map(AsFd::as_fd).collect(),
            sent,
            stdio: process.stdio,
        };
        let (process, made) = self.start(site.hostname, &order, &plan)?;
        let network = match network {
            Some(network) => Some(network.try_clone_to_owned().map_err(AgentError::system("dup"))?),
            None => made,
        };
        let network = network.ok_or_else(|| AgentError::Container("no network namespace came".into()))?;
        Ok((process, network))
    }

    /// Starts another process in a running container.
    ///
    /// # Errors
    /// Those of [`Launcher::launch`].
    pub fn join(&self, joining: &Joining<'_>, process: &ProcessSpec, credentials: &Credentials) -> Result<Process> {
        let plan = ProcessPlan::new(joining.hostname, process, credentials);
        self.join_as(joining, plan, process.stdio, None)
    }

    /// Starts a process of the agent's own in a running container, which copies files as its root.
    ///
    /// # Errors
    /// Those of [`Launcher::launch`].
    pub fn copy(&self, joining: &Joining<'_>, copying: &Copying) -> Result<Process> {
        let stdio = StdioSpec::Pipes { stdin: copying.direction == Direction::In };
        self.join_as(joining, ProcessPlan::of_root(), stdio, Some(copying.clone()))
    }

    fn join_as(
        &self,
        joining: &Joining<'_>,
        process: ProcessPlan,
        stdio: StdioSpec,
        copying: Option<Copying>,
    ) -> Result<Process> {
        let plan = Plan {
            container: None,
            process,
            policy: joining.placement.policy(),
            huge_pages: joining.placement.node().is_some(),
            shares_network: joining.shares_network,
            role: if copying.is_some() { Role::Copy } else { Role::Command },
            copying,
        };
        let order = Ordered {
            order: Order::Join,
            cgroup: joining.cgroup,
            target: joining.init.ended.as_fd(),
            network: None,
            volumes: Vec::new(),
            sent: None,
            stdio,
        };
        self.start(joining.hostname, &order, &plan).map(|(process, _)| process)
    }

    /// Has the helper make a process of `plan` in container `name`.
    fn start(&self, name: &str, ordered: &Ordered<'_>, plan: &Plan) -> Result<(Process, Option<OwnedFd>)> {
        let Ordered { order, cgroup, target, network, ref volumes, sent, stdio } = *ordered;
        let cgroup = File::open(cgroup).map_err(AgentError::path("open", cgroup))?;
        let (channel, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
        let (streams, ends) = Ends::make(stdio, &plan.process)?;
        let expected = self.reaper.expect();
        let [stdin, stdout, stderr] = ends.each();
        let mut descriptors = vec![theirs.as_fd(), cgroup.as_fd(), target, stdin, stdout, stderr];
        descriptors.extend(network.into_iter().chain(volumes.iter().copied()).chain(sent));
        self.with_helper(|helper| descriptor::send(helper, &[order as u8], &descriptors))?;
        drop((theirs, ends));

        let deadline = Instant::now() + START_LIMIT;
        let text = serde_json::to_string(plan).map_err(|error| AgentError::Container(error.to_string()))?;
        channel.set_write_timeout(Some(START_LIMIT)).map_err(AgentError::system("setsockopt"))?;
        // Where the other end is gone, there is a report.
        let _ = (&channel).write_all(text.as_bytes()).and_then(|()| channel.shutdown(Shutdown::Write));
        let Answer { pid, descriptors, failure, complete } = Answer::read(&channel, deadline)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut descriptors = descriptors.into_iter();
        let (Some(pid), Some(ended)) = (pid, descriptors.next()) else {
            return Err(AgentError::Container("the helper made no process".into()));
        };
        let exit = expected.watch(pid);
        if !complete {
            // It may hang in the kernel.
            let _ = self.reaper.signal(pid, Signal::SIGKILL);
            return Err(AgentError::TimedOut { what: format!("container {name}"), after: START_LIMIT });
        }
        let streams = streams.ready().map_err(AgentError::system("terminal"))?;
        Ok((Process { pid, exit, ended: Arc::new(ended), streams }, descriptors.next()))
    }

    /// Does something with the way to the helper, and once more with that of a new one if the first has ended.
    fn with_helper(&self, work: impl Fn(&OwnedFd) -> io::Result<()>) -> Result<()> {
        let mut helper = self.helper.lock();
        if let Some(orders) = &*helper {
            match work(orders) {
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    tracing::warn!(%error, "the helper has ended: it is started again");
                }
                result => return result.map_err(AgentError::system("sendmsg")),
            }
        }
        let orders = helper.insert(self.start_helper()?);
        work(orders).map_err(AgentError::system("sendmsg"))
    }

    fn start_helper(&self) -> Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(AgentError::system("socketpair"))?;
        let mut command = Command::new(&self.program);
        command.arg(HELPER).env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        self.reaper.spawn(&mut command).map_err(AgentError::path("run", &self.program))?;
        Ok(ours)
    }
}

/// An order, and what comes with it.
struct Ordered<'a> {
    order: Order,
    cgroup: &'a Path,
    /// The mount of the root file system; or the first process of the container to join.
    target: BorrowedFd<'a>,
    /// The network namespace to enter.
    network: Option<BorrowedFd<'a>>,
    /// Mounts of its volumes.
    volumes: Vec<BorrowedFd<'a>>,
    /// What the role needs.
    sent: Option<BorrowedFd<'a>>,
    stdio: StdioSpec,
}

/// The process's ends of its streams.
enum Ends {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The terminal's master comes over the socket.
    Terminal {
        null: OwnedFd,
        socket: OwnedFd,
    },
}

impl Ends {
    fn make(stdio: StdioSpec, process: &ProcessPlan) -> Result<(Source, Self)> {
        let null = || {
            let null = File::options().read(true).write(true).open("/dev/null");
            Ok::<_, AgentError>(OwnedFd::from(null.map_err(AgentError::path("open", "/dev/null"))?))
        };
        match stdio {
            StdioSpec::Pipes { stdin } => {
                let pipes = Streams::pipes(stdin, process.uid, process.gid);
                let (streams, ChildPipes { stdin, stdout, stderr }) = pipes.map_err(AgentError::system("pipe"))?;
                let stdin = stdin.map_or_else(null, Ok)?;
                Ok((Source::Pipes(streams), Self::Pipes { stdin, stdout, stderr }))
            }
            StdioSpec::Terminal(_) => {
                let (ours, theirs) = UnixStream::pair().map_err(AgentError::system("socketpair"))?;
                Ok((Source::Terminal(ours), Self::Terminal { null: null()?, socket: theirs.into() }))
            }
        }
    }

    fn each(&self) -> [BorrowedFd<'_>; 3] {
        match self {
            Self::Pipes { stdin, stdout, stderr } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Terminal { null, socket } => [null.as_fd(), socket.as_fd(), null.as_fd()],
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
            Self::Terminal(socket) => Streams::terminal(descriptor::receive_one(&socket)?),
        }
    }
}

/// The answer to an order.
#[derive(Default)]
struct Answer {
    pid: Option<Pid>,
    descriptors: Vec<OwnedFd>,
    failure: Option<AgentError>,
    /// The other ends of the channel have been closed.
    complete: bool,
}

impl Answer {
    /// Reads all of it, until `deadline`.
    fn read(channel: &UnixStream, deadline: Instant) -> Result<Self> {
        let mut answer = Self::default();
        let mut text = vec![0; MAX_ANSWER];
        let mut length = 0;
        while length < MAX_ANSWER {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            channel.set_read_timeout(Some(left)).map_err(AgentError::system("setsockopt"))?;
            match descriptor::receive(channel, &mut text[length..], MsgFlags::empty()) {
                Ok((0, _)) => {
                    answer.complete = true;
                    break;
                }
                // The plan was not read; all that was said about it has come before.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    answer.complete = true;
                    break;
                }
                Ok((count, descriptors)) => {
                    length += count;
                    answer.descriptors.extend(descriptors);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) => return Err(AgentError::system("recvmsg")(error)),
            }
        }
        for line in text[..length].split_inclusive(|&byte| byte == b'\n') {
            answer.add(line)?;
        }
        Ok(answer)
    }

    fn add(&mut self, line: &[u8]) -> Result<()> {
        let malformed = || AgentError::Malformed {
            what: "the helper's report".into(),
            text: String::from_utf8_lossy(line).into_owned(),
        };
        let failure = match serde_json::from_slice(line).map_err(|_| malformed())? {
            Report::Pid(pid) => {
                self.pid = Some(Pid::from_raw(pid));
                return Ok(());
            }
            Report::NotFound(message) => AgentError::CommandNotFound(message),
            Report::NotExecutable(message) => AgentError::CommandNotExecutable(message),
            Report::NotAdopted(number) => AgentError::NotAdopted(io::Error::from_raw_os_error(number)),
            Report::Failed(message) => AgentError::Container(message),
        };
        self.failure = Some(failure);
        Ok(())
    }
}
