//! The memory a VM boots with.

use std::sync::Arc;

use crate::address::AddressRange;
use crate::host::{Backing, HostMapping, MapError};
use crate::layout::Layout;
use crate::slots::Slot;
use crate::{GuestMemory, GuestView};

/// Base memory: mapped, and never given back before the VM ends.
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

    /// The host memory behind it.
    #[must_use]
    pub fn mapping(&self) -> &Arc<HostMapping> {
        &self.mapping
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
}
