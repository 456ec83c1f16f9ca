//! Host memory behind guest memory.
//!
//! A [`HostMapping`] reserves addresses for all that a range of guest-physical memory can ever hold; pages come when they
//! are touched (or, with hugetlbfs, are reserved when the range is plugged) and go when they are discarded.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::pieces::{CountedPieces, TooManyPieces};
use super::scan;
use super::sys::{Access, Area, PAGE};
use crate::blocks::{BLOCK, BlockRange};
use crate::sync::Mutex;
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
    area: ManuallyDrop<Area>,
    backing: Backing,
    regions: Mutex<Vec<Arc<GuestRegionMmap>>>,
    /// With hugetlbfs, where each range is a mapping of its own.
    pieces: Option<Mutex<CountedPieces>>,
}

impl HostMapping {
    /// Reserves `bytes`, a multiple of 2 MiB and not zero. Costs addresses, no memory.
    ///
    /// # Errors
    /// The size is invalid, or the kernel refused.
    pub fn reserve(bytes: u64, backing: Backing) -> Result<Self, MapError> {
        let size = ByteSize::bytes(bytes);
        let length = usize::try_from(bytes).ok().filter(|_| bytes != 0 && size.is_multiple_of(BLOCK));
        let length = length.ok_or(MapError::NoRange { offset: 0, bytes, unit: BLOCK.get(), mapping: size })?;
        let area = Area::reserve(length, access(backing)).map_err(|source| MapError::Reserve(size, source))?;
        let blocks = u32::try_from(bytes / BLOCK.get()).unwrap_or(u32::MAX);
        let pieces = (backing == Backing::Hugetlbfs).then(|| Mutex::new(CountedPieces::new(blocks)));
        scan::prepare();
        let mapping = Self { area: ManuallyDrop::new(area), backing, regions: Mutex::default(), pieces };
        mapping.advise(0, bytes)?;
        Ok(mapping)
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.area.bytes() as u64
    }

    /// What the memory is made of.
    #[must_use]
    pub const fn backing(&self) -> Backing {
        self.backing
    }

    /// Host virtual address of the byte at `offset`, which must be inside.
    #[must_use]
    pub fn host_address(&self, offset: u64) -> u64 {
        self.area.address() + offset
    }

    /// Sees to it that memory for `bytes` at `offset` is there: reserves huge pages with [`Backing::Hugetlbfs`], has nothing
    /// to do otherwise. What was in the range is lost; nothing may be using it.
    ///
    /// # Errors
    /// Too few huge pages are free, or the range is invalid.
    pub fn back(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let range = self.range(offset, bytes)?;
        if self.backing != Backing::Hugetlbfs {
            return Ok(());
        }
        self.change_pieces(offset, bytes, CountedPieces::back)?;
        let refused = |source| MapError::HugePages(ByteSize::bytes(bytes), source);
        self.area.reserve_huge_pages(range).map_err(refused)?;
        self.advise(offset, bytes)
    }

    /// Sees to it that `bytes` at `offset` can be discarded by themselves.
    ///
    /// # Errors
    /// That would cut the memory into too many pieces, or the range is invalid.
    pub(crate) fn cut_out(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        self.change_pieces(offset, bytes, CountedPieces::cut_out)
    }

    /// Gives the memory of `bytes` at `offset` back to the host. The contents are lost: it reads as zeros afterwards.
    ///
    /// With [`Backing::Hugetlbfs`] the reservation goes too: until [`HostMapping::back`] reads cost nothing and writes fail.
    ///
    /// # Errors
    /// The kernel refused, or the range is invalid.
    pub fn discard(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let range = self.range(offset, bytes)?;
        let refused = |source| MapError::Advise { what: "MADV_DONTNEED", bytes: ByteSize::bytes(bytes), source };
        if self.backing != Backing::Hugetlbfs {
            return self.area.advise(range, libc::MADV_DONTNEED).map_err(refused);
        }
        self.area.renew(range, access(self.backing)).map_err(refused)?;
        self.change_pieces(offset, bytes, |pieces, range| {
            pieces.discard(range);
            Ok(())
        })?;
        self.advise(offset, bytes)
    }

