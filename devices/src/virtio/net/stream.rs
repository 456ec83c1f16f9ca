//! A stream socket of the host, with a program such as passt at its other end, which does the network.
//!
//! A packet leaves in one call, out of the guest's memory. What the socket does not take of it is copied, so that the guest has its
//! buffers back and cannot end the packet in the middle. Packets come by the buffer full, and are copied to the guest.
//!
//! Both directions keep what they have begun here, not in the handler of an active device: the other side counts bytes, and knows
//! nothing of a device that is paused or reset. It is not in the device's state: at a stream socket of another process, where that
//! may be restored, the other side begins anew, and the packets are lost as any may be.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bellows_memory::sync::Mutex;

use super::framing::{Incoming, Outgoing, PREFIX_BYTES};
use super::link::{Link, Offloads, Written};
use super::pieces::{Room, Source};
use super::wire::{HEADER_BYTES, VirtioNetHdr};
use crate::socket;

/// A connected stream socket that carries packets behind their lengths.
#[derive(Debug)]
pub struct StreamLink {
    socket: UnixStream,
    /// The locks are only ever taken by the device's thread.
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nothing listens there.
    #[error("cannot connect to `{path}`: expected a Unix stream socket that a program such as passt listens at")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("descriptor {fd} cannot be used")]
    Descriptor {
        /// The descriptor.
        fd: RawFd,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The descriptor is something else.
    #[error("descriptor {fd} is {found}: expected a Unix stream socket that is connected")]
    NotStream {
        /// The descriptor.
        fd: RawFd,
        /// What it is.
        found: &'static str,
    },
}

impl StreamLink {
    /// Connects to the socket at `path`, without waiting for one that listens and does not accept.
    ///
    /// # Errors
    /// Nothing listens there.
    pub fn connect(path: &Path) -> Result<Self, StreamError> {
        let connected = socket::connect(path);
        connected.map(Self::new).map_err(|source| StreamError::Connect { path: path.to_owned(), source })
    }

    /// The socket behind descriptor `fd` of this process, which stays open.
    ///
    /// # Errors
    /// It is no connected Unix stream socket.
    pub fn from_descriptor(fd: RawFd) -> Result<Self, StreamError> {
        let copy = socket::duplicate(fd).map_err(|source| StreamError::Descriptor { fd, source })?;
        match socket::kind(&copy) {
            Err(_) => Err(StreamError::NotStream { fd, found: "not a socket" }),
            Ok((libc::AF_UNIX, libc::SOCK_STREAM)) => match UnixStream::from(copy) {
                socket if socket.peer_addr().is_ok() => Ok(Self::new(socket)),
                _ => Err(StreamError::NotStream { fd, found: "not connected" }),
            },
            Ok((libc::AF_UNIX, _)) => Err(StreamError::NotStream { fd, found: "a Unix socket of another type" }),
            Ok(_) => Err(StreamError::NotStream { fd, found: "a socket of another family" }),
        }
    }

    fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: Mutex::default(), outgoing: Mutex::default() }
    }

    /// Writes the rest of a packet, if there is one.
    fn finish(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        while !outgoing.rest().is_empty() {
            let sent = socket::send(&self.socket, outgoing.rest())?;
            outgoing.sent(sent);
        }
        Ok(())
    }
}

impl From<UnixStream> for StreamLink {
    fn from(socket: UnixStream) -> Self {
        Self::new(socket)
    }
}

impl From<OwnedFd> for StreamLink {
    fn from(socket: OwnedFd) -> Self {
        Self::new(socket.into())
    }
}

impl Link for StreamLink {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Nothing says which part of a packet is missing, so none may.
    fn offloads(&self) -> u64 {
        0
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, header: &mut VirtioNetHdr, room: &mut Room<'_>) -> io::Result<usize> {
        let mut incoming = self.incoming.lock();
        loop {
            let next = incoming.take().map_err(|oversized| io::Error::new(io::ErrorKind::InvalidData, oversized))?;
            if let Some(frame) = next {
                *header = VirtioNetHdr::default();
                room.fill(frame);
                return Ok(HEADER_BYTES + frame.len());
            }
            match socket::receive(&self.socket, incoming.room())? {
                0 => return Err(ended(incoming.left())),
                bytes => incoming.came(bytes),
            }
        }
    }

    fn write(&self, _: &VirtioNetHdr, frame: &mut Source<'_>) -> io::Result<Written> {
        let mut outgoing = self.outgoing.lock();
        self.finish(&mut outgoing)?;
        // No packet is that large.
        let bytes = u32::try_from(frame.bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let prefix = bytes.to_be_bytes();
        let sent = frame.send_to(&prefix, &self.socket)?;
        if sent == PREFIX_BYTES + frame.bytes() {
            return Ok(Written::Wholly);
        }
        outgoing.keep(|buffer| {
            let rest = prefix.get(sent..).unwrap_or_default();
            buffer[..rest.len()].copy_from_slice(rest);
            rest.len() + frame.copy_to(sent.saturating_sub(PREFIX_BYTES), &mut buffer[rest.len()..])
        });
        Ok(Written::Partly)
    }

    fn flush(&self) -> io::Result<()> {
        self.finish(&mut self.outgoing.lock())
    }
}

fn ended(left: usize) -> io::Error {
    let text = match left {
        0 => "the other side has closed the stream".to_owned(),
        left => format!("the other side has closed the stream {left} bytes into a packet"),
    };
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
