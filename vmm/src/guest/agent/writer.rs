//! Writes whole frames, each by its deadline, to a peer that may read as slowly as it likes.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::deadline::{Turn, Turns};
use crate::poll::poll;

/// Why a frame is not out.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Time was up before anything of it was out: the stream is as it was.
    NotBegun,
    /// Part of it may be out: nothing that comes after it would be understood.
    Broken(io::Error),
}

/// A stream that threads take turns to write.
pub(super) struct Writer {
    stream: UnixStream,
    turns: Turns,
}

impl Writer {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, turns: Turns::default() }
    }

    /// Waits for the turn to write; `None` if it does not come before `deadline`.
    pub(super) fn turn(&self, deadline: Instant) -> Option<Turn<'_>> {
        self.turns.take(deadline.saturating_duration_since(Instant::now()))
    }

    /// Writes a frame before `deadline`, in a turn of one's own.
    pub(super) fn write(&self, _turn: &Turn<'_>, frame: &[u8], deadline: Instant) -> Result<(), WriteError> {
        let mut rest = frame;
        while !rest.is_empty() {
            match send(&self.stream, rest, deadline) {
                Ok(bytes) => rest = rest.get(bytes..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && rest.len() == frame.len() => {
                    return Err(WriteError::NotBegun);
                }
                Err(error) => return Err(WriteError::Broken(error)),
            }
        }
        Ok(())
    }

    /// Ends the stream, and with it a write in progress.
    pub(super) fn shutdown(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Writes what there is space for, once there is some. The stream itself blocks, for its reader.
fn send(stream: &UnixStream, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the pointer and the length are those of `bytes`, which is only read.
        let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => await_space(stream, deadline)?,
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// Waits until there may be space, or the stream has ended.
fn await_space(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest reads too slowly"));
    }
    poll([(stream.as_raw_fd(), libc::POLLOUT)], Some(left)).map(drop)
}