    /// Gives single pages, `bytes` at `offset`, back to the host. The contents are lost: they read as zeros afterwards, and
    /// the next access brings a page again. Returns the bytes that had pages.
    ///
    /// # Errors
    /// The kernel refused, the range is not made of whole pages in the mapping, or huge pages are reserved for it, which
    /// [`HostMapping::discard`] gives back as a whole.
    pub fn discard_pages(&self, offset: u64, bytes: u64) -> Result<u64, MapError> {
        self.check_pages_go()?;
        let range = self.multiple_of(PAGE as u64, offset, bytes)?;
        let mut freed = 0;
        for start in range.clone().step_by(STEP) {
            let step = start..range.end.min(start + STEP);
            let bytes = ByteSize::bytes(step.len() as u64);
            let resident = self.area.resident(step.clone()).map_err(|source| MapError::Resident { bytes, source })?;
            let refused = |source| MapError::Advise { what: "MADV_DONTNEED", bytes, source };
            self.area.advise(step, libc::MADV_DONTNEED).map_err(refused)?;
            freed += resident;
        }
        Ok(freed)
    }

    /// Has the host push the pages of `bytes` at `offset` out to its swap, as far as it can at once. Nothing is lost: the next
    /// access brings a page back.
    ///
    /// # Errors
    /// The kernel refused, the range is invalid, or huge pages are reserved for it, which stay in memory.
    pub(crate) fn page_out(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        self.check_pages_go()?;
        let range = self.range(offset, bytes)?;
        for start in range.clone().step_by(STEP) {
            let step = start..range.end.min(start + STEP);
            let bytes = ByteSize::bytes(step.len() as u64);
            let refused = |source| MapError::Advise { what: "MADV_PAGEOUT", bytes, source };
            self.area.advise(step, libc::MADV_PAGEOUT).map_err(refused)?;
        }
        Ok(())
    }

    /// Checks that [`HostMapping::discard_pages`] and [`HostMapping::page_out`] are possible.
    ///
    /// # Errors
    /// Huge pages are reserved for the mapping.
    pub(crate) fn check_pages_go(&self) -> Result<(), MapError> {
        if self.backing == Backing::Hugetlbfs { Err(MapError::PagesStay) } else { Ok(()) }
    }

    /// How many bytes of `bytes` at `offset` have a page mapped.
    ///
    /// Takes no lock that page faults take exclusively, and no more time than there are page tables; before Linux 6.7, a time that
    /// grows with the range. A page of zeros that was only ever read counts too.
    ///
    /// # Errors
    /// The kernel refused, or the range is invalid.
    pub fn resident(&self, offset: u64, bytes: u64) -> Result<u64, MapError> {
        let range = self.range(offset, bytes)?;
        let refused = |source| MapError::Resident { bytes: ByteSize::bytes(bytes), source };
        self.area.resident(range).map_err(refused)
    }

    /// A region for [`crate::GuestMemory`] of `bytes` at `offset` that the guest has at `guest`.
    ///
    /// # Errors
    /// The range is invalid, here or for the guest.
    pub fn region(&self, offset: u64, bytes: u64, guest: GuestAddress) -> Result<Arc<GuestRegionMmap>, MapError> {
        let range = self.range(offset, bytes)?;
        let size = ByteSize::bytes(bytes);
        // SAFETY: the area is not dropped while a region made of it is held (`Drop`), which is why each is remembered.
        let region = unsafe { self.area.region(range, self.backing == Backing::Hugetlbfs) };
        let region = region.map_err(|source| MapError::Region(size, source))?;
        let region = GuestRegionMmap::new(region, guest).map(Arc::new);
        let region = region.ok_or(MapError::GuestAddress { guest: guest.0, bytes: size })?;
        self.regions.lock().push(region.clone());
        Ok(region)
    }

    /// Forgets the regions that are no longer used.
    pub fn tidy(&self) {
        self.regions.lock().retain_mut(is_held);
    }

    /// Whether a region that reaches into `bytes` at `offset` is still held, say in an old snapshot of guest memory.
    #[must_use]
    pub fn is_in_use(&self, offset: u64, bytes: u64) -> bool {
        self.is_in_use_beside(offset, bytes, |_| 0)
    }

