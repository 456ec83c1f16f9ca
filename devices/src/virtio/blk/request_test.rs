use proptest::prelude::*;
use vm_memory::ByteValued as _;

use super::*;

const LIMITS: Limits = Limits { sectors: 100, read_only: false, discard: true, write_zeroes: true };

fn header(kind: u32, sector: u64) -> VirtioBlkReqHeader {
    VirtioBlkReqHeader { type_: kind.into(), reserved: u32::MAX.into(), sector: sector.into() }
}

#[test]
fn fields_lie_where_the_specification_puts_them() {
    let bytes: [u8; 16] = std::array::from_fn(|n| n as u8);
    let mut header = VirtioBlkReqHeader::default();
    header.as_mut_slice().copy_from_slice(&bytes);
    assert_eq!(header.type_, 0x0302_0100);
    assert_eq!(header.sector, 0x0f0e_0d0c_0b0a_0908);
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
    let huge = Limits { sectors: u64::MAX, ..LIMITS };
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
    // Secure erasure is not offered, and the others need not be.
    let none = Limits { discard: false, write_zeroes: false, ..LIMITS };
    for (kind, limits) in [(2, LIMITS), (3, LIMITS), (11, none), (13, none), (14, LIMITS), (u32::MAX, LIMITS)] {
        let rejection = Request::parse(&header(kind, 0), 512, 512, limits).unwrap_err();
        assert_eq!(rejection, Rejection::Type(kind));
        assert_eq!(rejection.status(), VIRTIO_BLK_S_UNSUPP as u8);
    }
    assert_eq!(Request::parse(&header(VIRTIO_BLK_T_GET_ID, 0), 0, 19, LIMITS), Err(Rejection::Length(19)));
    assert_eq!(Request::parse(&header(VIRTIO_BLK_T_GET_ID, 0), 0, 20, LIMITS), Ok(Request::GetId));
}

#[test]
fn erasures_are_whole_segments_and_not_too_many() {
    let erase = |kind, bytes| Request::parse(&header(kind, u64::MAX), bytes, 0, LIMITS);
    for (kind, erasure, most) in
        [(VIRTIO_BLK_T_DISCARD, Erasure::Discard, 64), (VIRTIO_BLK_T_WRITE_ZEROES, Erasure::WriteZeroes, 8)]
    {
        for segments in [1, 2, most] {
            assert_eq!(erase(kind, segments as u64 * 16), Ok(Request::Erase { erasure, segments }));
        }
        for bytes in [0, 1, 15, 17, 16 * (most as u64 + 1), u64::MAX, u64::MAX - 15] {
            assert_eq!(erase(kind, bytes), Err(Rejection::Length(bytes)));
        }
    }
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
        let limits = Limits { sectors, read_only, ..LIMITS };
        match Request::parse(&header(kind, sector), readable, writable, limits) {
            Ok(Request::Read { offset, bytes } | Request::Write { offset, bytes }) => {
                let end = u128::from(offset) + u128::from(bytes);
                prop_assert!(end <= u128::from(sectors) * 512);
                prop_assert_eq!(offset % 512, 0);
                prop_assert!(bytes % 512 == 0 && bytes > 0 && bytes <= MAX_DATA);
                prop_assert!(kind == VIRTIO_BLK_T_IN || !read_only);
            }
            Ok(Request::GetId) => prop_assert!(writable >= ID_SIZE),
            Ok(Request::Erase { erasure, segments }) => {
                prop_assert!(segments > 0 && segments <= erasure.max_segments() && segments as u64 * 16 == readable);
            }
            Ok(Request::Flush) | Err(_) => {}
        }
    }
}
