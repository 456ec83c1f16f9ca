//! Descriptors sent over Unix sockets, between the agent, its helpers and a process that is about to execute a command.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends `descriptor` over `socket`, with a byte.
///
/// # Errors
/// Those of `sendmsg(2)`.
pub(super) fn send(socket: &impl AsFd, descriptor: &impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(b"d")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes the descriptor that has been sent over `socket`.
///
/// # Errors
/// No descriptor came; those of `recvmsg(2)`.
pub(super) fn receive(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let descriptor = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no descriptor came"))?;
    // SAFETY: the kernel has made the descriptor for us alone; there was room for one.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_arrives() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&theirs, &write).unwrap();
        drop(write);
        File::from(receive(&ours).unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        theirs.write_all(b"d").unwrap();
        assert_eq!(receive(&ours).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
