//! Requests to the kernel over netlink (`netlink(7)`), and its answers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket,
};

use crate::sys;

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of a `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const ATTRIBUTE_FLAGS: u16 = 0xc000;
/// Most bytes of one answer of the kernel.
const BUFFER: usize = 32 << 10;
/// Longest explanation of the kernel's that is shown, in characters.
const MAX_EXPLANATION: usize = 120;

/// A netlink socket. There is one request at a time.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket in the network namespace of the thread that makes it.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self(socket))
    }

    /// The same with errors that the kernel explains. They have no number then.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn explaining(self) -> io::Result<Self> {
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            sys::set_option(&self.0, libc::SOL_NETLINK, option, 1)?;
        }
        Ok(self)
    }

    /// Sends a request, and passes each answer's content to `see`, up to the final status.
    ///
    /// # Errors
    /// Those of `send(2)` and `recvfrom(2)`; the kernel's answer to the request, with its explanation if it has one.
    pub fn ask(&self, request: &[u8], mut see: impl FnMut(&[u8])) -> io::Result<()> {
        send(self.0.as_raw_fd(), request, MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (count, sender) = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer)?;
            if sender.is_none_or(|sender| sender.pid() != 0) {
                // Not the kernel.
                continue;
            }
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

/// A request: its type, the flags beside `NLM_F_REQUEST`, the parts of its content.
pub fn request(kind: u16, flags: i32, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let length = (HEADER + content.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    // Sequence and port stay zero: there is one request at a time.
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], &content].concat()
}

/// An attribute, with what fills it up to a multiple of four bytes.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_HEADER + value.len();
    let mut bytes = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Type and value of each attribute, up to the first that is malformed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !ATTRIBUTE_FLAGS;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
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
    let error = match answer.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(code) if code < 0 => io::Error::from_raw_os_error(code.saturating_neg()),
        _ => return Ok(()),
    };
    match explanation(answer) {
        Some(text) => Err(io::Error::new(error.kind(), format!("{error}: {text}"))),
        None => Err(error),
    }
}

/// What the kernel says beside an error number (`NLMSGERR_ATTR_MSG` in linux/netlink.h), after the request's header.
fn explanation(answer: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    let extended = attributes(answer.get(4 + HEADER..)?);
    let (_, text) = extended.into_iter().find(|(kind, _)| *kind == MESSAGE)?;
    let text = String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned();
    Some(text.chars().filter(|character| !character.is_control()).take(MAX_EXPLANATION).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let message = request(21, libc::NLM_F_ACK, &[&[10, 6, 0, 0], &attribute(3, b"lo\0")]);
        let (kind, content, rest) = first_message(&message).unwrap();
        assert_eq!((message.len(), kind, rest), (28, 21, &[][..]));
        assert_eq!(message[6..8], [5, 0], "a request that is to be answered");
        assert_eq!(content[..4], [10, 6, 0, 0]);
        assert_eq!(content[4..], [7, 0, 3, 0, b'l', b'o', 0, 0]);
        assert_eq!(attributes(&content[4..]).collect::<Vec<_>>(), [(3, &b"lo\0"[..])]);
    }

    #[test]
    fn malformed_bytes_are_no_message_and_no_attribute() {
        for nonsense in [&[][..], &[16, 0, 0, 0], &[0; 16], &[15; 16], &[255; 64]] {
            assert!(first_message(nonsense).is_none(), "{nonsense:?}");
        }
        for nonsense in [&[][..], &[3, 0, 1, 0], &[8, 0, 1, 0], &[0; 8], &[255; 8]] {
            assert_eq!(attributes(nonsense).count(), 0, "{nonsense:?}");
        }
    }

    #[test]
    fn an_error_comes_with_the_kernels_words() {
        status(&0_i32.to_ne_bytes()).unwrap();
        let code = (-libc::EOPNOTSUPP).to_ne_bytes();
        let header = [0; HEADER];
        let plain = status(&[&code[..], &header].concat()).unwrap_err();
        assert_eq!(plain.raw_os_error(), Some(libc::EOPNOTSUPP));
        let explained = [&code[..], &header, &attribute(1, b"Not\n today\0")].concat();
        let error = status(&explained).unwrap_err().to_string();
        assert!(error.ends_with(": Not today") && error.contains("95"), "{error}");
    }
}
