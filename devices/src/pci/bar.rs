//! Allocates addresses for the BARs of a new function.

use std::collections::BTreeMap;

use bellows_memory::AddressRange;

/// Hands out naturally aligned ranges of a window, lowest first.
#[derive(Clone, Debug)]
pub struct BarAllocator {
    window: AddressRange,
    /// First address and length of each range. The ranges are disjoint.
    taken: BTreeMap<u64, u64>,
}

impl BarAllocator {
    /// An allocator with all of `window` free.
    #[must_use]
    pub const fn new(window: AddressRange) -> Self {
        Self { window, taken: BTreeMap::new() }
    }

    /// The window.
    #[must_use]
    pub const fn window(&self) -> AddressRange {
        self.window
    }

    /// Allocates `bytes` (a power of two), aligned to their size; `None` if the window has no room for them.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let mut at = self.window.first().checked_next_multiple_of(bytes)?;
        for (&first, &len) in &self.taken {
            if at.checked_add(bytes)? <= first {
                break;
            }
            // All ranges lie in the window, so their end does not overflow.
            at = at.max((first + len).checked_next_multiple_of(bytes)?);
        }
        let range = AddressRange::new(at, bytes)?;
        if !self.window.contains(range) {
            return None;
        }
        self.taken.insert(at, bytes);
        Some(at)
    }

    /// Takes a range that [`BarAllocator::allocate`] once handed out. Returns `false` if it is not free, not aligned or not in
    /// the window.
    pub fn take(&mut self, address: u64, bytes: u64) -> bool {
        let Some(range) = AddressRange::new(address, bytes).filter(|range| self.window.contains(*range)) else {
            return false;
        };
        // Ranges are disjoint, so only the last one that begins at or below the new range's end can overlap it.
        let below = self.taken.range(..=range.last()).next_back();
        let overlaps = below.is_some_and(|(&first, &len)| first + (len - 1) >= range.first());
        if overlaps || !address.is_multiple_of(bytes) {
            return false;
        }
        self.taken.insert(address, bytes);
        true
    }

    /// Frees the range at `address`.
    pub fn free(&mut self, address: u64) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_lowest_aligned_room() {
        let mut bars = BarAllocator::new(AddressRange::new(0xc000_1000, 0x1_f000).unwrap());
        assert_eq!(bars.allocate(0x8000), Some(0xc000_8000));
        assert_eq!(bars.allocate(0x1000), Some(0xc000_1000));
        assert_eq!(bars.allocate(0x8000), Some(0xc001_0000));
        assert_eq!(bars.allocate(0x8000), Some(0xc001_8000));
        assert_eq!(bars.allocate(0x8000), None);
        bars.free(0xc001_0000);
        assert_eq!(bars.allocate(0x8000), Some(0xc001_0000));
        assert_eq!(bars.allocate(1 << 63), None);
    }

    proptest! {
        #[test]
        fn never_overlaps(steps in prop::collection::vec((0u32..18, any::<prop::sample::Index>(), any::<bool>()), 1..80)) {
            let window = AddressRange::new(0xffff_ffff_ffe0_0000, 0x20_0000).unwrap();
            let mut bars = BarAllocator::new(window);
            let mut held: Vec<AddressRange> = Vec::new();
            for (shift, which, free) in steps {
                if free && !held.is_empty() {
                    bars.free(held.swap_remove(which.index(held.len())).first());
                } else if let Some(at) = bars.allocate(1 << shift) {
                    prop_assert!(at.is_multiple_of(1 << shift));
                    let range = AddressRange::new(at, 1 << shift).unwrap();
                    prop_assert!(window.contains(range));
                    prop_assert!(held.iter().all(|other| !other.overlaps(range)));
                    held.push(range);
                }
            }
        }
    }
}
