//! System calls about memory, and the unsafe code that they take.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};

use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

use super::scan;
use crate::blocks::BLOCK;

/// Addresses of this process in which nothing else is mapped: anonymous, private memory or files, aligned to a block. Unmapped
/// when dropped.
///
/// Nothing here reads or writes it. Ranges count bytes from its start.
#[derive(Debug)]
pub struct Area {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: `start` is only the address of a mapping that lives as long as `self`; nothing here reads or writes through it, and
// the system calls that take it may be made from any thread.
unsafe impl Send for Area {}
// SAFETY: as above; no method changes a field.
unsafe impl Sync for Area {}

/// What may be done with memory that nothing backs yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Reads give zeros, writes make small or transparent huge pages.
    Write,
    /// Reads give zeros, writes fail.
    Read,
}

impl Area {
    /// Reserves `bytes`, a multiple of the page size. Costs addresses, no memory.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn reserve(bytes: usize, access: Access) -> io::Result<Self> {
        let block = BLOCK.get() as usize;
        let padded = bytes.checked_add(block).ok_or(io::ErrorKind::InvalidInput)?;
        let raw = map(ptr::null_mut(), padded, access.protection(), libc::MAP_NORESERVE)?;
        let head = raw.as_ptr().align_offset(block);
        // SAFETY: `padded` bytes are mapped at `raw`, and `head` is at most a block of them.
        let start = unsafe { raw.add(head) };
        // SAFETY: `bytes` bytes behind `start` are inside the mapping, for `head + bytes` is at most `padded`.
        let end = unsafe { start.add(bytes) };
        unmap(raw, head);
        unmap(end, block - head);
        Ok(Self { start, bytes })
    }

    /// Host virtual address of the first byte, a multiple of a block.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts new memory in place of `range`.
    pub(super) fn renew(&self, range: Range<usize>, access: Access) -> io::Result<()> {
        let at = self.at(&range)?;
        map(at.as_ptr(), range.len(), access.protection(), libc::MAP_NORESERVE | libc::MAP_FIXED).map(drop)
    }

    /// Puts the beginning of `file` in place of `range`, to be read: [`Area::map_file_at`].
    ///
    /// # Errors
    /// The range is empty or not inside, or the kernel refused.
    pub fn map_file(&self, range: Range<usize>, file: &File) -> io::Result<()> {
        self.map_file_at(range, file, 0)
    }

    /// Puts `file` from `offset` on, a multiple of the page size, in place of `range`, to be read. Its pages are those of all processes that map it; one of a file
    /// that has become shorter raises SIGBUS where it is touched.
    ///
    /// # Errors
    /// The range is empty or not inside, or the kernel refused.
    pub fn map_file_at(&self, range: Range<usize>, file: &File, offset: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let at = self.at(&range)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range, also when rounded up to a page, lies in our mapping, which is made of whole pages and whose memory is
        // accessed through volatile accesses only.
        let mapped =
            unsafe { libc::mmap(at.as_ptr().cast(), range.len(), libc::PROT_READ, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Puts huge pages of 2 MiB out of the host's pool in place of `range`.
    pub(super) fn reserve_huge_pages(&self, range: Range<usize>) -> io::Result<()> {
        let at = self.at(&range)?;
        // Mapped elsewhere first: MAP_FIXED would leave a hole behind when the pool is too small.
        let flags = libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        let pages = map(ptr::null_mut(), range.len(), Access::Write.protection(), flags)?;
        // SAFETY: the new mapping at `pages` is ours alone, and the range at `at` lies in ours.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(pages.as_ptr().cast(), range.len(), range.len(), flags, at.as_ptr())
        };
        if moved == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            unmap(pages, range.len());
            return Err(error);
        }
        Ok(())
    }

    /// Gives the kernel advice about `range`. Of what is given here, only `MADV_DONTNEED` changes contents, to zeros;
    /// `MADV_PAGEOUT` keeps them, in swap.
    ///
    /// # Errors
    /// The range is empty or not inside, or the kernel refused.
    pub fn advise(&self, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        let at = self.at(&range)?;
        // SAFETY: the range lies in our mapping, whose memory is accessed through volatile accesses only.
        check(unsafe { libc::madvise(at.as_ptr().cast(), range.len(), advice) })
    }

    /// Keeps the mapping out of child processes and core dumps.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_private(&self) -> io::Result<()> {
        [libc::MADV_DONTFORK, libc::MADV_DONTDUMP].into_iter().try_for_each(|advice| self.advise(0..self.bytes, advice))
    }

    /// How many bytes of `range` have a page mapped.
    pub(super) fn resident(&self, range: Range<usize>) -> io::Result<u64> {
        resident_bytes(self.at(&range)?.as_ptr() as u64, range.len())
    }

    /// `range` for vm-memory.
    ///
    /// # Safety
    /// The area is not dropped while the region is held.
    pub(super) unsafe fn region(&self, range: Range<usize>, huge_pages: bool) -> Result<MmapRegion, MmapRegionError> {
        let at = self.at(&range).map_err(MmapRegionError::Mmap)?;
        // SAFETY: the range lies in our mapping, which is not unmapped while the region is held (the caller).
        let builder = unsafe { MmapRegionBuilder::new(range.len()).with_raw_mmap_pointer(at.as_ptr()) };
        let builder = builder.with_mmap_prot(Access::Write.protection()).with_mmap_flags(ANONYMOUS);
        builder.with_hugetlbfs(huge_pages).build()
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The first byte of `range`, which has to be inside.
    pub(super) fn at(&self, range: &Range<usize>) -> io::Result<NonNull<u8>> {
        if range.is_empty() || range.end > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the start was just checked to lie in the mapping.
        Ok(unsafe { self.start.add(range.start) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

impl Access {
    pub(super) const fn protection(self) -> libc::c_int {
        match self {
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
            Self::Read => libc::PROT_READ,
        }
    }
}

/// Asks for each page of `bytes` at `address` of this process, a multiple of the page size, whether it is resident: whether it has a
/// page mapped or, of a file, whether the page cache has it (`mincore(2)`). `states` is room for a byte for each page.
///
/// # Errors
/// `states` is too short, or not all of the range is mapped.
pub fn residency(address: u64, bytes: usize, states: &mut [u8]) -> io::Result<impl Iterator<Item = bool> + '_> {
    let states = states.get_mut(..bytes.div_ceil(PAGE)).ok_or(io::ErrorKind::InvalidInput)?;
    let at = ptr::without_provenance_mut::<u8>(usize::try_from(address).map_err(io::Error::other)?);
    // SAFETY: the kernel looks the range up and does not touch its memory; `states` has a byte for each page of it.
    check(unsafe { libc::mincore(at.cast(), bytes, states.as_mut_ptr()) })?;
    Ok(states.iter().map(|state| state & 1 != 0))
}

/// How many of `bytes` at `address` of this process's own memory, both multiples of the page size, have a page mapped. Pages of zeros
/// that were only read count, too.
///
/// # Errors
/// The kernel cannot tell; before Linux 6.7, not all of the range is mapped.
pub fn resident_bytes(address: u64, bytes: usize) -> io::Result<u64> {
    match scan::present(address, bytes as u64) {
        Some(found) => Ok(found),
        None => resident_by_page(address, bytes),
    }
}

/// [`resident_bytes`] for a kernel that cannot scan page tables.
pub(super) fn resident_by_page(address: u64, bytes: usize) -> io::Result<u64> {
    const CHUNK: usize = 64 << 20;
    let mut states = [0_u8; CHUNK / PAGE];
    let mut resident = 0;
    for start in (0..bytes).step_by(CHUNK) {
        let length = CHUNK.min(bytes - start);
        resident += residency(address + start as u64, length, &mut states)?.filter(|resident| *resident).count();
    }
    Ok((resident * PAGE) as u64)
}

/// A file in memory, which is closed on exec. It takes memory where it has been written to.
///
/// # Errors
/// The kernel refused.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: `name` ends with a zero byte and outlives the call.
    let create = |flags| unsafe { libc::memfd_create(name.as_ptr(), flags) };
    // Hosts may refuse a file that could be executed; before Linux 6.3 there was no other.
    let descriptor = match create(libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL) {
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => create(libc::MFD_CLOEXEC),
        descriptor => descriptor,
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
}

/// Size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// Makes this thread less urgent than others: a batch thread takes the processor from none when it wakes; where it competes
/// for one it gets a third of what another gets.
pub(crate) fn give_way() -> io::Result<()> {
    const NICE: libc::c_int = 5;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` is a valid structure that outlives the call; on Linux 0 is this thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) })?;
    // SAFETY: takes numbers only; on Linux 0 is this thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) })
}

const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Maps anonymous memory; with `MAP_FIXED` in `flags`, over what is at `at`. Fit for a signal handler.
pub(super) fn map(at: *mut u8, bytes: usize, protection: libc::c_int, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED the kernel chooses unused addresses; with it the callers pass a range of their own mapping,
    // whose memory is accessed through volatile accesses only.
    let address = unsafe { libc::mmap(at.cast(), bytes, protection, ANONYMOUS | flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn unmap(at: NonNull<u8>, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the callers own the range and nothing in it is in use.
    if let Err(error) = check(unsafe { libc::munmap(at.as_ptr().cast(), bytes) }) {
        crate::limited!(warn, bytes, %error, "cannot unmap memory");
    }
}

pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
