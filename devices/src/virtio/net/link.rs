//! The host's end of an interface.

use std::io;
use std::os::fd::BorrowedFd;

use super::pieces::{Room, Source};
use super::wire::feature;

/// A descriptor that takes and gives one packet with each call, behind a [`VirtioNetHdr`](super::wire::VirtioNetHdr) of 12 bytes, and
/// never blocks: a [`Tap`](super::Tap), or what stands for it in tests.
pub trait Link: Send + Sync {
    /// The descriptor, which tells when packets can be read and written.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Sets what the link may leave to the guest.
    ///
    /// # Errors
    /// The system's.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Reads one packet with its header. What `room` has no place for is lost.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none.
    fn read(&self, room: &mut Room<'_>) -> io::Result<usize> {
        room.read_from(self.descriptor())
    }

    /// Writes one packet with its header.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the link takes none now.
    fn write(&self, packet: &Source<'_>) -> io::Result<usize> {
        packet.write_to(self.descriptor())
    }
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

/// Whether `error` means that the link is gone for good: its interface was deleted. A TAP whose interface is merely down answers a
/// write with `EIO`.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENXIO | libc::ENODEV))
}
