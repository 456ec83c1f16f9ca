//! Processes of instances: the first one, and those that are started beside it.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bellows_memory::threads::{self, ThreadRole};
use bellows_protocol::agent;
use bellows_protocol::stream::{StreamName, StreamRequest};
use bellows_protocol::user::User;
use bellows_protocol::values::{
    InstanceId, ProcessId, TerminalSize, ValueError, check_command, check_working_directory,
};

use super::error::InstanceError;
use crate::guest::agent::{AgentClient, AgentError, Stream, terminal_size};
use crate::model::ExitStatus;

/// Bytes of one read.
const BUFFER_BYTES: usize = 64 << 10;

/// The program of a process, and its user.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Absolute path of the directory that it starts in; empty means `/`.
    pub cwd: String,
    /// The user that it runs as.
    pub user: User,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// The kind of a process's standard streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stdio {
    /// Pipes: [`StreamName::Stdout`] and [`StreamName::Stderr`].
    Pipes {
        /// Standard input is a pipe, too: [`StreamName::Stdin`]. It is `/dev/null` otherwise.
        stdin: bool,
    },
    /// A terminal, of this size at first, for all three: [`StreamName::Terminal`].
    Terminal(TerminalSize),
}

impl ProcessSpec {
    /// Runs `argv` as root in `/`, without input.
    #[must_use]
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: String::new(),
            user: User::default(),
            stdio: Stdio::Pipes { stdin: false },
        }
    }

    /// Checks everything that the guest would refuse.
    pub(crate) fn request(&self) -> Result<agent::Process, ValueError> {
        check_command(&self.argv, &self.env)?;
        let (stdin, terminal) = match self.stdio {
            Stdio::Pipes { stdin } => (stdin, None),
            Stdio::Terminal(size) => (false, Some(terminal_size(size))),
        };
        Ok(agent::Process {
            arguments: self.argv.clone(),
            environment: self.env.clone(),
            working_directory: check_working_directory(&self.cwd)?.to_owned(),
            user: self.user.to_string(),
            terminal: terminal.into(),
            stdin,
            ..Default::default()
        })
    }
}

/// A process of an instance. Dropping it changes nothing.
#[derive(Clone)]
pub struct Process {
    instance: InstanceId,
    id: ProcessId,
    pid: u32,
    agent: Arc<AgentClient>,
}

