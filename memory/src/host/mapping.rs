//! Host memory behind guest memory.
//!
//! A [`HostMapping`] reserves addresses for all that a range of guest-physical memory can ever hold; pages come when they
//! are touched (or, with hugetlbfs, are reserved when the range is plugged) and go when they are discarded.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::pieces::{CountedPieces, TooManyPieces};
use crate::blocks::{BLOCK, BlockRange};
use crate::{ByteSize, limited};

/// What host memory is made of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Small pages.
    None,
    /// Transparent huge pages where the host has them.
    #[default]
    Thp,
    /// 2 MiB pages out of the host's pool, reserved when memory is plugged.
    Hugetlbfs,
}

/// A reservation of host addresses that back guest memory: private, anonymous, aligned to 2 MiB, neither inherited by
/// child processes nor written to core dumps.
///
/// Every [`GuestRegionMmap`] that was made of it is remembered, so that nothing is unmapped under one that is still in use.
pub struct HostMapping {
    start: NonNull<u8>,
    bytes: u64,
    backing: Backing,
    regions: Mutex<Vec<Arc<GuestRegionMmap>>>,
    /// With hugetlbfs, where each range is a mapping of its own.
    pieces: Option<Mutex<CountedPieces>>,
}

// SAFETY: `start` is only the address of a mapping that lives as long as `self`; nothing here reads or writes through it,
// and the system calls that take it are safe to make from any thread.
unsafe impl Send for HostMapping {}
// SAFETY: as above; the one mutable field is behind a mutex.
unsafe impl Sync for HostMapping {}

