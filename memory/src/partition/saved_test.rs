use super::*;
use crate::blocks::BlockRange;
use crate::partition::{Answer, Handled, Request, TargetError};
use crate::testing::Fixture;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

fn size(blocks: u32) -> ByteSize {
    ByteSize::mib(2 * u64::from(blocks))
}

/// A partition with a window of 512 MiB, 384 MiB of which are its target and plugged but for a hole of 2 MiB.
fn plugged() -> Fixture {
    let fixture = Fixture::new(ByteSize::mib(512));
    fixture.partition.set_target(ByteSize::mib(384)).unwrap();
    for request in [Request::Plug(range(0, 192)), Request::Unplug(range(3, 1))] {
        assert_eq!(fixture.partition.handle(request), Handled::Answer(Answer::Done));
    }
    fixture.partition.wait_discarded(SOON).unwrap();
    fixture
}

/// Restores `state` in a VM of its own.
fn restore(state: &PartitionState) -> Result<Fixture, RestoreError> {
    let mut fixture = Fixture::new(ByteSize::mib(512));
    let (window, setup) = (fixture.partition.window(), fixture.setup());
    // The window is free before the restored partition comes.
    fixture.partition = Fixture::new(ByteSize::mib(512)).partition;
    fixture.partition = PartitionMemory::restore(window, setup, state)?;
    Ok(fixture)
}

#[test]
fn a_partition_goes_on_where_it_was_saved() {
    let saved = plugged();
    let state = saved.partition.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let restored = restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(restored.partition.save().unwrap(), state);
    assert_eq!(restored.partition.report(), saved.partition.report());
    assert_eq!(restored.slots.slots(), saved.slots.slots());
    assert_eq!(restored.admission.admitted(), saved.admission.admitted());
    let regions = |fixture: &Fixture| {
        use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
        let memory = fixture.view.memory();
        memory.iter().map(|region| (region.start_addr().0, region.len())).collect::<Vec<_>>()
    };
    assert_eq!(regions(&restored), regions(&saved), "devices see the same memory");

    for fixture in [&saved, &restored] {
        let partition = &fixture.partition;
        assert_eq!(partition.handle(Request::Plug(range(3, 1))), Handled::Answer(Answer::Done));
        let target = partition.lower_target(ByteSize::bytes(0)).unwrap();
        assert_eq!(partition.handle(Request::UnplugAll), Handled::Answer(Answer::Done));
        partition.wait_unplugged(target, Duration::ZERO).unwrap();
        partition.wait_discarded(SOON).unwrap();
        assert_eq!((fixture.slots.slots(), fixture.admission.admitted()), (vec![], ByteSize::bytes(0)));
        assert_eq!(partition.generation(), 2);
    }
}

#[test]
fn a_discard_that_was_due_is_done_after_the_restore() {
    let fixture = plugged();
    let mut state = fixture.partition.save().unwrap();
    state.plug.discards = vec![range(3, 1)];
    let restored = restore(&state).unwrap();
    restored.partition.wait_discarded(SOON).unwrap();
    assert_eq!(restored.partition.handle(Request::Plug(range(3, 1))), Handled::Answer(Answer::Done));
}

#[test]
fn a_partition_that_was_given_up_stays_so() {
    let fixture = Fixture::new(ByteSize::mib(512));
    fixture.partition.retire().unwrap();
    let restored = restore(&fixture.partition.save().unwrap()).unwrap();
    let error = restored.partition.set_target(ByteSize::mib(2)).unwrap_err();
    assert!(matches!(error, TargetError::Retired(_)), "{error}");
}

#[test]
fn a_partition_without_its_slots_is_not_saved() {
    let fixture = plugged();
    fixture.slots.fail(Some("delete"));
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    let error = fixture.partition.save().unwrap_err().to_string();
    assert_eq!(error, "partition 1 cannot be saved: its memory slots are not what they should be");
}

