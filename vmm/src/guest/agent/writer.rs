//! Writes whole frames, each by its deadline, to a peer that may read as slowly as it likes.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{self, MsgFlags};

use crate::deadline::{Turn, Turns};
use crate::poll::poll;

/// Why a frame was not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Time was up before the first byte: the stream is intact.
    NotBegun,
    /// Part of it may be written: the peer would misread anything after it.
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

    /// Writes a frame before `deadline`, in a turn of its own.
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

/// Waits for space and fills it. The stream itself stays blocking, for its reader.
fn send(stream: &UnixStream, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
    loop {
        match socket::send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EAGAIN) => await_space(stream, deadline)?,
            Err(Errno::EINTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Waits until there may be space, or the stream has ended.
fn await_space(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest reads too slowly"));
    }
    poll([(stream.as_fd(), PollFlags::POLLOUT)], Some(left)).map(drop)
}