impl Process {
    pub(crate) fn new(instance: InstanceId, id: ProcessId, pid: u32, agent: Arc<AgentClient>) -> Self {
        Self { instance, id, pid, agent }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Its number in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Connects to one of its streams; each can be connected once. Earlier output is not lost.
    ///
    /// # Errors
    /// It has no such stream, the stream is taken already, or the agent failed.
    pub fn connect(&self, stream: StreamName) -> Result<Stream, InstanceError> {
        let request = StreamRequest { instance: self.instance.clone(), process: self.id.clone(), stream };
        self.agent.connect_stream(request).map_err(|source| InstanceError::Connect {
            id: self.instance.clone(),
            process: self.id.clone(),
            stream,
            source: Box::new(source),
        })
    }

    /// Waits for its end. Its streams may still hold output.
    ///
    /// # Errors
    /// The agent failed, or the VM has ended.
    pub fn wait(&self) -> Result<ExitStatus, InstanceError> {
        self.agent.wait_process(&self.instance, &self.id).map_err(self.failed("wait for"))
    }

    /// Sends it a signal, by number.
    ///
    /// # Errors
    /// It is gone, or the signal does not exist.
    pub fn signal(&self, number: u32) -> Result<(), InstanceError> {
        self.agent.signal_process(&self.instance, &self.id, number).map_err(self.failed("signal"))
    }

    /// Sets the size of its terminal. Its foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// It has no terminal, or its terminal is closed.
    pub fn resize(&self, size: TerminalSize) -> Result<(), InstanceError> {
        self.agent.resize_terminal(&self.instance, &self.id, size).map_err(self.failed("resize the terminal of"))
    }

    /// Kills it if it still runs, and removes it from the table. Processes that it has started stay. A process that is
    /// gone already counts as removed.
    ///
    /// # Errors
    /// It is its instance's first process, which goes with [`Instance::remove`](crate::Instance::remove); the agent failed, or has not done so after
    /// `timeout`.
    pub fn remove(&self, timeout: Duration) -> Result<(), InstanceError> {
        self.agent.remove_process(&self.instance, &self.id, timeout).map_err(self.failed("remove a process of"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(AgentError) -> InstanceError {
        let id = self.instance.clone();
        move |source| InstanceError::Agent { action, id, source }
    }
}

/// A thread that passes bytes on.
pub struct Forwarding {
    request: StreamRequest,
    thread: JoinHandle<Result<u64, InstanceError>>,
}

impl Stream {
    /// Passes the process's output on to `sink`, on a thread of its own, until it ends.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn forward(&self, mut sink: impl Write + Send + 'static) -> Result<Forwarding, InstanceError> {
        let mut stream = self.clone();
        self.on_thread(move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            let mut bytes = 0;
            loop {
                let count = retried(|| stream.read(&mut buffer)).map_err(broken(stream.request()))?;
                if count == 0 {
                    return Ok(bytes);
                }
                let written = sink.write_all(&buffer[..count]).and_then(|()| sink.flush());
                written.map_err(not_passed_on(stream.request()))?;
                bytes += count as u64;
            }
        })
    }

    /// Passes `source` on to the process, on a thread of its own, and [finishes](Stream::finish) at its end, unless this is a
    /// terminal. The process may leave input unread.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn feed(&self, mut source: impl Read + Send + 'static) -> Result<Forwarding, InstanceError> {
        let mut stream = self.clone();
        self.on_thread(move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            let mut bytes = 0;
            let gone =
                |error: &io::Error| matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
            loop {
                let count = retried(|| source.read(&mut buffer)).map_err(not_passed_on(stream.request()))?;
                let passed = match (count, stream.name()) {
                    (0, StreamName::Terminal) => Ok(()),
                    (0, _) => stream.finish(),
                    _ => stream.write_all(&buffer[..count]),
                };
                match passed {
                    Ok(()) if count == 0 => return Ok(bytes),
                    Ok(()) => bytes += count as u64,
                    Err(error) if gone(&error) => return Ok(bytes),
                    Err(error) => return Err(broken(stream.request())(error)),
                }
            }
        })
    }

    fn on_thread(
        &self,
        pass_on: impl FnOnce() -> Result<u64, InstanceError> + Send + 'static,
    ) -> Result<Forwarding, InstanceError> {
        let thread = threads::spawn(ThreadRole::Control, "stream", Some(256 << 10), pass_on)
            .map_err(not_passed_on(self.request()))?;
        Ok(Forwarding { request: self.request().clone(), thread })
    }
}

impl Forwarding {
    /// Waits for the end; returns the number of bytes.
    ///
    /// # Errors
    /// Reading or passing on failed.
    pub fn join(self) -> Result<u64, InstanceError> {
        let Self { request, thread } = self;
        thread.join().unwrap_or_else(|_| Err(not_passed_on(&request)(io::Error::other("the thread panicked"))))
    }

    /// Whether [`Forwarding::join`] would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

fn retried(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn broken(request: &StreamRequest) -> impl FnOnce(io::Error) -> InstanceError + use<> {
    let StreamRequest { instance, process, stream } = request.clone();
    move |source| InstanceError::Stream { id: instance, process, stream, source }
}

fn not_passed_on(request: &StreamRequest) -> impl FnOnce(io::Error) -> InstanceError + use<> {
    let StreamRequest { instance, process, stream } = request.clone();
    move |source| InstanceError::PassOn { id: instance, process, stream, source }
}
