//! How much host memory lies under guest memory.

use std::io;
use std::ops::Range;

use bellows_memory::GuestView;
use bellows_memory::host;
use vm_memory::{Address as _, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a part of memory that is asked about at a time.
const PART: usize = 256 << 20;

/// Bytes of host memory under what `view` has in a range of guest-physical addresses: base memory and plugged memory. A snapshot of
/// the view is held for one part at a time, so that an unplug waits for no more than that.
///
/// # Errors
/// The kernel cannot tell.
pub(crate) fn resident_bytes(view: &GuestView, range: Range<u64>) -> io::Result<u64> {
    let (mut resident, mut at) = (0, range.start);
    loop {
        let memory = view.memory();
        // The first region that does not end before `at`.
        let found = memory.iter().find(|region| region.last_addr().raw_value() >= at);
        let Some(region) = found.filter(|region| region.start_addr().0.max(at) < range.end) else {
            return Ok(resident);
        };
        let offset = at.saturating_sub(region.start_addr().0);
        let within = region.len().min(range.end - region.start_addr().0) - offset;
        let length = usize::try_from(within).map_err(io::Error::other)?.min(PART);
        let address = region.as_ptr() as u64 + offset;
        resident += host::resident_bytes(address, length)?;
        at = region.start_addr().0 + offset + length as u64;
    }
}

#[cfg(test)]
mod tests {
    use bellows_memory::base::BaseMemory;
    use bellows_memory::{Backing, ByteSize, Layout};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::arch::layout;

    #[test]
    fn counts_the_pages_that_were_touched() {
        let layout = Layout::new(&layout::spec(ByteSize::gib(4), vec![], 40)).unwrap();
        let base = BaseMemory::map(&layout, Backing::None).unwrap();
        let resident = |range: Range<u64>| resident_bytes(base.view(), range).unwrap();
        assert_eq!(resident(0..u64::MAX), 0);
        let memory = base.view().memory();
        for address in [0, 4095, 4096, (300 << 20) + 5, (5 << 30) - 8] {
            memory.write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        drop(memory);
        assert_eq!(resident(0..u64::MAX), 4 * 4096);
        assert_eq!(resident((4 << 30) + 4096..u64::MAX), 4096);
        assert_eq!(resident(6 << 30..u64::MAX), 0);
        assert_eq!(resident(0..4096), 4096);
        assert_eq!(resident(4096..300 << 20), 4096);
        assert_eq!(resident(8192..8192), 0);
    }
}
