//! Descriptors sent over Unix sockets, between the agent, its helper and a process that is about to execute a command.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bellows_protocol::volume::MAX_VOLUMES;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors of one message: those of every order, a container's scratch disk, and its volumes.
const MAX_DESCRIPTORS: usize = 8 + 1 + MAX_VOLUMES;

/// Sends `text`, which is not empty, and up to [`MAX_DESCRIPTORS`] descriptors over `socket`.
///
/// # Errors
/// Those of `sendmsg(2)`.
pub(super) fn send(socket: &impl AsFd, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives text and descriptors over `socket`; returns how much text, 0 at the end.
///
/// # Errors
/// Those of `recvmsg(2)`; EAGAIN where nothing is there and `flags` or the socket say not to wait.
pub(super) fn receive(socket: &impl AsFd, text: &mut [u8], flags: MsgFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut buffers = [IoSliceMut::new(text)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let numbers = message.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // SAFETY: the kernel has made each descriptor for us alone; there was room for all of a message.
    let descriptors = numbers.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
    Ok((message.bytes, descriptors))
}

/// Takes the one descriptor that has been sent over `socket`, without waiting.
///
/// # Errors
/// No descriptor came; those of `recvmsg(2)`.
pub(super) fn receive_one(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let (_, descriptors) = receive(socket, &mut [0], MsgFlags::MSG_DONTWAIT)?;
    descriptors.into_iter().next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no descriptor came"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive_one(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (read, write) = nix::unistd::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        send(&theirs, b"two", &[write.as_fd(), null.as_fd()]).unwrap();
        drop(write);
        let mut text = [0; 8];
        let (count, descriptors) = receive(&ours, &mut text, MsgFlags::empty()).unwrap();
        let [write, received] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        assert_eq!(&text[..count], b"two");
        File::from(write).write_all(b"x").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let inode = |file: &dyn std::os::fd::AsRawFd| {
            std::fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .map(|data| std::os::unix::fs::MetadataExt::rdev(&data))
        };
        assert_eq!(inode(&received).unwrap(), inode(&null).unwrap());
        theirs.write_all(b"d").unwrap();
        assert_eq!(receive_one(&ours).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(theirs);
        assert_eq!(receive(&ours, &mut [0], MsgFlags::empty()).unwrap().0, 0);
    }
}