#[test]
fn what_the_host_refuses_is_not_restored() {
    let state = plugged().partition.save().unwrap();
    let fixture = Fixture::new(ByteSize::mib(512));
    let try_again = || PartitionMemory::restore(fixture.partition.window(), fixture.setup(), &state).map(drop);
    fixture.slots.fail(Some("set"));
    assert!(matches!(try_again(), Err(RestoreError::Effect { .. })));
    assert_eq!(fixture.admission.admitted(), ByteSize::bytes(0), "nothing is left behind");
    fixture.slots.fail(None);
    fixture.host.set(ByteSize::mib(2));
    assert!(matches!(try_again(), Err(RestoreError::Admission(_))));
    assert_eq!((fixture.slots.slots(), fixture.admission.admitted()), (vec![], ByteSize::bytes(0)));
}

#[test]
fn a_state_of_another_version_or_partition_is_refused() {
    let state = plugged().partition.save().unwrap();
    let mut json = serde_json::to_value(&state).unwrap();
    json["version"] = 9.into();
    let error = serde_json::from_value::<PartitionState>(json).unwrap_err().to_string();
    assert_eq!(error, "the state's version is 9: expected 1");
    let other = PartitionState { id: PartitionId::new(2).unwrap(), ..state };
    let error = restore(&other).map(drop).unwrap_err().to_string();
    assert_eq!(error, "the state is partition 2's: expected partition 1's");
}

/// Window of 64 blocks, granules of 8: what is valid, and what a wrong value in it makes of it.
#[test]
fn a_wrong_state_is_an_error_that_names_the_value() {
    let valid = || PlugState {
        target: size(20),
        usable: size(24),
        plugged: vec![range(0, 8), range(10, 2)],
        slots: vec![range(0, 24)],
        discards: vec![range(8, 2), range(8, 2), range(60, 4)],
    };
    type Change = fn(&mut PlugState);
    let refused = |change: Change| {
        let mut state = valid();
        change(&mut state);
        Partition::restore(64, 8, &state).unwrap_err().to_string()
    };
    assert_eq!(Partition::restore(64, 8, &valid()).unwrap().save(), valid());
    let cases: [(Change, &str); 12] = [
        (|s| s.target = ByteSize::kib(4), "target of 4 KiB: expected a multiple of 2 MiB"),
        (|s| s.target = size(65), "target of 130 MiB: the partition's window is 128 MiB"),
        (|s| s.usable = size(16), "usable region of 32 MiB: expected whole granules of 16 MiB, from 48 MiB to 128 MiB"),
        (|s| s.usable = size(25), "usable region of 50 MiB: expected whole granules of 16 MiB, from 48 MiB to 128 MiB"),
        (
            |s| s.usable = size(72),
            "usable region of 144 MiB: expected whole granules of 16 MiB, from 48 MiB to 128 MiB",
        ),
        (|s| s.plugged.push(range(24, 1)), "plugged blocks 24..25: expected no block beyond 24"),
        (
            |s| s.plugged.reverse(),
            "plugged blocks 0..8 after blocks 10..12: expected disjoint ranges in order of address",
        ),
        (
            |s| s.slots.push(range(20, 4)),
            "slot blocks 20..24 after blocks 0..24: expected disjoint ranges in order of address",
        ),
        (|s| s.slots = vec![range(0, 11)], "plugged blocks 10..12: expected a slot for each of them"),
        (|s| s.plugged.clear(), "slot blocks 0..24 with nothing plugged: expected none"),
        (|s| s.discards.push(range(63, 2)), "discard blocks 63..65: expected no block beyond 64"),
        (|s| s.discards.push(range(7, 1)), "discard of blocks 7..8, where blocks are plugged: expected none there"),
    ];
    for (change, expected) in cases {
        assert_eq!(refused(change), expected);
    }
}

#[test]
fn ranges_of_a_state_are_checked_as_they_are_read() {
    let read = |text: &str| serde_json::from_str::<BlockRange>(text).map_err(|error| error.to_string());
    assert_eq!(read(r#"{"first":3,"count":2}"#), Ok(range(3, 2)));
    for text in [r#"{"first":3,"count":0}"#, r#"{"first":4294967295,"count":1}"#] {
        let error = read(text).unwrap_err();
        assert!(error.contains("blocks from block") && error.contains("expected"), "{error}");
    }
}
