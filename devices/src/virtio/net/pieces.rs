//! Pieces of memory for one system call: the host's own, and the guest's.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::retry::retry;

/// Most pieces of one call.
pub const MAX_PIECES: usize = 64;

/// A list for `readv` or `writev`. The memory of every entry is mapped for `'a`.
struct List<'a> {
    entries: [libc::iovec; MAX_PIECES],
    used: usize,
    bytes: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

/// Memory to be written to the host.
pub struct Source<'a>(List<'a>);

/// Room for what comes from the host.
pub struct Room<'a>(List<'a>);

impl List<'_> {
    const fn empty() -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { entries: [empty; MAX_PIECES], used: 0, bytes: 0, memory: PhantomData }
    }

    /// Adds an entry; `false` if there are too many.
    fn push(&mut self, base: *mut u8, bytes: usize) -> bool {
        let Some(entry) = self.entries.get_mut(self.used) else { return false };
        *entry = libc::iovec { iov_base: base.cast(), iov_len: bytes };
        self.used += 1;
        self.bytes += bytes;
        true
    }
}

impl<'a> Source<'a> {
    /// Nothing yet.
    #[must_use]
    pub const fn empty() -> Self {
        Self(List::empty())
    }

    /// Adds memory of the host; `false` if there are too many pieces.
    #[must_use]
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// Adds memory of the guest; `false` if there are too many pieces.
    #[must_use]
    pub fn push_guest(&mut self, slice: &VolatileSlice<'a>) -> bool {
        self.0.push(slice.ptr_guard_mut().as_ptr(), slice.len())
    }

    /// Bytes of all pieces.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Writes all pieces to `to` with one call: bytes written.
    ///
    /// # Errors
    /// The system's.
    pub fn write_to(&self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let List { entries, used, .. } = &self.0;
        // SAFETY: the first `used` entries are memory that is mapped for `'a`, which the kernel only reads. The guest may change
        // its own meanwhile; the kernel takes what it finds.
        retry(|| unsafe { libc::writev(to.as_raw_fd(), entries.as_ptr(), *used as libc::c_int) })
    }
}

impl<'a> Room<'a> {
    /// None yet.
    #[must_use]
    pub const fn empty() -> Self {
        Self(List::empty())
    }

    /// Adds memory of the host; `false` if there are too many pieces.
    #[must_use]
    pub fn push(&mut self, bytes: &'a mut [u8]) -> bool {
        self.0.push(bytes.as_mut_ptr(), bytes.len())
    }

    /// Adds memory of the guest; `false` if there are too many pieces.
    #[must_use]
    pub fn push_guest(&mut self, slice: &VolatileSlice<'a>) -> bool {
        self.0.push(slice.ptr_guard_mut().as_ptr(), slice.len())
    }

    /// Bytes of all pieces.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Reads once from `from` into the pieces: bytes read.
    ///
    /// # Errors
    /// The system's.
    pub fn read_from(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        let List { entries, used, .. } = &self.0;
        // SAFETY: the first `used` entries are memory that is mapped for `'a`: of the host's, borrowed exclusively, or the guest's, to
        // which no reference exists, because all accesses are volatile or by the kernel.
        retry(|| unsafe { libc::readv(from.as_raw_fd(), entries.as_ptr(), *used as libc::c_int) })
    }
}