    /// [`HostMapping::is_in_use`], not counting the `known` holders of what is inside a region, which hold nothing else of it.
    pub(crate) fn is_in_use_beside(&self, offset: u64, bytes: u64, known: impl Fn(&MmapRegion) -> usize) -> bool {
        let (start, end) = (self.host_address(offset), self.host_address(offset) + bytes);
        self.regions.lock().iter_mut().any(|region| {
            let first = region.as_ptr() as u64;
            first < end && start < first + region.len() && is_held_beside(region, &known)
        })
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
            change(&mut pieces.lock(), range)?;
        }
        Ok(())
    }

    fn advise(&self, offset: u64, bytes: u64) -> Result<(), MapError> {
        let range = self.range(offset, bytes)?;
        let mut wanted = vec![(libc::MADV_DONTFORK, "MADV_DONTFORK"), (libc::MADV_DONTDUMP, "MADV_DONTDUMP")];
        match self.backing {
            Backing::None => wanted.push((libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE")),
            Backing::Thp => wanted.push((libc::MADV_HUGEPAGE, "MADV_HUGEPAGE")),
            Backing::Hugetlbfs => {}
        }
        for (advice, what) in wanted {
            match self.area.advise(range.clone(), advice) {
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

    /// A range of whole blocks in the mapping.
    fn range(&self, offset: u64, bytes: u64) -> Result<Range<usize>, MapError> {
        self.multiple_of(BLOCK.get(), offset, bytes)
    }

    /// A range in the mapping that begins and ends at a multiple of `unit`.
    fn multiple_of(&self, unit: u64, offset: u64, bytes: u64) -> Result<Range<usize>, MapError> {
        let aligned = offset.is_multiple_of(unit) && bytes.is_multiple_of(unit) && bytes != 0;
        match offset.checked_add(bytes) {
            Some(end) if aligned && end <= self.bytes() => Ok(offset as usize..end as usize),
            _ => Err(MapError::NoRange { offset, bytes, unit, mapping: ByteSize::bytes(self.bytes()) }),
        }
    }
}

/// How much one system call frees or pushes out page by page: few enough pages that the address space's lock is never held for
/// long.
pub(crate) const STEP: usize = 32 << 20;

impl Drop for HostMapping {
    fn drop(&mut self) {
        if self.regions.get_mut().iter_mut().any(is_held) {
            limited!(error, bytes = self.bytes(), "guest memory is still in use at its end: it stays mapped");
            return;
        }
        // SAFETY: dropped once, here; no region that was made of it is held.
        unsafe { ManuallyDrop::drop(&mut self.area) };
    }
}

/// Why host memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The address space or a limit leaves no room.
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
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel does not say what is in memory.
    #[error("cannot count the resident pages of {bytes} of guest memory")]
    Resident {
        /// Size of the memory in question.
        bytes: ByteSize,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Only all of the memory can be given back.
    #[error("memory with the backing `hugetlbfs` does not go back page by page: expected `none` or `thp`")]
    PagesStay,
    /// The range is not in the mapping, or cuts through a unit.
    #[error("{bytes} bytes at {offset:#x}: expected multiples of {unit} in a mapping of {mapping}, and not zero bytes")]
    NoRange {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        bytes: u64,
        /// Both have to be multiples of it.
        unit: u64,
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

/// How memory that nothing backs yet may be accessed: huge pages come with [`HostMapping::back`], and a guest that reads
/// there before gets zeros.
fn access(backing: Backing) -> Access {
    if backing == Backing::Hugetlbfs { Access::Read } else { Access::Write }
}

/// Whether another holder has `region` or the mapping inside it.
fn is_held(region: &mut Arc<GuestRegionMmap>) -> bool {
    is_held_beside(region, |_| 0)
}

/// Whether another holder has `region` or, beside those that `known` counts, the mapping inside it.
fn is_held_beside(region: &mut Arc<GuestRegionMmap>, known: impl Fn(&MmapRegion) -> usize) -> bool {
    let Some(region) = Arc::get_mut(region) else { return true };
    let mapping = region.get_mmap();
    // One count is the region's, one is ours.
    let held = Arc::strong_count(&mapping) > 2 + known(&mapping) || Arc::weak_count(&mapping) != 0;
    // Whatever the last holder did with the memory happened before it let go.
    fence(Ordering::Acquire);
    held
}

#[cfg(test)]
#[path = "mapping_test.rs"]
mod tests;
