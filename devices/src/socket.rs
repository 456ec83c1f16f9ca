//! System calls on Unix stream sockets that never block and never raise a signal.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::retry::retry;

const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Connects to the socket at `path` without waiting for a listener with a full backlog.
///
/// # Errors
/// Nothing listens there, or its backlog is full.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: an all-zero `sockaddr_un` is a valid value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made; nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is a valid `sockaddr_un` of `len` bytes, its path ended by a zero.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

/// Writes as much of `bytes` as `stream` takes: bytes written.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if the socket is full; [`io::ErrorKind::BrokenPipe`] if its reader is gone.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are of one borrowed slice, which the kernel only reads.
    retry(|| unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), SEND_FLAGS) })
}

/// Reads from `stream`: bytes read, 0 at the end of file.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if no data has arrived.
pub(crate) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, bytes, 0)
}

/// Like [`receive`], but leaves the bytes in the socket.
///
/// # Errors
/// As [`receive`].
pub(crate) fn peek(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<usize> {
    receive_with(stream, bytes, libc::MSG_PEEK)
}

fn receive_with(stream: &UnixStream, bytes: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length are of one exclusively borrowed slice.
    retry(|| unsafe { libc::recv(stream.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) })
}

/// Like [`send`], from several places.
///
/// # Errors
/// As [`send`].
///
/// # Safety
/// Every entry of `iovecs` is memory that may be read.
pub(crate) unsafe fn send_vectored(fd: RawFd, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(iovecs);
    // SAFETY: the message has no address and no control data; the caller guarantees its entries.
    retry(|| unsafe { libc::sendmsg(fd, &raw const message, SEND_FLAGS) })
}

/// Like [`receive`], to several places.
///
/// # Errors
/// As [`receive`].
///
/// # Safety
/// Every entry of `iovecs` is memory that may be written and that no reference points to.
pub(crate) unsafe fn receive_vectored(fd: RawFd, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
    let mut message = message(iovecs);
    // SAFETY: the message has no address and no control data; its entries are the caller's promise.
    retry(|| unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) })
}

fn message(iovecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: an all-zero `msghdr` is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len() as _;
    message
}

/// Another number of the descriptor `fd` of this process.
///
/// # Errors
/// It is not open, or the process has no descriptor left.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Family and type of a socket.
///
/// # Errors
/// It is not a socket.
pub(crate) fn kind(socket: &OwnedFd) -> io::Result<(libc::c_int, libc::c_int)> {
    let option = |name| {
        let mut value: libc::c_int = 0;
        let mut len = mem::size_of_val(&value) as libc::socklen_t;
        let (to, size) = ((&raw mut value).cast(), &raw mut len);
        // SAFETY: the kernel writes at most `len` bytes to `value`, and to `len`; both live through the call.
        match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, to, size) } {
            0 => Ok(value),
            _ => Err(io::Error::last_os_error()),
        }
    };
    Ok((option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?))
}
