use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { sectors: 100, read_only: false, discard: true, write_zeroes: true };

fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; SEGMENT_SIZE] {
    let mut segment = [0; SEGMENT_SIZE];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

fn parsed(erasure: Erasure, segments: &[[u8; SEGMENT_SIZE]], limits: Limits) -> Result<(u64, Vec<Range>), Rejection> {
    let mut ranges = vec![Range { offset: 1, bytes: 1, unmap: false }];
    parse(erasure, &segments.concat(), limits, &mut ranges).map(|bytes| (bytes, ranges))
}

#[test]
fn segments_become_ranges_in_bytes() {
    let (bytes, ranges) =
        parsed(Erasure::WriteZeroes, &[segment(0, 100, 1), segment(99, 1, 0), segment(100, 0, 0)], LIMITS).unwrap();
    assert_eq!(bytes, 101 * 512);
    assert_eq!(
        ranges,
        [
            Range { offset: 0, bytes: 51_200, unmap: true },
            Range { offset: 99 * 512, bytes: 512, unmap: false },
            Range { offset: 51_200, bytes: 0, unmap: false },
        ]
    );
    let discarded = parsed(Erasure::Discard, &[segment(3, 4, 0)], LIMITS).unwrap();
    assert_eq!(discarded, (2048, vec![Range { offset: 1536, bytes: 2048, unmap: false }]));
}

#[test]
fn unknown_flags_are_unsupported() {
    for (erasure, flags) in [
        (Erasure::Discard, 1),
        (Erasure::Discard, 2),
        (Erasure::WriteZeroes, 2),
        (Erasure::WriteZeroes, 3),
        (Erasure::WriteZeroes, 1 << 31),
    ] {
        // Whatever else is wrong.
        for sector in [0, u64::MAX] {
            let rejection = parsed(erasure, &[segment(0, 1, 0), segment(sector, 1, flags)], LIMITS).unwrap_err();
            assert_eq!((rejection, rejection.status()), (Rejection::Flags(flags), 2));
        }
    }
}

#[test]
fn ranges_beyond_the_end_and_long_ones_are_errors() {
    let huge = Limits { sectors: u64::MAX, ..LIMITS };
    for erasure in [Erasure::Discard, Erasure::WriteZeroes] {
        for (sector, sectors) in [(100, 1), (99, 2), (0, 101), (101, 0), (u64::MAX, 1), (u64::MAX, u32::MAX >> 20)] {
            let rejection = parsed(erasure, &[segment(sector, sectors, 0)], LIMITS).unwrap_err();
            assert_eq!(
                (rejection, rejection.status()),
                (Rejection::Range { sector, bytes: u64::from(sectors) * 512 }, 1)
            );
        }
        let longest = erasure.max_sectors();
        assert!(parsed(erasure, &[segment(7, longest, 0)], huge).is_ok());
        for sectors in [longest + 1, u32::MAX] {
            let rejection = parsed(erasure, &[segment(0, sectors, 0)], huge).unwrap_err();
            assert_eq!((rejection, rejection.status()), (Rejection::Segment(sectors), 1));
        }
        // Even a disk of all sectors there are has no byte position beyond 2^64.
        let rejection = parsed(erasure, &[segment(1 << 60, 1, 0)], huge).unwrap_err();
        assert_eq!(rejection, Rejection::Range { sector: 1 << 60, bytes: 512 });
    }
}

proptest! {
    /// Whatever a driver writes: what is accepted stays within the disk, and has no flag that is not known.
    #[test]
    fn accepted_ranges_stay_within_the_disk(
        discard: bool,
        segments in vec(
            (prop_oneof![0_u64..200, any::<u64>()], prop_oneof![0_u32..200, any::<u32>()], prop_oneof![0_u32..3, any::<u32>()]),
            1..8,
        ),
        sectors in prop_oneof![0_u64..400, any::<u64>()],
    ) {
        let erasure = if discard { Erasure::Discard } else { Erasure::WriteZeroes };
        let wire: Vec<_> = segments.iter().map(|(sector, sectors, flags)| segment(*sector, *sectors, *flags)).collect();
        let Ok((bytes, ranges)) = parsed(erasure, &wire, Limits { sectors, ..LIMITS }) else { return Ok(()) };
        prop_assert_eq!(ranges.len(), segments.len());
        prop_assert_eq!(bytes, ranges.iter().map(|range| range.bytes).sum::<u64>());
        for (range, (_, _, flags)) in ranges.iter().zip(&segments) {
            prop_assert!(u128::from(range.offset) + u128::from(range.bytes) <= u128::from(sectors) * 512);
            prop_assert!(range.offset % 512 == 0 && range.bytes % 512 == 0);
            prop_assert!(range.bytes <= u64::from(erasure.max_sectors()) * 512);
            prop_assert!(*flags <= u32::from(!discard));
            prop_assert_eq!(range.unmap, *flags == 1);
        }
    }
}
