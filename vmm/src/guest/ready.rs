//! The guest's agent reports that it can be called: it connects to a port of the host and sends one line.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bellows_devices::virtio::vsock::BoundSocket;
use bellows_protocol::READY_PORT;
use bellows_protocol::ready::{BootTimes, MAX_READY_LINE, ReadyError, parse_ready_line};

use super::error::NotReady;
use crate::deadline::{Deadline, NothingToRead, await_readable};
use crate::end::EndSignal;

/// Listens for the agent's line; dropping it removes the socket's file.
#[derive(Debug)]
pub(crate) struct ReadyListener(BoundSocket);

impl ReadyListener {
    /// Listens where the vsock device at `uds_path` looks for the host's [`READY_PORT`].
    pub(crate) fn bind(uds_path: &Path) -> Result<Self, NotReady> {
        let mut path = OsString::from(uds_path);
        path.push(format!("_{READY_PORT}"));
        let path = PathBuf::from(path);
        BoundSocket::bind(&path).map(Self).map_err(|source| NotReady::Bind { path, source })
    }

    /// Waits for the agent's line, for the end of the VM, or until time is up.
    pub(crate) fn wait(&self, deadline: Deadline, end: &EndSignal) -> Result<BootTimes, NotReady> {
        let mut stream = loop {
            readable(&*self.0, deadline, end)?;
            match self.0.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(NotReady::Read(error)),
            }
        };
        stream.set_nonblocking(true).map_err(NotReady::Read)?;
        let line = read_line(&mut stream, deadline, end)?;
        parse_ready_line(&line).map_err(|error| match error {
            ReadyError::Version(version) => NotReady::Version(version),
            other => NotReady::Line(other),
        })
    }
}

fn readable(file: &impl AsFd, deadline: Deadline, end: &EndSignal) -> Result<(), NotReady> {
    await_readable(file, deadline, end).map_err(|error| match error {
        NothingToRead::Timeout => NotReady::Timeout(deadline.limit()),
        NothingToRead::Ended(end) => NotReady::Ended(end),
        NothingToRead::System(error) => NotReady::Read(error),
    })
}

/// Reads up to a newline, the end, or the longest line there is.
fn read_line(stream: &mut UnixStream, deadline: Deadline, end: &EndSignal) -> Result<Vec<u8>, NotReady> {
    let mut line = Vec::with_capacity(MAX_READY_LINE);
    while line.len() < MAX_READY_LINE && line.last() != Some(&b'\n') {
        readable(stream, deadline, end)?;
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

#[cfg(test)]
#[path = "ready_test.rs"]
mod tests;
