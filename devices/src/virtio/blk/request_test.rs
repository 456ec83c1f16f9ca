use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { sectors: 100, read_only: false };

fn header(kind: u32, sector: u64) -> [u8; HEADER_SIZE] {
    let mut header = [0xff; HEADER_SIZE];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

#[test]
fn whole_sectors_within_the_capacity() {
    let read = |sector, bytes| Request::parse(&header(VIRTIO_BLK_T_IN, sector), 0, bytes, LIMITS);
    assert_eq!(read(0, 512), Ok(Request::Read { offset: 0, bytes: 512 }));
    assert_eq!(read(99, 512), Ok(Request::Read { offset: 99 * 512, bytes: 512 }));
    assert_eq!(read(0, 100 * 512), Ok(Request::Read { offset: 0, bytes: 100 * 512 }));
    for (sector, bytes) in [(100, 512), (99, 1024), (u64::MAX, 512), (u64::MAX / 512 + 1, 512), (1 << 55, 512)] {
        assert_eq!(read(sector, bytes), Err(Rejection::Range { sector, bytes }));
    }
    for bytes in [0, 1, 511, 513, MAX_DATA + 512, u64::MAX] {
        assert_eq!(read(0, bytes), Err(Rejection::Length(bytes)));
    }
    // Even a disk of all sectors there are has no byte position beyond 2^64.
    let huge = Limits { sectors: u64::MAX, read_only: false };
    let sector = 1 << 60;
    let error = Request::parse(&header(VIRTIO_BLK_T_IN, sector), 0, 512, huge);
    assert_eq!(error, Err(Rejection::Range { sector, bytes: 512 }));
}

#[test]
fn writes_only_where_they_are_allowed() {
    let write = |limits| Request::parse(&header(VIRTIO_BLK_T_OUT, 1), 512, 0, limits);
    assert_eq!(write(LIMITS), Ok(Request::Write { offset: 512, bytes: 512 }));
    assert_eq!(write(Limits { read_only: true, ..LIMITS }), Err(Rejection::ReadOnly));
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in [2, 3, 11, 13, 14, u32::MAX] {
        let rejection = Request::parse(&header(kind, 0), 512, 512, LIMITS).unwrap_err();
        assert_eq!(rejection, Rejection::Type(kind));
        assert_eq!(rejection.status(), VIRTIO_BLK_S_UNSUPP as u8);
    }
    assert_eq!(Request::parse(&header(VIRTIO_BLK_T_GET_ID, 0), 0, 19, LIMITS), Err(Rejection::Length(19)));
    assert_eq!(Request::parse(&header(VIRTIO_BLK_T_GET_ID, 0), 0, 20, LIMITS), Ok(Request::GetId));
}

proptest! {
    /// Whatever a driver writes: what is accepted stays within the disk.
    #[test]
    fn accepted_requests_stay_within_the_disk(
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..200, any::<u64>()],
        readable in prop_oneof![(0_u64..200).prop_map(|n| n * 512), any::<u64>()],
        writable in prop_oneof![(0_u64..200).prop_map(|n| n * 512), any::<u64>()],
        sectors in prop_oneof![0_u64..200, any::<u64>()],
        read_only: bool,
    ) {
        let limits = Limits { sectors, read_only };
        match Request::parse(&header(kind, sector), readable, writable, limits) {
            Ok(Request::Read { offset, bytes } | Request::Write { offset, bytes }) => {
                let end = u128::from(offset) + u128::from(bytes);
                prop_assert!(end <= u128::from(sectors) * 512);
                prop_assert_eq!(offset % 512, 0);
                prop_assert!(bytes % 512 == 0 && bytes > 0 && bytes <= MAX_DATA);
                prop_assert!(kind == VIRTIO_BLK_T_IN || !read_only);
            }
            Ok(Request::GetId) => prop_assert!(writable >= ID_SIZE),
            Ok(Request::Flush) | Err(_) => {}
        }
    }

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
