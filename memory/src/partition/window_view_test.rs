use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::GuestMemory;
use crate::host::Backing;
use crate::view::Follower;

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

/// Notes the lists it is told, as (address, bytes), and refuses those that are longer than it may have.
struct Recorder {
    most: usize,
    told: Mutex<Vec<Vec<(u64, u64)>>>,
}

impl Recorder {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, told: Mutex::default() })
    }

    fn last(&self) -> Vec<(u64, u64)> {
        self.told.lock().last().cloned().unwrap()
    }
}

impl Follower for Recorder {
    fn follow(&self, regions: &[Arc<GuestRegionMmap>]) -> Result<(), FollowError> {
        if regions.len() > self.most {
            return Err(format!("{} regions", regions.len()).into());
        }
        let list = regions.iter().map(|region| (region.start_addr().0, region.len())).collect();
        self.told.lock().push(list);
        Ok(())
    }
}

fn list(view: &GuestView) -> Vec<(u64, u64)> {
    view.memory().iter().map(|region| (region.start_addr().0, region.len())).collect()
}

#[test]
fn a_follower_has_what_devices_see_from_the_first_moment_to_the_last() {
    let (view, window) = window(16);
    let range = |first, count| BlockRange::new(first, count).unwrap();
    window.reveal(&[range(0, 4)]).unwrap();
    let recorder = Recorder::new(100);
    let following = view.follow(recorder.clone()).unwrap();
    assert_eq!(recorder.last(), list(&view), "at once");
    window.revoke(&[range(1, 1)]).unwrap();
    assert_eq!((recorder.last(), recorder.last().len()), (list(&view), 4));
    assert!(window.drain(range(1, 1), Duration::ZERO), "it holds no region");
    window.reveal(&[range(1, 1), range(8, 2)]).unwrap();
    assert_eq!((recorder.last(), recorder.last().len()), (list(&view), 4));
    let told = recorder.told.lock().len();
    drop(following);
    window.revoke_all();
    assert_eq!(recorder.told.lock().len(), told, "it follows no longer");
    assert_eq!(Arc::strong_count(&recorder), 1);
}

#[test]
fn a_change_that_a_follower_refuses_is_none() {
    let (view, window) = window(16);
    let range = |first, count| BlockRange::new(first, count).unwrap();
    window.reveal(&[range(0, 4)]).unwrap();
    let (first, second) = (Recorder::new(100), Recorder::new(3));
    let _first = view.follow(first.clone()).unwrap();
    let _second = view.follow(second.clone()).unwrap();
    let before = list(&view);
    for refused in [window.revoke(&[range(1, 1)]), window.reveal(&[range(8, 2)])] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, ViewError::Follower(source) if source.to_string() == "4 regions"), "{error:?}");
        assert_eq!((list(&view), first.last(), second.last()), (before.clone(), before.clone(), before.clone()));
    }
    assert_eq!(first.told.lock().len(), 5, "it was told, and told otherwise");
    window.revoke(&[range(3, 1)]).unwrap();
    assert_eq!((first.last(), second.last()), (list(&view), list(&view)), "what it refused is forgotten");

    let third = Recorder::new(2);
    assert_eq!(view.follow(third.clone()).err().unwrap().to_string(), "3 regions");
    window.revoke_all();
    assert!(third.told.lock().is_empty(), "who refuses does not follow");
}
