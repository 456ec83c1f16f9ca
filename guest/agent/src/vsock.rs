//! The agent's vsock sockets.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bellows_protocol::READY_PORT;
use bellows_protocol::ready::{BootTimes, ready_line};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, getpeername, socket};
use nix::time::{ClockId, clock_gettime};

/// Tells the host that the agent, which began at `init`, can be called: sends one line, then closes the stream.
///
/// # Errors
/// Those of `socket(2)`, `connect(2)` and `write(2)`: for example without a vsock device or a listener.
pub fn signal_ready(init: Duration) -> io::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(nix::libc::VMADDR_CID_HOST, READY_PORT))?;
    // Any stream socket will do for read, write and shutdown.
    let mut stream = UnixStream::from(socket);
    stream.write_all(ready_line(BootTimes { init, ready: kernel_clock() }).as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

/// Checks that it is the host that has connected: others in the guest may have vsock, and a kernel with a loopback for it leads
/// them here.
///
/// # Errors
/// Another peer has; the error names it. Those of `getpeername(2)`.
pub fn check_host(connection: &impl AsFd) -> io::Result<()> {
    let peer = getpeername::<VsockAddr>(connection.as_fd().as_raw_fd())?;
    if is_host(peer) { Ok(()) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, peer.to_string())) }
}

fn is_host(peer: VsockAddr) -> bool {
    peer.cid() == libc::VMADDR_CID_HOST
}

/// Time since the kernel's clock started; zero if the kernel does not say.
pub fn kernel_clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_admitted() {
        let port = 40_000;
        assert!(is_host(VsockAddr::new(libc::VMADDR_CID_HOST, port)));
        // The loopback, and the guest itself.
        for cid in [libc::VMADDR_CID_LOCAL, 3] {
            assert!(!is_host(VsockAddr::new(cid, port)), "{cid}");
        }
        let (_here, there) = UnixStream::pair().unwrap();
        assert!(check_host(&there).is_err());
    }
}
