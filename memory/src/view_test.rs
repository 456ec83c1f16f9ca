use vm_memory::Bytes;

use super::*;

fn view() -> GuestView {
    GuestView::new(GuestMemory::from_ranges(&[(GuestAddress(0), 8192), (GuestAddress(8192), 4096)]).unwrap())
}

#[test]
fn what_is_pinned_can_be_used_without_a_snapshot() {
    let view = view();
    let memory = view.memory();
    let pinned = view.pin(&memory, [(GuestAddress(8190), 4), (GuestAddress(0), 1), (GuestAddress(100), 0)]).unwrap();
    drop(memory);
    let slices: Vec<_> = pinned.slices().map(|slice| slice.len()).collect();
    assert_eq!(slices, [2, 2, 1], "a piece may lie in several regions");
    for (number, slice) in (1_u8..).zip(pinned.slices()) {
        slice.copy_from(&vec![number; slice.len()]);
    }
    let mut bytes = [0; 4];
    view.memory().read_slice(&mut bytes, GuestAddress(8190)).unwrap();
    assert_eq!(bytes, [1, 1, 2, 2]);
    assert_eq!(view.memory().read_obj::<u8>(GuestAddress(0)).unwrap(), 3);
}

#[test]
fn pins_count_where_they_are_and_as_long_as_they_are() {
    let view = view();
    let memory = view.memory();
    let first = view.pin(&memory, [(GuestAddress(100), 100), (GuestAddress(9000), 8)]).unwrap();
    let second = view.clone().pin(&memory, [(GuestAddress(150), 100)]).unwrap();
    let pinned = |start, bytes| view.is_pinned(GuestAddress(start), bytes);
    assert!(pinned(0, 101) && pinned(199, 1) && pinned(249, 1) && pinned(9000, 1) && pinned(0, u64::MAX));
    assert!(!pinned(0, 100) && !pinned(250, 8750) && !pinned(9008, u64::MAX));
    drop(first);
    assert!(!pinned(100, 50) && pinned(150, 1) && !pinned(9000, 8));
    drop(second);
    assert!(!pinned(0, u64::MAX));
}

#[test]
fn what_is_not_there_can_not_be_pinned() {
    let view = view();
    let memory = view.memory();
    for (address, bytes) in [(12_288, 1), (12_287, 2), (u64::MAX, 1), (0, usize::MAX)] {
        assert!(view.pin(&memory, [(GuestAddress(0), 8), (GuestAddress(address), bytes)]).is_err(), "{address:#x}");
    }
    assert!(!view.is_pinned(GuestAddress(0), u64::MAX), "nothing is left of an attempt");
}
