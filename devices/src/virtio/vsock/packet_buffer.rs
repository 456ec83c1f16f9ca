//! A packet in the guest's buffers: header and payload, in any division into descriptors.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bellows_memory::GuestMemory;
use vm_memory::{ByteValued as _, GuestAddress, VolatileSlice};

use super::packet::{HEADER_BYTES, Header, VirtioVsockHdr};
use crate::socket;
use crate::virtio::chain::{Chain, Defect, Segments};

/// Pieces for one system call.
const BATCH: usize = 16;

/// Why a chain is not a packet or a buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// Some of the chain is for the other direction.
    #[error("bytes at {:#x} are for the wrong direction", .0.0)]
    Direction(GuestAddress),
    /// Some of the chain is outside guest memory.
    #[error("a chain of {0} bytes is not all in guest memory")]
    OutsideMemory(u64),
    /// The chain breaks a rule.
    #[error(transparent)]
    Chain(Defect),
    /// The chain has no room for a packet's header.
    #[error("a chain of {0} bytes cannot hold a packet header")]
    NoHeader(u64),
}

/// A chain that holds a packet or has room for one: all of it in guest memory, for one direction. Of a truncated chain, the
/// part before the defect counts.
pub struct PacketBuffer<'a> {
    segments: &'a Segments,
    memory: &'a GuestMemory,
}

impl<'a> PacketBuffer<'a> {
    /// The packet of the guest in `chain`.
    ///
    /// # Errors
    /// The chain does not hold a packet.
    pub fn to_read(chain: &'a Chain, memory: &'a GuestMemory) -> Result<Self, Malformed> {
        Self::new(chain, &chain.readable, &chain.writable, memory)
    }

    /// The room for a packet to the guest in `chain`.
    ///
    /// # Errors
    /// The chain has no room.
    pub fn to_write(chain: &'a Chain, memory: &'a GuestMemory) -> Result<Self, Malformed> {
        Self::new(chain, &chain.writable, &chain.readable, memory)
    }

    fn new(
        chain: &Chain,
        segments: &'a Segments,
        others: &Segments,
        memory: &'a GuestMemory,
    ) -> Result<Self, Malformed> {
        if let Some(defect @ Defect::TooLong(_)) = chain.defect() {
            return Err(Malformed::Chain(defect));
        }
        if let Some(other) = others.first() {
            return Err(Malformed::Direction(other.address));
        }
        if !segments.are_in(memory) {
            return Err(Malformed::OutsideMemory(segments.bytes()));
        }
        if segments.bytes() < HEADER_BYTES as u64 {
            return Err(Malformed::NoHeader(segments.bytes()));
        }
        Ok(Self { segments, memory })
    }

    /// Bytes after the header.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        usize::try_from(self.segments.bytes()).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES)
    }

    /// The packet's header, read once.
    #[must_use]
    pub fn read_header(&self) -> Header {
        // All of it is in memory, as checked before.
        Header::from(self.segments.read_obj::<VirtioVsockHdr>(self.memory).unwrap_or_default())
    }

    /// Writes the packet's header.
    pub fn write_header(&self, header: &Header) {
        self.segments.write(self.memory, 0, VirtioVsockHdr::from(*header).as_slice());
    }

    /// Copies the payload from `offset` on to `to`, which is no longer than the payload.
    pub fn copy_payload(&self, offset: usize, to: &mut [u8]) {
        let mut done = 0;
        for slice in self.payload(offset, to.len()) {
            done += slice.copy_to(&mut to[done..]);
        }
    }

    /// Writes `len` bytes of the payload from `offset` on to `stream`, as far as it takes them: bytes written.
    ///
    /// # Errors
    /// See [`socket::send`].
    pub fn send_payload(&self, stream: &UnixStream, offset: usize, len: usize) -> io::Result<usize> {
        let (mut iovecs, used) = self.iovecs(offset, len);
        // SAFETY: each of the first `used` entries is the memory of a slice, which is mapped while the borrowed snapshot
        // of guest memory lives. The guest may change it meanwhile; the kernel copies whatever it finds.
        unsafe { socket::send_vectored(stream.as_raw_fd(), &mut iovecs[..used]) }
    }

    /// Reads up to `limit` bytes from `stream` to the place of the payload: bytes read, 0 at the end of file.
    ///
    /// # Errors
    /// See [`socket::receive`].
    pub fn receive_payload(&self, stream: &UnixStream, limit: usize) -> io::Result<usize> {
        let (mut iovecs, used) = self.iovecs(0, limit);
        // SAFETY: as in `send_payload`; and all accesses to guest memory are volatile or by the kernel, so no reference
        // to these bytes exists.
        unsafe { socket::receive_vectored(stream.as_raw_fd(), &mut iovecs[..used]) }
    }

    fn iovecs(&self, offset: usize, limit: usize) -> ([libc::iovec; BATCH], usize) {
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut used = 0;
        for (iovec, slice) in iovecs.iter_mut().zip(self.payload(offset, limit)) {
            *iovec = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
            used += 1;
        }
        (iovecs, used)
    }

    /// Up to `len` bytes of the payload from `offset` on.
    fn payload(&self, offset: usize, len: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.segments.slices(self.memory, (HEADER_BYTES + offset) as u64, len as u64)
    }
}
