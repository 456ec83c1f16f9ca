//! The host's end of an interface.

use std::io;
use std::os::fd::BorrowedFd;

use super::pieces::{Room, Source};
use super::wire::{VirtioNetHdr, feature};

/// What takes and gives packets, and never blocks: a [`Tap`](super::Tap), a [`StreamLink`](super::StreamLink), or what stands for them
/// in tests. It belongs to one pair of queues of one device, whose thread makes all calls while it is active.
pub trait Link: Send + Sync {
    /// The descriptor, which tells when packets can be read and written.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Feature bits of the offloads that it knows: of [`feature::OFFLOADS`]. What is not among them is complete in every packet.
    fn offloads(&self) -> u64;

    /// Sets what the link may leave to the guest, of what it knows.
    ///
    /// # Errors
    /// The system's.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Has the other side use this link, or not, where it is one of several to the same interface. A packet that the other side has yet to
    /// be read from is lost then, and no other call is made until the link is used again. One that is alone always is.
    ///
    /// # Errors
    /// The system's; `is_gone` tells whether there is nothing left to use.
    fn set_used(&self, _used: bool) -> io::Result<()> {
        Ok(())
    }

    /// Reads one packet: its bytes and those of a header, which is as large as [`VirtioNetHdr`]. What `room` has no place for is lost.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; `is_gone` tells whether there will never be one.
    fn read(&self, header: &mut VirtioNetHdr, room: &mut Room<'_>) -> io::Result<usize>;

    /// Writes one packet, all of it or, with an error, nothing.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the link takes none now; `is_gone` tells whether it never will.
    fn write(&self, header: &VirtioNetHdr, frame: &mut Source<'_>) -> io::Result<Written>;

    /// Goes on with what was [`Written::Partly`], now that the descriptor may be written to.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if some is still left; `is_gone` tells whether it always will be.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What became of a packet that a link has taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// The other side has it.
    Wholly,
    /// The link keeps the rest, and takes nothing else until [`Link::flush`] has written that.
    Partly,
}

/// What the guest does itself with packets that it receives.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offloads {
    /// It completes checksums.
    pub checksum: bool,
    /// It takes segments of TCP over IPv4 put together.
    pub tcp4: bool,
    /// It takes segments of TCP over IPv6 put together.
    pub tcp6: bool,
}

impl Offloads {
    /// Those of a driver that accepted `features`.
    #[must_use]
    pub const fn of(features: u64) -> Self {
        let features = feature::effective(features);
        Self {
            checksum: features & feature::GUEST_CSUM != 0,
            tcp4: features & feature::GUEST_TSO4 != 0,
            tcp6: features & feature::GUEST_TSO6 != 0,
        }
    }
}

/// Whether `error` means that the link is gone for good: its interface was deleted, or its other side has hung up or lost its way. A
/// TAP whose interface is merely down answers a write with `EIO`.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, UnexpectedEof};
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENXIO | libc::ENODEV))
        || matches!(error.kind(), BrokenPipe | ConnectionReset | InvalidData | UnexpectedEof)
}

/// Reads a packet from a descriptor that gives one with each call, behind its header.
///
/// # Errors
/// As [`Link::read`].
pub(super) fn read_whole(from: BorrowedFd<'_>, header: &mut VirtioNetHdr, room: &mut Room<'_>) -> io::Result<usize> {
    use vm_memory::ByteValued as _;
    match room.read_from(header.as_mut_slice(), from)? {
        // Something like a closed socket.
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        bytes => Ok(bytes),
    }
}

/// Writes a packet to a descriptor that takes one with each call, behind its header.
///
/// # Errors
/// As [`Link::write`].
pub(super) fn write_whole(to: BorrowedFd<'_>, header: &VirtioNetHdr, frame: &mut Source<'_>) -> io::Result<Written> {
    use vm_memory::ByteValued as _;
    frame.write_to(header.as_slice(), to).map(|_| Written::Wholly)
}
