//! A process's standard streams: pipes or a terminal, whose other ends wait here until the monitor connects.
//!
//! Output stays in the pipe until the monitor connects and takes it: a process that writes more waits, and uses no
//! memory beyond the pipe. `relay` carries the bytes.

mod permits;
mod relay;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use bellows_protocol::stream::StreamName;
use bellows_protocol::values::TerminalSize;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::unistd::{Gid, Uid, fchown, pipe2};

pub use self::permits::{Permit, Permits};
use self::relay::Relay;
use crate::error::{AgentError, Result};
use crate::sync::Mutex;
use crate::sys;

/// The kind of a process's standard streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StdioSpec {
    /// Pipes.
    Pipes {
        /// Whether standard input is a pipe, too, instead of `/dev/null`.
        stdin: bool,
    },
    /// A terminal of this size for all three.
    Terminal(TerminalSize),
}

/// The process's ends of its pipes.
#[derive(Debug)]
pub struct ChildPipes {
    /// `None` if standard input is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Our ends of a process's streams. Dropping them ends them.
#[derive(Debug)]
pub struct Streams {
    slots: Mutex<Vec<(StreamName, Slot)>>,
    /// Tells the relays to end.
    stop: Arc<EventFd>,
}

#[derive(Debug)]
enum Slot {
    /// The monitor may connect.
    Free(Arc<OwnedFd>),
    /// It has connected, or it is too late; a terminal can still be resized while it is open.
    Taken(Weak<OwnedFd>),
}

impl Streams {
    /// Pipes that belong to the process's user: a program that opens `/dev/stdout` opens a file with an owner.
    ///
    /// # Errors
    /// No pipe is left.
    pub fn pipes(stdin: bool, uid: u32, gid: u32) -> io::Result<(Self, ChildPipes)> {
        let mut slots = Vec::new();
        let mut pipe = |name| {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            let (ours, theirs) = if name == StreamName::Stdin { (write, read) } else { (read, write) };
            set_nonblocking(&ours)?;
            slots.push((name, Slot::Free(Arc::new(ours))));
            Ok::<_, io::Error>(theirs)
        };
        let child = ChildPipes {
            stdin: stdin.then(|| pipe(StreamName::Stdin)).transpose()?,
            stdout: pipe(StreamName::Stdout)?,
            stderr: pipe(StreamName::Stderr)?,
        };
        Ok((Self::new(slots)?, child))
    }

    /// A terminal, by its master.
    ///
    /// # Errors
    /// It is not a terminal, or no descriptor is left.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        // It comes from within the container. `Documentation/admin-guide/devices.txt`: /dev/ptmx.
        const PTMX: (u64, u64) = (5, 2);
        let file = fstat(&master)?;
        let kind = SFlag::from_bits_truncate(file.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFCHR || (major(file.st_rdev), minor(file.st_rdev)) != PTMX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the descriptor received is not a terminal"));
        }
        set_nonblocking(&master)?;
        Ok(Self::new(vec![(StreamName::Terminal, Slot::Free(Arc::new(master)))])?)
    }

    fn new(slots: Vec<(StreamName, Slot)>) -> nix::Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { slots: Mutex::new(slots), stop: Arc::new(stop) })
    }

    /// Makes `connection` the stream `name` of a process, and confirms it there. `ended` becomes readable at the end of
    /// the process.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::System`].
    pub fn connect(
        &self,
        name: StreamName,
        connection: &UnixStream,
        ended: &Arc<OwnedFd>,
        permit: Permit,
    ) -> Result<()> {
        let mut slots = self.slots.lock();
        let Some((_, slot)) = slots.iter_mut().find(|(slot, _)| *slot == name) else {
            return Err(AgentError::Unknown { kind: "stream", name: name.to_string() });
        };
        let Slot::Free(end) = slot else {
            return Err(AgentError::InUse { what: format!("stream {name}"), by: "another connection".into() });
        };
        let relay = Relay {
            connection: connection.try_clone().map_err(AgentError::system("dup"))?,
            end: Arc::clone(end),
            stop: Arc::clone(&self.stop),
            ended: Arc::clone(ended),
            permit,
        };
        let taken = Slot::Taken(Arc::downgrade(end));
        relay.start(name).map_err(AgentError::system("clone"))?;
        *slot = taken;
        Ok(())
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// [`AgentError::Unknown`] if it has no terminal, or a closed one; [`AgentError::System`].
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let slots = self.slots.lock();
        let terminal = slots.iter().find_map(|slot| match slot {
            (StreamName::Terminal, Slot::Free(end)) => Some(Arc::clone(end)),
            (StreamName::Terminal, Slot::Taken(end)) => end.upgrade(),
            _ => None,
        });
        let none = || AgentError::Unknown { kind: "stream", name: StreamName::Terminal.to_string() };
        sys::set_size(&*terminal.ok_or_else(none)?, size).map_err(AgentError::system("ioctl"))
    }

    /// Ends all streams, whether the monitor has read them or not.
    pub fn close(&self) {
        for (_, slot) in &mut *self.slots.lock() {
            if let Slot::Free(end) = slot {
                *slot = Slot::Taken(Arc::downgrade(end));
            }
        }
        // Cannot fail: its count is far from its limit.
        let _ = self.stop.write(1);
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.close();
    }
}

/// Sets `O_NONBLOCK` for every process that has this end.
fn set_nonblocking(end: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
    fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
