//! The agent's vsock sockets.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bellows_protocol::ready::ready_line;
use bellows_protocol::{PROTOCOL_VERSION, READY_PORT};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Tells the host that the agent can be called: one line, then the stream is closed.
///
/// # Errors
/// Those of `socket(2)`, `connect(2)` and `write(2)`: for one, when there is no vsock device or nobody listens.
pub fn signal_ready() -> io::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(nix::libc::VMADDR_CID_HOST, READY_PORT))?;
    // Any stream socket will do for read, write and shutdown.
    let mut stream = UnixStream::from(socket);
    stream.write_all(ready_line(PROTOCOL_VERSION).as_bytes())?;
    stream.shutdown(Shutdown::Write)
}
