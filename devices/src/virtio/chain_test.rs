use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::Bytes as _;

use super::*;

proptest! {
    /// Cutting a part out of segments is cutting it out of the bytes they name.
    #[test]
    fn parts_are_parts_of_the_bytes(
        segments in vec((0_u64..1 << 40, 0_u32..64), 0..8),
        skip in 0_u64..200,
        take in 0_u64..200,
    ) {
        let segments: Vec<_> =
            segments.into_iter().map(|(a, bytes)| Segment { address: GuestAddress(a), bytes }).collect();
        let bytes = |segments: &[Segment]| -> Vec<u64> {
            segments.iter().flat_map(|s| (0..u64::from(s.bytes)).map(|n| s.address.0 + n)).collect()
        };
        let mut list = Segments::with_capacity(0);
        segments.iter().for_each(|segment| list.push(*segment));
        let pieces: Vec<_> = list.part(skip, take).collect();
        prop_assert!(pieces.iter().all(|piece| piece.bytes > 0));
        let expected: Vec<_> = bytes(&segments).into_iter().skip(skip as usize).take(take as usize).collect();
        prop_assert_eq!(bytes(&pieces), expected);
        prop_assert_eq!(list.bytes(), bytes(&segments).len() as u64);
    }
}

#[test]
fn a_descriptor_does_not_go_on_at_the_first_address_behind_the_last_one() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    let mut segments = Segments::with_capacity(1);
    segments.push(Segment { address: GuestAddress(u64::MAX - 9), bytes: 100 });
    assert!(!segments.are_in(&memory));
    for skip in 0..100 {
        assert_eq!(segments.write(&memory, skip, &[1]), 0, "{skip}");
        assert_eq!(segments.slices(&memory, skip, 1).count(), 0, "{skip}");
    }
    assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(64)).unwrap(), [0; 32]);
}
