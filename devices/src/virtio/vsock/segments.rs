//! The guest's buffers: one descriptor chain as a list of pieces of guest memory.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bellows_memory::GuestMemory;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions, VolatileSlice};

use super::packet::{HEADER_BYTES, Header};
use super::socket;

/// Pieces that a chain may have: no chain is longer than its queue, and memory regions are few.
const MAX_SEGMENTS: usize = 512;

/// Pieces for one system call.
const BATCH: usize = 16;

/// What a driver must not put into a queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// A buffer is outside guest memory.
    #[error("a buffer of {len} bytes at {address:#x} is not in guest memory")]
    OutsideMemory {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer is for the wrong direction.
    #[error("a buffer at {address:#x} is for the wrong direction")]
    Direction {
        /// Guest-physical address.
        address: u64,
    },
    /// The chain has too many pieces.
    #[error("a chain has more than {MAX_SEGMENTS} pieces")]
    TooLong,
    /// There is no room for a packet header.
    #[error("a chain of {0} bytes can't hold a packet header")]
    NoHeader(usize),
}

/// The pieces of one chain, whatever its framing: header and data may share a descriptor or be spread over many. Used
/// again for the next chain.
#[derive(Default)]
pub struct Segments<'a> {
    slices: Vec<VolatileSlice<'a>>,
    bytes: usize,
}

impl<'a> Segments<'a> {
    /// Takes over the pieces of `chain`, which the device wants to read or to write.
    ///
    /// # Errors
    /// The chain can't be a packet; nothing of it is to be used.
    pub fn gather(
        &mut self,
        memory: &'a GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        access: Permissions,
    ) -> Result<(), Malformed> {
        self.slices.clear();
        self.bytes = 0;
        for descriptor in chain {
            let (address, len) = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() != (access == Permissions::Write) {
                return Err(Malformed::Direction { address: address.0 });
            }
            let outside = |_| Malformed::OutsideMemory { address: address.0, len };
            for slice in memory.get_slices(address, len as usize, access).map_err(outside)? {
                let slice = slice.map_err(outside)?;
                if self.slices.len() == MAX_SEGMENTS {
                    return Err(Malformed::TooLong);
                }
                self.bytes += slice.len();
                self.slices.push(slice);
            }
        }
        if self.bytes < HEADER_BYTES { Err(Malformed::NoHeader(self.bytes)) } else { Ok(()) }
    }

    /// Bytes after the header.
    #[must_use]
    pub const fn payload_bytes(&self) -> usize {
        self.bytes.saturating_sub(HEADER_BYTES)
    }

    /// The packet's header, read once.
    #[must_use]
    pub fn read_header(&self) -> Header {
        let mut bytes = [0; HEADER_BYTES];
        let mut done = 0;
        for slice in self.range(0, HEADER_BYTES) {
            done += slice.copy_to(&mut bytes[done..]);
        }
        Header::from_bytes(&bytes)
    }

    /// Writes the packet's header.
    pub fn write_header(&self, header: &Header) {
        let bytes = header.to_bytes();
        let mut done = 0;
        for slice in self.range(0, HEADER_BYTES) {
            slice.copy_from(&bytes[done..done + slice.len()]);
            done += slice.len();
        }
    }

    /// Copies the payload from `offset` on to `to`, which is no longer than what is there.
    pub fn copy_payload(&self, offset: usize, to: &mut [u8]) {
        let mut done = 0;
        for slice in self.range(HEADER_BYTES + offset, to.len()) {
            done += slice.copy_to(&mut to[done..]);
        }
    }

    /// Writes `len` bytes of the payload from `offset` on to `stream`, as far as it takes them: bytes written.
    ///
    /// # Errors
    /// See [`socket::send`].
    pub fn send_payload(&self, stream: &UnixStream, offset: usize, len: usize) -> io::Result<usize> {
        let (mut iovecs, used) = self.iovecs(HEADER_BYTES + offset, len);
        // SAFETY: each of the first `used` entries is the memory of a slice, which is mapped while the borrowed snapshot
        // of guest memory lives. The guest may change it meanwhile; the kernel copies whatever it finds.
        unsafe { socket::send_vectored(stream.as_raw_fd(), &mut iovecs[..used]) }
    }

    /// Reads up to `limit` bytes from `stream` to the place of the payload: bytes read, 0 at the end of file.
    ///
    /// # Errors
    /// See [`socket::receive`].
    pub fn receive_payload(&self, stream: &UnixStream, limit: usize) -> io::Result<usize> {
        let (mut iovecs, used) = self.iovecs(HEADER_BYTES, limit);
        // SAFETY: as in `send_payload`; and all accesses to guest memory are volatile or by the kernel, so no reference
        // to these bytes exists.
        unsafe { socket::receive_vectored(stream.as_raw_fd(), &mut iovecs[..used]) }
    }

    fn iovecs(&self, skip: usize, limit: usize) -> ([libc::iovec; BATCH], usize) {
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut used = 0;
        for (iovec, slice) in iovecs.iter_mut().zip(self.range(skip, limit)) {
            *iovec = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
            used += 1;
        }
        (iovecs, used)
    }

    /// The pieces of up to `len` bytes after the first `skip` ones.
    fn range(&self, mut skip: usize, mut len: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.slices.iter().filter_map(move |slice| {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let count = (slice.len() - skipped).min(len);
            len -= count;
            if count == 0 { None } else { slice.subslice(skipped, count).ok() }
        })
    }
}
