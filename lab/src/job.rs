//! A program that runs in the lab, as seen from outside.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::wire::{Frame, Job, Kind, MAX_PAYLOAD};
use super::{Error, console_tail};

impl Job {
    /// A program with arguments, nothing else set.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), env: Default::default(), cwd: None }
    }

    /// A line for `sh -c`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(["sh".to_owned(), "-c".to_owned(), line.into()])
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, path: impl Into<String>) -> Self {
        self.cwd = Some(path.into());
        self
    }
}

/// An event of a running job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of its standard output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It ended with this exit code: 128 + n after signal n, 127 if it could not be started.
    Exit(i32),
}

/// The result of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit code, as in [`Event::Exit`].
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// The way into the lab, shared by all jobs.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub stream: Arc<Mutex<UnixStream>>,
    pub console: PathBuf,
}

impl Port {
    pub fn send(&self, frame: &Frame) -> Result<(), Error> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&*stream).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.stopped(),
            _ => Error::Channel(error),
        })
    }

    pub fn stopped(&self) -> Error {
        Error::Stopped { console: console_tail(&self.console) }
    }
}

/// A job that was started.
#[derive(Debug)]
pub struct Running {
    pub(super) id: u32,
    pub(super) port: Port,
    pub(super) events: Receiver<Event>,
}

impl Running {
    /// A handle for the job's standard input, usable from another thread.
    pub fn stdin(&self) -> Stdin {
        Stdin { id: self.id, port: self.port.clone() }
    }

    /// Sends a signal to the job's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.port.send(&Frame::new(self.id, Kind::Signal, signal.to_le_bytes()))
    }

    /// The job's next event. [`Event::Exit`] is the last.
    pub fn next_event(&self) -> Result<Event, Error> {
        self.events.recv().map_err(|_| self.port.stopped())
    }

    /// The job's next event, which must come within `limit`.
    pub fn next_event_within(&self, limit: Duration) -> Result<Event, Error> {
        self.events.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => Error::Silent { limit, console: console_tail(&self.port.console) },
            RecvTimeoutError::Disconnected => self.port.stopped(),
        })
    }

    /// Hands output to `on_output` as it comes and returns the exit code.
    pub fn wait(self, on_output: impl FnMut(Event)) -> Result<i32, Error> {
        until_exit(|| self.next_event(), on_output)
    }

    /// Does the same, and fails if the job sends nothing for `silence`.
    pub fn wait_while_it_speaks(self, silence: Duration, on_output: impl FnMut(Event)) -> Result<i32, Error> {
        until_exit(|| self.next_event_within(silence), on_output)
    }

    /// Collects output until the job ends.
    pub fn output(self) -> Result<Output, Error> {
        let mut output = Output::default();
        output.code = self.wait(|event| match event {
            Event::Stdout(bytes) => output.stdout.extend(bytes),
            Event::Stderr(bytes) => output.stderr.extend(bytes),
            Event::Exit(_) => {}
        })?;
        Ok(output)
    }
}

fn until_exit(next_event: impl Fn() -> Result<Event, Error>, mut on_output: impl FnMut(Event)) -> Result<i32, Error> {
    loop {
        match next_event()? {
            Event::Exit(code) => return Ok(code),
            output => on_output(output),
        }
    }
}

/// A job's standard input.
#[derive(Debug, Clone)]
pub struct Stdin {
    id: u32,
    port: Port,
}

impl Stdin {
    /// Sends bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        bytes.chunks(MAX_PAYLOAD).try_for_each(|chunk| self.port.send(&Frame::new(self.id, Kind::Stdin, chunk)))
    }

    /// Closes it: the job reads an end of file.
    pub fn close(&self) -> Result<(), Error> {
        self.port.send(&Frame::new(self.id, Kind::Stdin, []))
    }
}