/// Why host memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// No room in the address space, or a limit.
    #[error("cannot reserve {0} of addresses for guest memory")]
    Reserve(ByteSize, #[source] io::Error),
    /// A guest cuts its memory up.
    #[error(transparent)]
    Pieces(#[from] TooManyPieces),
    /// The pool of huge pages is too small.
    #[error("cannot reserve {0} of 2 MiB huge pages (/proc/sys/vm/nr_hugepages says how many the host has)")]
    HugePages(ByteSize, #[source] io::Error),
    /// The kernel did not take advice about the memory.
    #[error("cannot set {what} on {bytes} of guest memory")]
    Advise {
        /// What was asked for.
        what: &'static str,
        /// Size of the memory in question.
        bytes: ByteSize,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The range is not in the mapping or not made of whole blocks.
    #[error("{bytes} at {offset:#x} are no range of blocks in a mapping of {mapping}")]
    NoRange {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        bytes: u64,
        /// Size of the mapping.
        mapping: ByteSize,
    },
    /// The guest address of a region runs over.
    #[error("{bytes} of memory at {guest:#x} end beyond the address space")]
    GuestAddress {
        /// Where it should have started.
        guest: u64,
        /// Its size.
        bytes: ByteSize,
    },
    /// The region was refused by vm-memory.
    #[error("cannot make a guest memory region of {0}")]
    Region(ByteSize, #[source] MmapRegionError),
}

impl HostMapping {
    /// Reserves `bytes`, a multiple of 2 MiB and not zero. Costs addresses, no memory.
    ///
    /// # Errors
    /// The size makes no sense, or the kernel refused.
    pub fn reserve(bytes: u64, backing: Backing) -> Result<Self, MapError> {
        let size = ByteSize::bytes(bytes);
        let padded = bytes.checked_add(BLOCK.get()).and_then(|padded| usize::try_from(padded).ok());
        let padded = padded.filter(|_| bytes != 0 && size.is_multiple_of(BLOCK));
        let padded = padded.ok_or(MapError::NoRange { offset: 0, bytes, mapping: size })?;
        let raw = map(ptr::null_mut(), padded, protection(backing), 0).map_err(|e| MapError::Reserve(size, e))?;
        let head = raw.as_ptr().align_offset(BLOCK.get() as usize);
        let tail = BLOCK.get() as usize - head;
        // SAFETY: `padded` bytes are mapped at `raw`, and `head` is at most a block of them.
        let start = unsafe { raw.add(head) };
        // SAFETY: `bytes` bytes behind `start` are inside the mapping, for `head + bytes + tail == padded`.
        let end = unsafe { start.add(bytes as usize) };
        unmap(raw, head);
        unmap(end, tail);
        let blocks = u32::try_from(bytes / BLOCK.get()).unwrap_or(u32::MAX);
        let pieces = (backing == Backing::Hugetlbfs).then(|| Mutex::new(CountedPieces::new(blocks)));
        let mapping = Self { start, bytes, backing, regions: Mutex::new(Vec::new()), pieces };
        mapping.advise(0, bytes)?;
        Ok(mapping)
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the memory is made of.
    #[must_use]
    pub const fn backing(&self) -> Backing {
        self.backing
    }

    /// Host virtual address of the byte at `offset`, which must be inside.
    #[must_use]
    pub fn host_address(&self, offset: u64) -> u64 {
        self.start.as_ptr() as u64 + offset
    }

    /// Sees to it that memory for `bytes` at `offset` is there: reserves huge pages with [`Backing::Hugetlbfs`], has nothing
    /// to do otherwise. What was in the range is lost; nobody may be using it.
    ///
    /// # Errors
    /// Too few huge pages are free, or the range is none.
    pub fn back(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let at = self.range(offset, bytes)?;
        if self.backing != Backing::Hugetlbfs {
            return Ok(());
        }
        self.change_pieces(offset, bytes, CountedPieces::back)?;
        let size = ByteSize::bytes(bytes);
        let refused = |source| MapError::HugePages(size, source);
        // Mapped elsewhere first: MAP_FIXED would leave a hole behind when the pool is too small.
        let flags = libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        let pages = map(ptr::null_mut(), bytes as usize, WRITABLE, flags).map_err(refused)?;
        // SAFETY: the new mapping at `pages` is ours alone, and the range at `at` lies in ours, where nothing is in use.
        let moved = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(pages.as_ptr().cast(), bytes as usize, bytes as usize, flags, at.as_ptr())
        };
        if moved == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            unmap(pages, bytes as usize);
            return Err(refused(error));
        }
        self.advise(offset, bytes)
    }

    /// Sees to it that `bytes` at `offset` can be discarded by themselves.
    ///
    /// # Errors
    /// That would cut the memory into too many pieces, or the range is none.
    pub(crate) fn cut_out(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        self.change_pieces(offset, bytes, CountedPieces::cut_out)
    }

    fn change_pieces(
        &self,
        offset: u64,
        bytes: u64,
        change: impl FnOnce(&mut CountedPieces, BlockRange) -> Result<(), TooManyPieces>,
    ) -> Result<(), MapError> {
        self.range(offset, bytes)?;
        let block = |offset: u64| u32::try_from(offset / BLOCK.get()).unwrap_or(u32::MAX);
        if let Some(pieces) = &self.pieces
            && let Some(range) = BlockRange::between(block(offset), block(offset + bytes))
        {
            // The cuts are whole after every step.
            change(&mut pieces.lock().unwrap_or_else(PoisonError::into_inner), range)?;
        }
        Ok(())
    }

    /// Gives the memory of `bytes` at `offset` back to the host. The contents are lost: it reads as zeros afterwards.
    ///
    /// With [`Backing::Hugetlbfs`] the reservation goes too: until [`HostMapping::back`] reads cost nothing and writes fail.
    ///
    /// # Errors
    /// The kernel refused, or the range is none.
    pub fn discard(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let at = self.range(offset, bytes)?;
        let refused = |source| MapError::Advise { what: "MADV_DONTNEED", bytes: ByteSize::bytes(bytes), source };
        if self.backing != Backing::Hugetlbfs {
            return advise(at, bytes, libc::MADV_DONTNEED).map_err(refused);
        }
        map(at.as_ptr(), bytes as usize, protection(self.backing), libc::MAP_FIXED).map_err(refused)?;
        self.change_pieces(offset, bytes, |pieces, range| {
            pieces.discard(range);
            Ok(())
        })?;
        self.advise(offset, bytes)
    }

    /// How many bytes of `bytes` at `offset` have a page mapped.
    ///
    /// Asks `mincore`, which walks page tables without a lock that page faults take exclusively: measured at 2 GiB that is
    /// a fiftieth of the time it takes to free huge pages, and a five-hundredth with small ones. A page of zeros that was
    /// only ever read counts too.
    ///
    /// # Errors
    /// The kernel refused, or the range is none.
    pub fn resident(&self, offset: u64, bytes: u64) -> Result<u64, MapError> {
        const PAGE: usize = 4096;
        const CHUNK: usize = 64 << 20;
        let at = self.range(offset, bytes)?;
        let mut states = [0_u8; CHUNK / PAGE];
        let mut resident = 0;
        for start in (0..bytes as usize).step_by(CHUNK) {
            let length = CHUNK.min(bytes as usize - start);
            // SAFETY: the chunk lies in the mapping, and `states` has one byte for each of its pages.
            let result = unsafe { libc::mincore(at.add(start).as_ptr().cast(), length, states.as_mut_ptr()) };
            if result != 0 {
                let source = io::Error::last_os_error();
                return Err(MapError::Advise { what: "mincore", bytes: ByteSize::bytes(bytes), source });
            }
            resident += states[..length / PAGE].iter().map(|state| u64::from(state & 1)).sum::<u64>();
        }
        Ok(resident * PAGE as u64)
    }

    /// A region for [`crate::GuestMemory`] of `bytes` at `offset` that the guest has at `guest`.
    ///
    /// # Errors
    /// The range is none, here or for the guest.
    pub fn region(&self, offset: u64, bytes: u64, guest: GuestAddress) -> Result<Arc<GuestRegionMmap>, MapError> {
        let at = self.range(offset, bytes)?;
        let size = ByteSize::bytes(bytes);
        // SAFETY: the range lies in the mapping, which is not unmapped while a region made of it is held (`Drop`).
        let builder = unsafe { MmapRegionBuilder::new(bytes as usize).with_raw_mmap_pointer(at.as_ptr()) };
        let builder = builder.with_mmap_prot(WRITABLE).with_mmap_flags(ANONYMOUS);
        let builder = builder.with_hugetlbfs(self.backing == Backing::Hugetlbfs);
        let region = builder.build().map_err(|source| MapError::Region(size, source))?;
        let region = GuestRegionMmap::new(region, guest).map(Arc::new);
        let region = region.ok_or(MapError::GuestAddress { guest: guest.0, bytes: size })?;
        self.regions().push(region.clone());
        Ok(region)
    }

    /// Forgets the regions that nobody uses any more.
    pub fn tidy(&self) {
        self.regions().retain_mut(is_held);
    }

    /// Whether anybody still holds a region that reaches into `bytes` at `offset`, say in an old snapshot of guest memory.
    #[must_use]
    pub fn is_in_use(&self, offset: u64, bytes: u64) -> bool {
        self.is_in_use_beside(offset, bytes, |_| 0)
    }

    /// [`HostMapping::is_in_use`] by others than those that `known` counts, who hold what is inside the region and nothing else
    /// of it.
    pub(crate) fn is_in_use_beside(&self, offset: u64, bytes: u64, known: impl Fn(&MmapRegion) -> usize) -> bool {
        let (start, end) = (self.host_address(offset), self.host_address(offset) + bytes);
        self.regions().iter_mut().any(|region| {
            let first = region.as_ptr() as u64;
            first < end && start < first + region.len() && is_held_beside(region, &known)
        })
    }

    fn regions(&self) -> MutexGuard<'_, Vec<Arc<GuestRegionMmap>>> {
        // The list is whole after every step.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a range of whole blocks in the mapping.
    fn range(&self, offset: u64, bytes: u64) -> Result<NonNull<u8>, MapError> {
        let aligned = offset.is_multiple_of(BLOCK.get()) && bytes.is_multiple_of(BLOCK.get()) && bytes != 0;
        if !aligned || offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(MapError::NoRange { offset, bytes, mapping: ByteSize::bytes(self.bytes) });
        }
        // SAFETY: the offset was just checked to lie in the mapping.
        Ok(unsafe { self.start.add(offset as usize) })
    }

    fn advise(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let at = self.range(offset, bytes)?;
        let mut wanted = vec![(libc::MADV_DONTFORK, "MADV_DONTFORK"), (libc::MADV_DONTDUMP, "MADV_DONTDUMP")];
        match self.backing {
            Backing::None => wanted.push((libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE")),
            Backing::Thp => wanted.push((libc::MADV_HUGEPAGE, "MADV_HUGEPAGE")),
            Backing::Hugetlbfs => {}
        }
        for (advice, what) in wanted {
            match advise(at, bytes, advice) {
                // A kernel without transparent huge pages knows no such advice; small pages are what there is.
                Err(e) if advice != libc::MADV_DONTFORK && e.raw_os_error() == Some(libc::EINVAL) => {
                    limited!(debug, what, "the host kernel does not know this advice");
                }
                Err(source) => return Err(MapError::Advise { what, bytes: ByteSize::bytes(bytes), source }),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

impl Drop for HostMapping {
    fn drop(&mut self) {
        let regions = self.regions.get_mut().unwrap_or_else(PoisonError::into_inner);
        if regions.iter_mut().any(is_held) {
            limited!(error, bytes = self.bytes, "guest memory is still in use at its end: it stays mapped");
            return;
        }
        unmap(self.start, self.bytes as usize);
    }
}

/// Whether somebody else holds `region` or the mapping inside it.
fn is_held(region: &mut Arc<GuestRegionMmap>) -> bool {
    is_held_beside(region, |_| 0)
}

/// Whether somebody else holds `region` or, beside those that `known` counts, the mapping inside it.
fn is_held_beside(region: &mut Arc<GuestRegionMmap>, known: impl Fn(&MmapRegion) -> usize) -> bool {
    let Some(region) = Arc::get_mut(region) else { return true };
    let mapping = region.get_mmap();
    // One count is the region's, one is ours.
    let held = Arc::strong_count(&mapping) > 2 + known(&mapping) || Arc::weak_count(&mapping) != 0;
    // Whatever the last holder did with the memory happened before it let go.
    fence(Ordering::Acquire);
    held
}

const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// How memory that nothing backs yet may be accessed: huge pages come with [`HostMapping::back`], and a guest that reads
/// there before gets zeros.
fn protection(backing: Backing) -> i32 {
    if backing == Backing::Hugetlbfs { libc::PROT_READ } else { WRITABLE }
}

/// Maps anonymous memory; with `MAP_FIXED` in `flags`, over what is at `at`.
fn map(at: *mut u8, bytes: usize, protection: i32, flags: i32) -> io::Result<NonNull<u8>> {
    let reserve = if flags & libc::MAP_HUGETLB == 0 { libc::MAP_NORESERVE } else { 0 };
    // SAFETY: without MAP_FIXED the kernel chooses unused addresses; with it the callers pass a range of a mapping of ours
    // in which nothing is in use.
    let address = unsafe { libc::mmap(at.cast(), bytes, protection, ANONYMOUS | reserve | flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

fn unmap(at: NonNull<u8>, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the callers own the range and nothing in it is in use.
    if unsafe { libc::munmap(at.as_ptr().cast(), bytes) } != 0 {
        limited!(warn, bytes, error = %io::Error::last_os_error(), "cannot unmap memory");
    }
}

fn advise(at: NonNull<u8>, bytes: u64, advice: i32) -> io::Result<()> {
    // SAFETY: the callers checked that the range is in their mapping. Of the advice given, only MADV_DONTNEED changes
    // contents, to zeros, in memory that Rust reads through volatile accesses only.
    match unsafe { libc::madvise(at.as_ptr().cast(), bytes as usize, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "mapping_test.rs"]
mod tests;
