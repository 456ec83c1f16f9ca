use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::GuestMemory;
use crate::host::Backing;

const START: GuestAddress = GuestAddress(4 << 30);

/// A window of `blocks` blocks in a view of some base memory.
fn window(blocks: u32) -> (GuestView, WindowView) {
    let base = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 40), 1 << 20)]).unwrap();
    let view = GuestView::new(base);
    let mapping = HostMapping::reserve(u64::from(blocks) * BLOCK.get(), Backing::None).unwrap();
    let window = WindowView::new(view.clone(), START, Arc::new(mapping));
    (view, window)
}

/// Every other block.
fn alternating(blocks: u32) -> Vec<BlockRange> {
    (0..blocks).step_by(2).filter_map(|block| BlockRange::new(block, 1)).collect()
}

#[test]
fn a_change_keeps_what_is_beside_it() {
    let (view, window) = window(16);
    let range = |first, count| BlockRange::new(first, count).unwrap();
    window.reveal(&[range(0, 4), range(8, 2)]).unwrap();
    let before = view.memory();
    window.revoke(&[range(1, 1)]).unwrap();
    let regions = |memory: &GuestMemory| -> Vec<_> {
        memory.iter().map(|region| (region.start_addr().0.wrapping_sub(START.0) / BLOCK.get(), region.len())).collect()
    };
    let after = view.memory();
    assert_eq!(regions(&after)[1..4], [(0, BLOCK.get()), (2, 2 * BLOCK.get()), (8, 2 * BLOCK.get())]);
    assert_eq!(after.num_regions(), 5);
    let at = |memory: &GuestMemory, address| std::ptr::from_ref(memory.find_region(address).unwrap()).addr();
    for address in [GuestAddress(0), GuestAddress(START.0 + 8 * BLOCK.get()), GuestAddress(1 << 40)] {
        assert_eq!(at(&before, address), at(&after, address), "no new region for what did not change");
    }
    drop(after);
    assert!(!window.drain(range(1, 1), Duration::ZERO), "the old snapshot is still held");
    drop(before);
    assert!(window.drain(range(1, 1), Duration::ZERO));
    window.revoke_all();
    assert_eq!(view.memory().num_regions(), 2);
}

#[test]
fn regions_that_others_changed_are_not_brought_back() {
    let (view, window) = window(4);
    window.reveal(&[BlockRange::new(0, 1).unwrap()]).unwrap();
    let (rest, _) = view.memory().remove_region(GuestAddress(1 << 40), 1 << 20).unwrap();
    view.lock().unwrap().replace(rest);
    window.reveal(&[BlockRange::new(2, 1).unwrap()]).unwrap();
    assert_eq!(view.memory().num_regions(), 3);
}

#[test]
fn a_change_of_many_pieces_writes_the_list_once() {
    for blocks in [64, 1024] {
        let (view, window) = window(blocks);
        let pieces = alternating(blocks);
        let written = |view: &GuestView| view.regions_written();
        let start = written(&view);
        window.reveal(&pieces).unwrap();
        let pieces_and_base = pieces.len() as u64 + 2;
        assert_eq!(written(&view) - start, pieces_and_base);
        window.revoke(&pieces[1..]).unwrap();
        assert_eq!(written(&view) - start, pieces_and_base + 3);
        window.reveal(&pieces[1..]).unwrap();
        assert_eq!(written(&view) - start, 2 * pieces_and_base + 3);
        assert_eq!(view.memory().num_regions() as u64, pieces_and_base);
    }
}
