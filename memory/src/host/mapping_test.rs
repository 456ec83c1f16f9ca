use vm_memory::Bytes;
use vm_memory::MemoryRegionAddress;

use super::*;

const MIB: u64 = 1 << 20;

fn region(mapping: &HostMapping, offset: u64, bytes: u64) -> Arc<GuestRegionMmap> {
    mapping.region(offset, bytes, GuestAddress(offset)).unwrap()
}

#[test]
fn a_mapping_is_aligned_and_costs_nothing_until_touched() {
    for backing in [Backing::None, Backing::Thp] {
        let mapping = HostMapping::reserve(64 * MIB, backing).unwrap();
        assert!(mapping.host_address(0).is_multiple_of(BLOCK.get()));
        assert_eq!(mapping.resident(0, 64 * MIB).unwrap(), 0);
        mapping.back(0, 64 * MIB).unwrap();
        assert_eq!(mapping.resident(0, 64 * MIB).unwrap(), 0);
        region(&mapping, 0, 64 * MIB).write_obj(7_u8, MemoryRegionAddress(5 * MIB)).unwrap();
        let resident = mapping.resident(0, 64 * MIB).unwrap();
        assert!(resident == 4096 || resident == 2 * MIB, "{resident}");
        assert_eq!(mapping.resident(0, 4 * MIB).unwrap(), 0, "only the range asked for is counted");
    }
}

#[test]
fn single_pages_are_discarded_and_counted() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::None).unwrap();
    let region = region(&mapping, 0, 8 * MIB);
    for offset in (0..16 * 4096).step_by(4096) {
        region.write_obj(offset + 1, MemoryRegionAddress(offset)).unwrap();
    }
    assert_eq!(mapping.discard_pages(4096, 2 * 4096).unwrap(), 2 * 4096);
    assert_eq!(mapping.discard_pages(4096, 4 * 4096).unwrap(), 2 * 4096, "two of them had none left");
    let at = |page: u64| region.read_obj::<u64>(MemoryRegionAddress(page * 4096)).unwrap();
    assert_eq!([at(0), at(1), at(4), at(5)], [1, 0, 0, 5 * 4096 + 1]);
    assert_eq!(mapping.discard_pages(0, 8 * MIB).unwrap(), 14 * 4096, "two that were read have pages again");
    assert_eq!(mapping.resident(0, 8 * MIB).unwrap(), 0);
    for (offset, bytes) in
        [(0, 0), (1, 4096), (4096, 4095), (8 * MIB, 4096), (8 * MIB - 4096, 8192), (u64::MAX - 4095, 4096)]
    {
        let error = mapping.discard_pages(offset, bytes).unwrap_err().to_string();
        assert!(error.contains("multiples of 4096"), "{error}");
    }
}

#[test]
fn pages_of_the_pool_stay_reserved() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::Hugetlbfs).unwrap();
    let error = mapping.discard_pages(0, 2 * MIB).unwrap_err().to_string();
    assert!(error.contains("`hugetlbfs`") && error.contains("`thp`"), "{error}");
}

#[test]
fn what_was_discarded_is_zero_and_gone() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::None).unwrap();
    let region = region(&mapping, 0, 8 * MIB);
    for offset in (0..8 * MIB).step_by(4096) {
        region.write_obj(offset, MemoryRegionAddress(offset)).unwrap();
    }
    assert_eq!(mapping.resident(0, 8 * MIB).unwrap(), 8 * MIB);
    mapping.discard(2 * MIB, 4 * MIB).unwrap();
    assert_eq!(mapping.resident(0, 8 * MIB).unwrap(), 4 * MIB);
    let at = |offset| region.read_obj::<u64>(MemoryRegionAddress(offset)).unwrap();
    assert_eq!((at(2 * MIB - 4096), at(2 * MIB), at(6 * MIB)), (2 * MIB - 4096, 0, 6 * MIB));
}

#[test]
fn ranges_outside_or_off_the_blocks_are_refused() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::Thp).unwrap();
    for (offset, bytes) in [(0, 0), (0, 4096), (4096, 2 * MIB), (6 * MIB, 4 * MIB), (!0x1f_ffff, 2 * MIB)] {
        assert!(matches!(mapping.discard(offset, bytes), Err(MapError::NoRange { .. })), "{offset:#x} {bytes:#x}");
        assert!(mapping.region(offset, bytes, GuestAddress(0)).is_err(), "{offset:#x} {bytes:#x}");
    }
    for bytes in [0, 4096, u64::MAX, !0x1f_ffff, 1 << 60] {
        assert!(HostMapping::reserve(bytes, Backing::Thp).is_err(), "{bytes:#x}");
    }
    let end = GuestAddress(!0x1f_ffff);
    assert!(matches!(mapping.region(0, 4 * MIB, end), Err(MapError::GuestAddress { .. })));
}

#[test]
fn a_range_is_in_use_while_a_region_in_it_is_held() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::Thp).unwrap();
    let (low, high) = (region(&mapping, 0, 4 * MIB), region(&mapping, 4 * MIB, 4 * MIB));
    assert!(mapping.is_in_use(2 * MIB, 2 * MIB) && mapping.is_in_use(4 * MIB, 2 * MIB));
    drop(high);
    assert!(mapping.is_in_use(2 * MIB, 4 * MIB) && !mapping.is_in_use(4 * MIB, 4 * MIB));
    let inner = low.get_mmap();
    drop(low);
    assert!(mapping.is_in_use(0, 2 * MIB), "what is inside the region can reach the memory too");
    drop(inner);
    assert!(!mapping.is_in_use(0, 8 * MIB));
}

#[test]
fn memory_that_is_still_in_use_stays_mapped() {
    let mapping = HostMapping::reserve(2 * MIB, Backing::None).unwrap();
    let region = region(&mapping, 0, 2 * MIB);
    drop(mapping);
    region.write_obj(42_u64, MemoryRegionAddress(0)).unwrap();
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(0)).unwrap(), 42);
}

#[test]
fn huge_pages_are_reserved_when_backed_and_returned_when_discarded() {
    let mapping = HostMapping::reserve(8 * MIB, Backing::Hugetlbfs).unwrap();
    let region = region(&mapping, 0, 8 * MIB);
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(0)).unwrap(), 0, "unbacked memory reads as zeros");
    match mapping.back(0, 4 * MIB) {
        Ok(()) => {
            region.write_obj(1_u64, MemoryRegionAddress(2 * MIB)).unwrap();
            assert_eq!(mapping.resident(0, 4 * MIB).unwrap(), 2 * MIB);
            mapping.discard(0, 4 * MIB).unwrap();
            assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(2 * MIB)).unwrap(), 0);
        }
        // A machine without a pool of huge pages, which is how machines come.
        Err(error) => assert!(error.to_string().contains("cannot reserve 4 MiB of 2 MiB huge pages"), "{error}"),
    }
    assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(0)).unwrap(), 0, "it is still mapped either way");
}
