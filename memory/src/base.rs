//! The memory a VM boots with.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::AddressRange;
use crate::host::{Backing, HostMapping, MapError};
use crate::layout::Layout;
use crate::slots::Slot;
use crate::{BaseDiscard, GuestMemory, GuestView, Version};

/// Base memory: mapped as long as the VM lives. Its driver gives pages back through [`BaseMemory::discard`].
pub struct BaseMemory {
    // Declared before the mapping: the view's regions go first.
    view: GuestView,
    slots: Vec<Slot>,
    mapping: Arc<HostMapping>,
}

impl BaseMemory {
    /// Maps the base memory of `layout`.
    ///
    /// # Errors
    /// The host has no room, or too few huge pages.
    pub fn map(layout: &Layout, backing: Backing) -> Result<Self, MapError> {
        let bytes = layout.base().map(AddressRange::bytes).sum();
        let mapping = HostMapping::reserve(bytes, backing)?;
        mapping.back(0, bytes)?;
        let mut offset = 0;
        let mut memory = GuestMemory::default();
        let mut slots = Vec::new();
        for range in layout.base() {
            let region = mapping.region(offset, range.bytes(), range.start())?;
            // The ranges of a layout do not overlap.
            memory = memory.insert_region(region).unwrap_or(memory);
            slots.push(Slot {
                guest: range.start(),
                host: mapping.host_address(offset),
                bytes: range.bytes(),
                read_only: false,
            });
            offset += range.bytes();
        }
        Ok(Self { view: GuestView::new(memory), slots, mapping: Arc::new(mapping) })
    }

    /// Where it lies, as plain data. The contents are not part of it.
    #[must_use]
    pub fn save(&self) -> BaseMemoryState {
        let range = |slot: &Slot| AddressRange::new(slot.guest.0, slot.bytes);
        BaseMemoryState { version: Version, ranges: self.slots.iter().filter_map(range).collect() }
    }

    /// Maps base memory that lies where `state` was saved; it holds zeros, for the caller to fill before a vCPU runs.
    ///
    /// # Errors
    /// `layout` has base memory elsewhere, or the host has no room.
    pub fn restore(layout: &Layout, backing: Backing, state: &BaseMemoryState) -> Result<Self, RestoreBaseError> {
        let expected: Vec<_> = layout.base().collect();
        if state.ranges != expected {
            return Err(RestoreBaseError::Elsewhere {
                found: Ranges(state.ranges.clone()),
                expected: Ranges(expected),
            });
        }
        Ok(Self::map(layout, backing)?)
    }

    /// The view of guest memory to give to devices; partitions come and go in it.
    #[must_use]
    pub fn view(&self) -> &GuestView {
        &self.view
    }

    /// The slots to set before a vCPU runs.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// A way to give parts of it back to the host while the guest runs.
    ///
    /// # Errors
    /// [`MapError::PagesStay`]: the backing allows no parts.
    pub fn discard(&self) -> Result<BaseDiscard, MapError> {
        BaseDiscard::new(self.mapping.clone(), self.save().ranges)
    }

    /// The host memory behind it.
    #[must_use]
    pub fn mapping(&self) -> &Arc<HostMapping> {
        &self.mapping
    }
}

/// Base memory as plain data, to save and to restore.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BaseMemoryState {
    /// Version of this type.
    pub version: Version<1>,
    /// Where it lies, in order of address.
    pub ranges: Vec<AddressRange>,
}

/// Why base memory was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreBaseError {
    /// The guest would not find its memory.
    #[error("the state has base memory at {found}: expected {expected}")]
    Elsewhere {
        /// The state's.
        found: Ranges,
        /// The layout's.
        expected: Ranges,
    },
    /// The host has no room, or too few huge pages.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Ranges of addresses, in words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ranges(pub Vec<AddressRange>);

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

    use super::*;
    use crate::{ByteSize, LayoutSpec};

    #[test]
    fn base_memory_lies_around_the_hole_and_is_one_mapping() {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(4), vec![], 40)).unwrap();
        let base = BaseMemory::map(&layout, Backing::None).unwrap();
        let slots: Vec<_> = base.slots().iter().map(|slot| (slot.guest.0, slot.bytes)).collect();
        assert_eq!(slots, [(0, 3 << 30), (4 << 30, 1 << 30)]);
        assert_eq!(base.slots()[1].host, base.slots()[0].host + (3 << 30));
        let memory = base.view().memory();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7_u32, GuestAddress((5 << 30) - 4)).unwrap();
        assert!(memory.write_obj(7_u32, GuestAddress(3 << 30)).is_err());
        assert_eq!(base.mapping().resident(3 << 30, 1 << 30).unwrap(), 4096);
    }

    #[test]
    fn base_memory_is_restored_where_it_was() {
        let layout = |base| Layout::new(&LayoutSpec::x86_64(base, vec![], 40)).unwrap();
        let state = BaseMemory::map(&layout(ByteSize::gib(4)), Backing::None).unwrap().save();
        let text = serde_json::to_string(&state).unwrap();
        let state: BaseMemoryState = serde_json::from_str(&text).unwrap();
        let restore = |base, state: &BaseMemoryState| BaseMemory::restore(&layout(base), Backing::None, state);
        assert_eq!(restore(ByteSize::gib(4), &state).unwrap().save(), state);
        let refused = |base, state: &BaseMemoryState| restore(base, state).map(drop).unwrap_err().to_string();
        assert_eq!(
            refused(ByteSize::gib(2), &state),
            "the state has base memory at 0x0..=0xbfffffff, 0x100000000..=0x13fffffff: expected 0x0..=0x7fffffff"
        );
        let other = text.replace(r#""version":1"#, r#""version":2"#);
        let error = serde_json::from_str::<BaseMemoryState>(&other).unwrap_err().to_string();
        assert!(error.starts_with("the state's version is 2: expected 1"), "{error}");
    }
}
