//! Destroys the sockets that an instance leaves behind.
//!
//! A TCP socket with unsent data outlives its last process, for days if its options say so, and so do the pages of a
//! partition that hold the data. The kernel destroys a socket when asked to (`sock_diag(7)`, `linux/inet_diag.h`), if it is
//! built with `INET_DIAG_DESTROY`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockProtocol};

use crate::netlink::{self, Socket};
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

/// A `struct inet_diag_sockid`; in a `struct inet_diag_msg` it comes after four bytes.
type SocketId = [u8; 48];
const ID_OFFSET: usize = 4;
/// Bytes of a `struct inet_diag_msg`, before its attributes.
const MESSAGE: usize = 72;
/// `INET_DIAG_CGROUP_ID` in linux/inet_diag.h
const CGROUP_ID: u16 = 21;

/// The sockets of a network namespace, which is kept until they are destroyed, or those of them that a cgroup's tasks have made.
#[derive(Debug)]
pub struct Sockets {
    network: Mutex<Option<OwnedFd>>,
    /// The number of the cgroup.
    owner: Option<u64>,
}

impl Sockets {
    /// All of `network`.
    pub fn of(network: OwnedFd) -> Self {
        Self { network: Mutex::new(Some(network)), owner: None }
    }

    /// Those of `network` that tasks of the cgroup with this folder have made.
    ///
    /// # Errors
    /// Those of `stat(2)`.
    pub fn of_cgroup(network: OwnedFd, cgroup: &Path) -> io::Result<Self> {
        // A cgroup's number is that of its inode.
        Ok(Self { owner: Some(std::fs::metadata(cgroup)?.ino()), ..Self::of(network) })
    }

    /// Destroys the TCP sockets, whose processes have ended, and drops the namespace. After an error another call tries again.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the kernel cannot; [`io::ErrorKind::TimedOut`] if sockets stay nevertheless; those
    /// of `setns(2)`, `socket(2)` and the calls on the socket.
    pub fn destroy(&self) -> io::Result<()> {
        let mut network = self.network.lock();
        network.as_ref().map_or(Ok(()), |network| destroy_all(network, self.owner))?;
        *network = None;
        Ok(())
    }
}

fn destroy_all(network: &OwnedFd, owner: Option<u64>) -> io::Result<()> {
    let Some(diagnosis) = Diagnosis::of(network)? else { return Ok(()) };
    destroy_all_of(&diagnosis, owner).map_err(|error| match error.raw_os_error() {
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

fn destroy_all_of(diagnosis: &Diagnosis, owner: Option<u64>) -> io::Result<()> {
    for _ in 0..ROUNDS {
        let mut any = false;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for id in diagnosis.sockets(family, owner)? {
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
struct Diagnosis(Socket);

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
            Socket::open(SockProtocol::NetlinkSockDiag).map(Some)
        };
        let made = thread::scope(|scope| {
            let maker = thread::Builder::new().name("setns".into()).spawn_scoped(scope, make)?;
            maker.join().map_err(|_| io::Error::other("the thread panicked"))
        })?;
        Ok(made?.map(Self))
    }

    fn sockets(&self, family: AddressFamily, owner: Option<u64>) -> io::Result<Vec<SocketId>> {
        let mut ids = Vec::new();
        let request = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, &[0; size_of::<SocketId>()]);
        let end = self.0.ask(&request, |answer| {
            if owner.is_none_or(|owner| cgroup_of(answer) == Some(owner)) {
                ids.extend(answer.get(ID_OFFSET..).and_then(<[u8]>::first_chunk));
            }
        });
        end.map(|()| ids)
    }

    /// A socket that is gone already, or closing, counts as destroyed.
    fn destroy(&self, family: AddressFamily, id: &SocketId) -> io::Result<()> {
        match self.0.ask(&request(SOCK_DESTROY, libc::NLM_F_ACK, family, id), |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "socket not destroyed");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// A request with a `struct inet_diag_req_v2`.
fn request(kind: u16, flags: i32, family: AddressFamily, id: &SocketId) -> Vec<u8> {
    netlink::request(kind, flags, &[&[family as u8, libc::IPPROTO_TCP as u8, 0, 0], &STATES.to_ne_bytes(), id])
}

/// The cgroup of a socket that a `struct inet_diag_msg` with its attributes is about; a kernel that does not account sockets to
/// cgroups says none.
fn cgroup_of(answer: &[u8]) -> Option<u64> {
    let (_, id) = netlink::attributes(answer.get(MESSAGE..)?).find(|(kind, _)| *kind == CGROUP_ID)?;
    id.first_chunk().map(|id| u64::from_ne_bytes(*id))
}

#[cfg(test)]
#[path = "sockets_test.rs"]
mod tests;
