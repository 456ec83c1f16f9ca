//! Pieces of memory for one system call: the host's own, and the guest's.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use crate::retry::retry;
use crate::socket;

/// Most pieces of one call, beside what the link puts before them.
pub const MAX_PIECES: usize = 63;

/// A list for `readv` or `writev`. The first entry is for what the link puts before the pieces: it is set by each call, for that
/// call. The memory of all others, up to `used`, is mapped for `'a`.
struct List<'a> {
    entries: [libc::iovec; 1 + MAX_PIECES],
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
        Self { entries: [empty; 1 + MAX_PIECES], used: 1, bytes: 0, memory: PhantomData }
    }

    /// Adds a piece; `false` if there are too many.
    fn push(&mut self, base: *mut u8, bytes: usize) -> bool {
        let Some(entry) = self.entries.get_mut(self.used) else { return false };
        *entry = libc::iovec { iov_base: base.cast(), iov_len: bytes };
        self.used += 1;
        self.bytes += bytes;
        true
    }

    /// All entries, with memory at `base` before the pieces.
    fn behind(&mut self, base: *mut u8, bytes: usize) -> &mut [libc::iovec] {
        self.entries[0] = libc::iovec { iov_base: base.cast(), iov_len: bytes };
        &mut self.entries[..self.used]
    }

    /// Every piece.
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.entries[1..self.used].iter().map(|entry| {
            // SAFETY: the memory of a piece is mapped for `'a`: of the guest's, to which no reference exists, or of the host's,
            // borrowed for `'a` as the caller needs it: a `Source` only reads it.
            unsafe { VolatileSlice::new(entry.iov_base.cast(), entry.iov_len) }
        })
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

    /// Writes `header` and all pieces to `to` with one call: bytes written.
    ///
    /// # Errors
    /// The system's.
    pub fn write_to(&mut self, header: &[u8], to: BorrowedFd<'_>) -> io::Result<usize> {
        let entries = self.0.behind(header.as_ptr().cast_mut(), header.len());
        // SAFETY: the entries are memory that is mapped for `'a`, and `header`, which the kernel only reads. The guest may change
        // its own meanwhile; the kernel takes what it finds.
        retry(|| unsafe { libc::writev(to.as_raw_fd(), entries.as_ptr(), entries.len() as libc::c_int) })
    }

    /// Sends `header` and all pieces to `to` with one call, as much as the socket takes: bytes sent. It neither blocks nor raises a
    /// signal.
    ///
    /// # Errors
    /// The system's: [`io::ErrorKind::WouldBlock`] if it takes nothing.
    pub fn send_to(&mut self, header: &[u8], to: &UnixStream) -> io::Result<usize> {
        let entries = self.0.behind(header.as_ptr().cast_mut(), header.len());
        // SAFETY: as in `write_to`.
        unsafe { socket::send_vectored(to.as_raw_fd(), entries) }
    }

    /// Copies the pieces, without their first `skip` bytes, to `to`, as far as that goes: bytes copied.
    pub fn copy_to(&self, mut skip: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.0.slices() {
            let begin = skip.min(slice.len());
            skip -= begin;
            if let Ok(rest) = slice.offset(begin) {
                done += rest.copy_to(&mut to[done..]);
            }
        }
        done
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

    /// Reads once from `from` into `header` and the pieces: bytes read.
    ///
    /// # Errors
    /// The system's.
    pub fn read_from(&mut self, header: &mut [u8], from: BorrowedFd<'_>) -> io::Result<usize> {
        let entries = self.0.behind(header.as_mut_ptr(), header.len());
        // SAFETY: the entries are memory that is mapped for `'a`, and `header`: of the host's, borrowed exclusively, or the guest's,
        // to which no reference exists, because all accesses are volatile or by the kernel.
        retry(|| unsafe { libc::readv(from.as_raw_fd(), entries.as_ptr(), entries.len() as libc::c_int) })
    }

    /// Fills the pieces with `bytes`, as far as they go: bytes copied.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.0.slices() {
            let rest = &bytes[done..];
            let fits = &rest[..rest.len().min(slice.len())];
            slice.copy_from(fits);
            done += fits.len();
        }
        done
    }
}
