//! Whether the host has swap is not the tests' to say: what they hold is that no content is lost.

use super::partition_test::{AT_ONCE, SOON, ack, mib, plugged, write};
use super::*;
use crate::testing::Fixture;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_pushed_out_is_counted_and_keeps_its_contents() {
    let fixture = plugged(256);
    for offset in (0..64 * MIB).step_by(4096) {
        assert!(write(&fixture, offset, offset | 1));
    }
    assert_eq!(fixture.partition.resident().unwrap(), ByteSize::mib(64));
    let paged_out = fixture.partition.page_out(SOON).unwrap();
    assert!(paged_out.complete, "{paged_out:?}");
    let resident = fixture.partition.resident().unwrap();
    assert_eq!(resident.plus(paged_out.bytes), ByteSize::mib(64), "{paged_out:?}");
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
    let memory = fixture.view.memory();
    for offset in (0..64 * MIB).step_by(4096) {
        let value: u64 = memory.read_obj(GuestAddress(fixture.start() + offset)).unwrap();
        assert_eq!(value, offset | 1);
    }
}

#[test]
fn no_step_begins_when_time_is_up() {
    let fixture = plugged(128);
    assert!(write(&fixture, 0, 7));
    let paged_out = fixture.partition.page_out(AT_ONCE).unwrap();
    assert_eq!(paged_out, PagedOut { bytes: ByteSize::bytes(0), complete: false });
    assert_eq!(fixture.partition.resident().unwrap(), ByteSize::kib(4));
    let empty = Fixture::new(ByteSize::mib(128));
    assert!(empty.partition.page_out(AT_ONCE).unwrap().complete, "nothing is plugged");
}

#[test]
fn a_request_of_the_guest_waits_for_a_step_and_no_longer() {
    let fixture = plugged(256);
    // A turn is taken for each step, and none is left taken.
    fixture.partition.page_out(SOON).unwrap();
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 128)));
    assert_eq!(fixture.partition.report().plugged, ByteSize::mib(128));
}

#[test]
fn huge_pages_of_the_pool_stay_in_memory() {
    let fixture = Fixture::new(ByteSize::mib(128));
    let setup = PartitionSetup { backing: Backing::Hugetlbfs, ..fixture.setup() };
    let partition = PartitionMemory::new(fixture.partition.window(), setup).unwrap();
    assert!(matches!(partition.page_out(SOON), Err(MapError::PagesStay)));
}

#[test]
fn plugged_blocks_are_found_step_by_step() {
    let mut partition = Partition::new(64, 64);
    partition.set_target(ByteSize::mib(128)).unwrap();
    for (first, count) in [(3, 5), (20, 30)] {
        let _ = partition.plug(BlockRange::new(first, count).unwrap());
    }
    let mut steps = Vec::new();
    let mut from = 0;
    while let Some(step) = partition.plugged_from(from, 16) {
        steps.push((step.first(), step.count()));
        from = step.end();
    }
    assert_eq!(steps, [(3, 5), (20, 16), (36, 14)]);
    assert_eq!(partition.plugged_from(5, 2), BlockRange::new(5, 2));
}
