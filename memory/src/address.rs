//! Ranges of an address space.
//!
//! ```
//! use bellows_memory::address::AddressRange;
//!
//! let ram = AddressRange::new(0x10_0000, 0x10_0000).ok_or("empty, or beyond the last address")?;
//! let slot = AddressRange::new(0x18_0000, 0x1000).ok_or("empty, or beyond the last address")?;
//! assert!(ram.contains(slot) && slot.overlaps(ram));
//! assert_eq!((ram.last(), ram.end().0), (0x1f_ffff, 0x20_0000));
//! # Ok::<(), &str>(())
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

/// A range of addresses, never empty, never past the end of the address space.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "Plain", into = "Plain")]
pub struct AddressRange {
    first: u64,
    last: u64,
}

impl AddressRange {
    /// `bytes` addresses from `first` on; `None` if that is empty or runs past the end of the address space.
    #[must_use]
    pub const fn new(first: u64, bytes: u64) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        match first.checked_add(bytes - 1) {
            Some(last) => Some(Self { first, last }),
            None => None,
        }
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.last
    }

    /// The first address, of guest-physical memory.
    #[must_use]
    pub const fn start(self) -> GuestAddress {
        GuestAddress(self.first)
    }

    /// The address after the last, of guest-physical memory. A range that reaches the end of a 64-bit address space has none;
    /// then this is the last address.
    #[must_use]
    pub const fn end(self) -> GuestAddress {
        GuestAddress(self.last.saturating_add(1))
    }

    /// Length in bytes; `u64::MAX` for all 2^64 of them.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether all of `other` lies in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether any address is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first, self.last)
    }
}

/// A range of addresses as it is written down.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    first: u64,
    bytes: u64,
}

/// Numbers that are not a range of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{bytes} addresses from {first:#x} on: expected at least one, and none beyond {:#x}", u64::MAX)]
pub struct NoRange {
    /// The first address.
    pub first: u64,
    /// Number of addresses.
    pub bytes: u64,
}

impl From<AddressRange> for Plain {
    fn from(range: AddressRange) -> Self {
        Self { first: range.first, bytes: range.bytes() }
    }
}

impl TryFrom<Plain> for AddressRange {
    type Error = NoRange;

    fn try_from(Plain { first, bytes }: Plain) -> Result<Self, NoRange> {
        Self::new(first, bytes).ok_or(NoRange { first, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_neither_empty_nor_past_the_end() {
        assert_eq!(AddressRange::new(4096, 0), None);
        assert_eq!(AddressRange::new(u64::MAX, 2), None);
        let last = AddressRange::new(u64::MAX, 1).unwrap();
        assert_eq!((last.first(), last.last(), last.bytes()), (u64::MAX, u64::MAX, 1));
        let range = AddressRange::new(0x1000, 0x2000).unwrap();
        assert_eq!((range.start().0, range.end().0, range.bytes()), (0x1000, 0x3000, 0x2000));
        assert_eq!(range.to_string(), "0x1000..=0x2fff");
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let range = |first, bytes| AddressRange::new(first, bytes).unwrap();
        assert!(!range(0, 4).overlaps(range(4, 4)) && range(0, 5).overlaps(range(4, 4)));
        assert!(range(0, 8).contains(range(4, 4)) && !range(0, 8).contains(range(4, 5)));
    }
}
