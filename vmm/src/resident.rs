//! How much host memory lies under guest memory.

use std::io;

use bellows_memory::{GuestMemory, GuestView};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

const PAGE: usize = 4096;
/// Pages asked about in one system call.
const PAGES: usize = 64 << 10;

/// Bytes under all that `view` shows now: base memory and what is plugged.
///
/// # Errors
/// The kernel can't tell.
pub(crate) fn resident_bytes(view: &GuestView) -> io::Result<u64> {
    let memory = view.memory();
    let memory: &GuestMemory = &memory;
    memory.iter().map(region).sum()
}

fn region(region: &GuestRegionMmap) -> io::Result<u64> {
    let mut states = vec![0_u8; PAGES];
    let bytes = usize::try_from(region.len()).map_err(io::Error::other)?;
    let mut resident = 0;
    for start in (0..bytes).step_by(PAGES * PAGE) {
        let length = (PAGES * PAGE).min(bytes - start);
        // SAFETY: the chunk lies in the region, whose mapping outlives the borrow, and `states` has a byte for each of its
        // pages.
        let result = unsafe { libc::mincore(region.as_ptr().add(start).cast(), length, states.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = states[..length.div_ceil(PAGE)].iter().filter(|state| *state & 1 != 0).count();
        resident += (pages * PAGE) as u64;
    }
    Ok(resident)
}

#[cfg(test)]
mod tests {
    use bellows_memory::base::BaseMemory;
    use bellows_memory::{Backing, ByteSize, Layout, LayoutSpec};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn counts_the_pages_that_were_touched() {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(4), vec![], 40)).unwrap();
        let base = BaseMemory::map(&layout, Backing::None).unwrap();
        assert_eq!(resident_bytes(base.view()).unwrap(), 0);
        let memory = base.view().memory();
        for address in [0, 4095, 4096, (300 << 20) + 5, (5 << 30) - 8] {
            memory.write_obj(1_u8, GuestAddress(address)).unwrap();
        }
        drop(memory);
        assert_eq!(resident_bytes(base.view()).unwrap(), 4 * 4096);
    }
}
