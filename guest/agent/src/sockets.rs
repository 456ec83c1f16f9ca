//! Destroys the sockets that an instance leaves behind.
//!
//! A TCP socket with unsent data outlives its last process, for days if its options say so, and so do the pages of a
//! partition that hold the data. The kernel destroys a socket when asked to (`sock_diag(7)`, `linux/inet_diag.h`), if it is
//! built with `INET_DIAG_DESTROY`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::sync::Mutex;

/// Most looks for sockets before the rest is left alone.
const ROUNDS: u32 = 10;
/// Time between two looks: the kernel closes sockets in transit between processes with some delay.
const PAUSE: Duration = Duration::from_millis(10);

// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// All states except that of a socket without data to send, which only keeps its address for a minute.
const STATES: u32 = !(1 << TCP_TIME_WAIT);
/// net/tcp_states.h
const TCP_TIME_WAIT: u32 = 6;

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// A `struct inet_diag_sockid`; in a `struct inet_diag_msg` it comes after four bytes.
type SocketId = [u8; 48];
const ID_OFFSET: usize = 4;
/// Most bytes of one answer of the kernel.
const BUFFER: usize = 32 << 10;

/// The sockets of a network namespace, which is kept until they are destroyed.
#[derive(Debug)]
pub struct Sockets(Mutex<Option<OwnedFd>>);

impl Sockets {
    /// Those of `network`.
    pub fn of(network: OwnedFd) -> Self {
        Self(Mutex::new(Some(network)))
    }

    /// Destroys the TCP sockets, whose processes have ended, and drops the namespace. After an error another call tries again.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the kernel cannot; [`io::ErrorKind::TimedOut`] if sockets stay nevertheless; those
    /// of `setns(2)`, `socket(2)` and the calls on the socket.
    pub fn destroy(&self) -> io::Result<()> {
        let mut network = self.0.lock();
        network.as_ref().map_or(Ok(()), destroy_all)?;
        *network = None;
        Ok(())
    }
}

fn destroy_all(network: &OwnedFd) -> io::Result<()> {
    let Some(diagnosis) = Diagnosis::of(network)? else { return Ok(()) };
    destroy_all_of(&diagnosis).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => io::ErrorKind::Unsupported.into(),
        _ => error,
    })
}

/// Whether a text of `/proc/net/sockstat` or `sockstat6` counts TCP sockets. A socket that only keeps its address is not counted.
fn counts_any(text: &str) -> bool {
    let mut words = text.lines().filter(|line| line.starts_with("TCP")).flat_map(|line| {
        let mut words = line.split_whitespace();
        words.by_ref().find(|word| *word == "inuse");
        words.next()
    });
    // Without a number nothing is known.
    !matches!((words.next(), words.next()), (Some("0"), None))
}

fn destroy_all_of(diagnosis: &Diagnosis) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let mut any = false;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for id in diagnosis.sockets(family)? {
                diagnosis.destroy(family, &id)?;
                any = true;
            }
        }
        if !any {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A netlink socket in a network namespace.
struct Diagnosis(OwnedFd);

impl Diagnosis {
    /// A socket belongs to the namespace of the thread that makes it. `None` if that namespace has no TCP socket: the kernel
    /// looks through a table for all namespaces to list them, which takes longer than all else here.
    fn of(network: impl AsFd) -> io::Result<Option<Self>> {
        let network = network.as_fd();
        let make = || {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            if ["sockstat", "sockstat6"].into_iter().all(|name| read(name).is_ok_and(|text| !counts_any(&text))) {
                return Ok(None);
            }
            let protocol = SockProtocol::NetlinkSockDiag;
            socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).map(Some)
        };
        let made = thread::scope(|scope| {
            let maker = thread::Builder::new().name("setns".into()).spawn_scoped(scope, make)?;
            maker.join().map_err(|_| io::Error::other("the thread panicked"))
        })?;
        Ok(made?.map(Self))
    }

    fn sockets(&self, family: AddressFamily) -> io::Result<Vec<SocketId>> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        self.send(&request(SOCK_DIAG_BY_FAMILY, flags, family, &[0; size_of::<SocketId>()]))?;
        let mut ids = Vec::new();
        let end = self.receive(|answer| ids.extend(answer.get(ID_OFFSET..).and_then(<[u8]>::first_chunk)));
        end.map(|()| ids)
    }

    /// A socket that is gone already, or closing, counts as destroyed.
    fn destroy(&self, family: AddressFamily, id: &SocketId) -> io::Result<()> {
        self.send(&request(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family, id))?;
        match self.receive(|_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "socket not destroyed");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), request, MsgFlags::empty())?;
        Ok(())
    }

    /// Passes each answer to `see`, up to the final status.
    fn receive(&self, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut messages = &buffer[..count];
            while let Some((kind, answer, rest)) = first_message(messages) {
                match i32::from(kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return status(answer),
                    _ => see(answer),
                }
                messages = rest;
            }
        }
    }
}

/// A `struct nlmsghdr` with a `struct inet_diag_req_v2`.
fn request(kind: u16, flags: i32, family: AddressFamily, id: &SocketId) -> Vec<u8> {
    let body = [&[family as u8, libc::IPPROTO_TCP as u8, 0, 0][..], &STATES.to_ne_bytes(), id].concat();
    let length = (HEADER + body.len()) as u32;
    // Sequence and port stay zero: there is one request at a time.
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags as u16).to_ne_bytes(), &[0; 8], &body].concat()
}

/// Kind and content of the first of some netlink messages, and those that follow.
fn first_message(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*messages.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let content = messages.get(HEADER..length)?;
    // Each message starts at a multiple of four.
    let rest = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, content, rest))
}

/// The status in the last of some answers: zero, or a negated error number.
fn status(answer: &[u8]) -> io::Result<()> {
    match answer.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "sockets_test.rs"]
mod tests;
