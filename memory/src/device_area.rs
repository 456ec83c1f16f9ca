//! Guest-physical addresses for memory that devices bring, above all other memory.
//!
//! ```
//! use bellows_memory::address::AddressRange;
//! use bellows_memory::device_area::DeviceArea;
//! use bellows_memory::ByteSize;
//!
//! let area = DeviceArea::new(AddressRange::new(1 << 40, 1 << 30).ok_or("no range")?);
//! let memory = area.take(ByteSize::mib(2))?;
//! assert_eq!(memory.start().0 % (2 << 20), 0);
//! // The addresses are free again once it is dropped.
//! drop(memory);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::GuestAddress;

use crate::ByteSize;
use crate::address::AddressRange;
use crate::sync::Mutex;

/// What device memory begins at a multiple of: the unit in which Linux keeps track of memory on x86-64 (`SECTION_SIZE_BITS`),
/// so that no two devices share one.
const ALIGNMENT: u64 = 128 << 20;

/// Hands out parts of [`crate::Layout::devices`].
pub struct DeviceArea {
    range: AddressRange,
    /// End of what is taken, by its start.
    taken: Mutex<BTreeMap<u64, u64>>,
}

/// Addresses of one device; free again when this is dropped.
pub struct DeviceMemory {
    area: Arc<DeviceArea>,
    start: u64,
}

impl DeviceArea {
    /// All of `range`.
    #[must_use]
    pub fn new(range: AddressRange) -> Arc<Self> {
        Arc::new(Self { range, taken: Mutex::default() })
    }

    /// Takes the lowest addresses at which there is room.
    ///
    /// # Errors
    /// The area is too full.
    pub fn take(self: &Arc<Self>, wanted: ByteSize) -> Result<DeviceMemory, NoRoom> {
        let mut taken = self.taken.lock();
        let end_at = |start: u64| start.checked_add(wanted.get());
        let mut start = self.range.start().0.checked_next_multiple_of(ALIGNMENT);
        for (&next, &end) in &*taken {
            if start.and_then(end_at).is_some_and(|end| end <= next) {
                break;
            }
            start = end.checked_next_multiple_of(ALIGNMENT);
        }
        let found = start.and_then(|start| Some((start, end_at(start)?)));
        let (start, end) = found
            .filter(|(_, end)| *end <= self.range.end().0)
            .ok_or(NoRoom { wanted, area: ByteSize::bytes(self.range.bytes()) })?;
        taken.insert(start, end);
        Ok(DeviceMemory { area: self.clone(), start })
    }
}

impl DeviceMemory {
    /// First address; a multiple of 128 MiB.
    #[must_use]
    pub fn start(&self) -> GuestAddress {
        GuestAddress(self.start)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.area.taken.lock().remove(&self.start);
    }
}

/// The area is too full for a device's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no room for {wanted} of device memory in the guest's address space: there are {area}, less what is taken")]
pub struct NoRoom {
    /// What was asked for.
    pub wanted: ByteSize,
    /// What there is in all.
    pub area: ByteSize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, LayoutSpec};

    const GIB: u64 = 1 << 30;

    /// From 5 GiB to 64 GiB.
    fn area() -> Arc<DeviceArea> {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), vec![], 36)).unwrap();
        DeviceArea::new(layout.devices())
    }

    #[test]
    fn neighbours_share_no_section() {
        let area = area();
        let taken: Vec<_> = [2, 130, 128, 2].map(|mib| area.take(ByteSize::mib(mib)).unwrap()).into();
        let starts: Vec<_> = taken.iter().map(|memory| (memory.start().0 - 5 * GIB) >> 20).collect();
        assert_eq!(starts, [0, 128, 384, 512]);
    }

    #[test]
    fn what_was_given_back_is_taken_again() {
        let area = area();
        let mut taken: Vec<_> = (0..3).map(|_| area.take(ByteSize::mib(256)).unwrap()).collect();
        let middle = taken.remove(1).start();
        assert_eq!(area.take(ByteSize::mib(258)).unwrap().start().0, 5 * GIB + (768 << 20), "the gap is too small");
        assert_eq!(area.take(ByteSize::mib(256)).unwrap().start(), middle);
    }

    #[test]
    fn a_full_area_says_so() {
        let area = area();
        let most = area.take(ByteSize::gib(59)).unwrap();
        let error = area.take(ByteSize::mib(2)).map(|memory| memory.start()).unwrap_err();
        assert!(error.to_string().contains("2 MiB") && error.to_string().contains("59 GiB"), "{error}");
        drop(most);
        for wanted in [ByteSize::bytes(59 * GIB + 1), ByteSize::bytes(u64::MAX)] {
            assert!(area.take(wanted).is_err(), "{wanted}");
        }
        assert!(area.take(ByteSize::gib(59)).is_ok());
    }
}
