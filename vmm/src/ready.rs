//! How the guest's agent says that it can be called: it connects to a port of the host and sends one line.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bellows_protocol::ready::{BootTimes, MAX_READY_LINE, ReadyError, parse_ready_line};
use bellows_protocol::{PROTOCOL_VERSION, READY_PORT};

use crate::end::{EndSignal, VmEnd};

/// Why the guest's agent can't be called.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The socket for the agent's line could not be made.
    #[error("cannot listen on `{path}` for the guest's agent")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Time is up.
    #[error("the guest's agent was not ready after {0:?}")]
    Timeout(Duration),
    /// The VM ended before.
    #[error("the VM ended before the guest's agent was ready: {0}")]
    Ended(VmEnd),
    /// The guest sent something else.
    #[error("the guest's agent sent no ready line")]
    Line(#[source] ReadyError),
    /// The agent is of another version.
    #[error("the guest's agent speaks protocol version {0}, expected {PROTOCOL_VERSION}")]
    Version(u32),
    /// The connection failed.
    #[error("cannot read the ready line of the guest's agent")]
    Read(#[source] io::Error),
}

/// Listens for the agent's line; the socket's file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct ReadyListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ReadyListener {
    /// Listens where the vsock device at `uds_path` looks for the host's [`READY_PORT`].
    pub(crate) fn bind(uds_path: &Path) -> Result<Self, NotReady> {
        let mut path = OsString::from(uds_path);
        path.push(format!("_{READY_PORT}"));
        let path = PathBuf::from(path);
        let failed = |source| NotReady::Bind { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let ready = Self { listener, path: path.clone() };
        ready.listener.set_nonblocking(true).map_err(failed)?;
        Ok(ready)
    }

    /// Waits for the agent's line, for the end of the VM, or until `timeout` is over.
    pub(crate) fn wait(&self, timeout: Duration, end: &EndSignal) -> Result<BootTimes, NotReady> {
        let wait = Wait { start: Instant::now(), timeout, end };
        let mut stream = loop {
            wait.readable(&self.listener)?;
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(NotReady::Read(error)),
            }
        };
        stream.set_nonblocking(true).map_err(NotReady::Read)?;
        let line = read_line(&mut stream, &wait)?;
        parse_ready_line(&line).map_err(|error| match error {
            ReadyError::Version(version) => NotReady::Version(version),
            other => NotReady::Line(other),
        })
    }
}

impl Drop for ReadyListener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the agent's ready socket");
        }
    }
}

/// Reads up to a newline, the end, or the longest line there is.
fn read_line(stream: &mut UnixStream, wait: &Wait<'_>) -> Result<Vec<u8>, NotReady> {
    let mut line = Vec::with_capacity(MAX_READY_LINE);
    while line.len() < MAX_READY_LINE && line.last() != Some(&b'\n') {
        wait.readable(&*stream)?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(NotReady::Read(error)),
        }
    }
    Ok(line)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

struct Wait<'a> {
    start: Instant,
    timeout: Duration,
    end: &'a EndSignal,
}

impl Wait<'_> {
    /// Waits until `file` can be read.
    fn readable(&self, file: &impl AsRawFd) -> Result<(), NotReady> {
        loop {
            let left = self.timeout.checked_sub(self.start.elapsed()).ok_or(NotReady::Timeout(self.timeout))?;
            // Rounded up, so that this does not spin through the last millisecond.
            let milliseconds = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut entries = [entry(self.end.as_raw_fd()), entry(file.as_raw_fd())];
            // SAFETY: the array has two entries, both with descriptors that outlive the call.
            let count = unsafe { libc::poll(entries.as_mut_ptr(), 2, milliseconds) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(NotReady::Read(error));
                }
            } else if let (true, Some(end)) = (entries[0].revents != 0, self.end.ended()) {
                return Err(NotReady::Ended(end));
            } else if entries[1].revents != 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[path = "ready_test.rs"]
mod tests;
