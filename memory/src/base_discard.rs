//! Giving parts of base memory back to the host while the guest runs.
//!
//! The guest names them by their addresses, through its balloon. Only base memory goes this way: a partition goes back as a
//! whole, and its window is not in the ranges here.

use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::ByteSize;
use crate::address::AddressRange;
use crate::host::{HostMapping, MapError, PAGE};

/// Discards pages of base memory. Cheap to clone.
#[derive(Clone)]
pub struct BaseDiscard {
    mapping: Arc<HostMapping>,
    /// All base memory, in order of address; it lies in the mapping in this order and without gaps.
    ranges: Arc<[AddressRange]>,
}

impl BaseDiscard {
    pub(crate) fn new(mapping: Arc<HostMapping>, ranges: Vec<AddressRange>) -> Result<Self, MapError> {
        mapping.check_pages_go()?;
        Ok(Self { mapping, ranges: ranges.into() })
    }

    /// The size of base memory.
    #[must_use]
    pub fn base(&self) -> ByteSize {
        ByteSize::bytes(self.mapping.bytes())
    }

    /// Gives `bytes` at `start` back to the host: they read as zeros afterwards, and cost host memory when they are touched
    /// again. Returns how many of them had host memory. Allocates nothing.
    ///
    /// # Errors
    /// The range is not made of whole pages of base memory, and nothing changed; or the kernel refused.
    pub fn discard(&self, start: GuestAddress, bytes: u64) -> Result<ByteSize, DiscardError> {
        let outside = DiscardError::Outside { start: start.0, bytes };
        let offset = self.offset(start, bytes).ok_or(outside)?;
        self.mapping.discard_pages(offset, bytes).map(ByteSize::bytes).map_err(DiscardError::Host)
    }

    /// Where the range lies in the mapping.
    fn offset(&self, start: GuestAddress, bytes: u64) -> Option<u64> {
        let aligned = start.0.is_multiple_of(PAGE as u64) && bytes.is_multiple_of(PAGE as u64);
        let wanted = AddressRange::new(start.0, bytes).filter(|_| aligned)?;
        let mut offset = 0;
        for range in &*self.ranges {
            if range.contains(wanted) {
                return Some(offset + (start.0 - range.first()));
            }
            offset += range.bytes();
        }
        None
    }
}

/// Why memory was not discarded.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// The guest named memory that cannot go this way.
    #[error("{bytes} bytes at {start:#x}: expected whole pages of base memory")]
    Outside {
        /// First guest-physical address.
        start: u64,
        /// Bytes from there on.
        bytes: u64,
    },
    /// The host refused.
    #[error(transparent)]
    Host(MapError),
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddressSpace as _};

    use super::*;
    use crate::{Backing, BaseMemory, Layout, LayoutSpec};

    const GIB: u64 = 1 << 30;

    /// 4 GiB around the device hole, and a partition behind them.
    fn layout() -> Layout {
        Layout::new(&LayoutSpec::x86_64(ByteSize::gib(4), vec![ByteSize::gib(1)], 40)).unwrap()
    }

    #[test]
    fn pages_on_both_sides_of_the_hole_go_back() {
        let base = BaseMemory::map(&layout(), Backing::None).unwrap();
        let discard = base.discard().unwrap();
        assert_eq!(discard.base(), ByteSize::gib(4));
        let memory = base.view().memory();
        let pages = [0, 4096, 3 * GIB - 4096, 4 * GIB, 4 * GIB + 4096, 5 * GIB - 4096];
        for address in pages {
            memory.write_obj(address | 1, GuestAddress(address)).unwrap();
        }
        for address in [0, 3 * GIB - 4096, 4 * GIB + 4096] {
            assert_eq!(discard.discard(GuestAddress(address), 4096).unwrap(), ByteSize::kib(4));
            assert_eq!(discard.discard(GuestAddress(address), 4096).unwrap(), ByteSize::bytes(0));
        }
        let values = pages.map(|address| memory.read_obj::<u64>(GuestAddress(address)).unwrap());
        assert_eq!(values, [0, 4097, 0, 4 * GIB + 1, 0, 5 * GIB - 4095]);
        // All above the hole at once: three pages that were written, one of them gone and read again.
        assert_eq!(discard.discard(GuestAddress(4 * GIB), GIB).unwrap(), ByteSize::kib(12));
    }

    #[test]
    fn all_that_is_not_whole_pages_of_base_memory_is_refused() {
        let layout = layout();
        let base = BaseMemory::map(&layout, Backing::None).unwrap();
        let discard = base.discard().unwrap();
        base.view().memory().write_slice(&[7; 8192], GuestAddress(0)).unwrap();
        let window = layout.windows()[0].range().start().0;
        for (start, bytes) in [
            (0, 0),
            (1, 4096),
            (4096, 4095),
            (3 * GIB, 4096),
            (3 * GIB - 4096, 8192),
            // In the mapping this would be one range.
            (3 * GIB - 4096, GIB + 8192),
            (4 * GIB - 4096, 4096),
            (5 * GIB, 4096),
            (window, 4096),
            (0, 6 * GIB),
            (u64::MAX - 4095, 4096),
            (u64::MAX - 4095, 8192),
            (0, u64::MAX - 4095),
        ] {
            let error = discard.discard(GuestAddress(start), bytes).unwrap_err();
            assert!(matches!(error, DiscardError::Outside { .. }), "{start:#x}: {error}");
        }
        assert_eq!(base.mapping().resident(0, 4 * GIB).unwrap(), 8192);
    }

    #[test]
    fn a_pool_of_huge_pages_is_refused_by_name() {
        let mapping = Arc::new(HostMapping::reserve(2 << 20, Backing::Hugetlbfs).unwrap());
        let error = BaseDiscard::new(mapping, Vec::new()).err().unwrap();
        assert!(error.to_string().contains("`hugetlbfs`"), "{error}");
    }
}
