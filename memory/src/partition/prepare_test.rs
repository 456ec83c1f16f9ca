use std::thread;
use std::time::Duration;

use super::*;
use crate::partition::partition_test::{AT_ONCE, SOON, ack, ack_soon, mib};
use crate::partition::{Request, WaitError};
use crate::testing::Fixture;

const NONE: ByteSize = ByteSize::bytes(0);

/// A partition with a window of 512 MiB of which 256 MiB are plugged for preparing it.
fn preparing() -> Fixture {
    let fixture = Fixture::new(ByteSize::mib(512));
    fixture.partition.prepare(ByteSize::mib(256)).unwrap();
    ack(&fixture, Request::Plug(mib(0, 256)));
    fixture
}

#[test]
fn a_partition_is_prepared_step_by_step_and_is_as_new_after_each() {
    let fixture = Fixture::new(ByteSize::mib(512));
    let partition = &fixture.partition;
    for size in [128, 256, 384] {
        let target = partition.prepare(ByteSize::mib(size)).unwrap();
        assert!(partition.report().preparing, "before the guest does anything");
        ack(&fixture, Request::Plug(mib(0, size.try_into().unwrap())));
        assert_eq!(partition.wait_plugged(target, AT_ONCE).unwrap().plugged, ByteSize::mib(size));
        let target = partition.prepare(NONE).unwrap();
        assert!(partition.report().preparing, "until the guest has given it back");
        ack(&fixture, Request::UnplugAll);
        partition.wait_unplugged(target, AT_ONCE).unwrap();
        assert!(!partition.wait_discarded(SOON).unwrap().preparing);
        assert_eq!(fixture.admission.admitted(), NONE);
    }
    let target = partition.raise_target(ByteSize::mib(2)).unwrap();
    assert_eq!(partition.take_back(target).map(|_| partition.report().target).unwrap(), NONE);
    assert!(matches!(partition.prepare(NONE), Err(TargetError::Superseded(_))), "it has been used");
}

#[test]
fn a_plug_takes_over_at_any_size_and_a_preparation_does_nothing_more() {
    for (size, request) in
        [(128, Request::Unplug(mib(128, 128))), (2, Request::Unplug(mib(2, 254))), (384, Request::Plug(mib(256, 128)))]
    {
        let fixture = preparing();
        let partition = &fixture.partition;
        let target = partition.raise_target(ByteSize::mib(size)).unwrap();
        assert!(!partition.report().preparing);
        assert!(matches!(partition.prepare(NONE), Err(TargetError::Superseded(_))));
        assert!(matches!(partition.end_preparation(), Ok(None)));
        let error = partition.wait_plugged(target, AT_ONCE).unwrap_err();
        assert!(matches!(error, WaitError::Timeout { .. }), "{size} MiB are something else than 256: {error}");
        ack_soon(&fixture, request);
        assert_eq!(partition.wait_plugged(target, SOON).unwrap().plugged, ByteSize::mib(size));
        partition.take_back(target).unwrap();
        assert_eq!(partition.report().target, NONE, "nothing stood before it");
    }
}

#[test]
fn a_plug_of_what_is_there_takes_over_too() {
    let fixture = preparing();
    let target = fixture.partition.raise_target(ByteSize::mib(256)).unwrap();
    assert_eq!(fixture.partition.wait_plugged(target, AT_ONCE).unwrap().plugged, ByteSize::mib(256));
    assert!(matches!(fixture.partition.prepare(NONE), Err(TargetError::Superseded(_))));
}

#[test]
fn an_unplug_takes_over_and_there_is_nothing_to_shrink() {
    let fixture = preparing();
    let error = fixture.partition.lower_target(ByteSize::mib(128)).unwrap_err().to_string();
    assert!(error.contains("to 128 MiB: expected at most 0 bytes"), "{error}");
    assert_eq!(fixture.partition.report().target, ByteSize::mib(256), "what is refused changes nothing");
    let target = fixture.partition.lower_target(NONE).unwrap();
    ack(&fixture, Request::UnplugAll);
    fixture.partition.wait_unplugged(target, AT_ONCE).unwrap();
    assert!(matches!(fixture.partition.prepare(ByteSize::mib(2)), Err(TargetError::Superseded(_))));
}

#[test]
fn a_plug_that_is_refused_leaves_the_preparation_alone() {
    let fixture = preparing();
    fixture.partition.raise_target(ByteSize::mib(514)).unwrap_err();
    fixture.partition.raise_target(NONE).unwrap_err();
    assert!(fixture.partition.report().preparing);
    fixture.partition.prepare(NONE).unwrap();
}

#[test]
fn a_preparation_is_ended_for_good() {
    let fixture = preparing();
    let target = fixture.partition.end_preparation().unwrap().expect("one is under way");
    assert!(matches!(fixture.partition.prepare(ByteSize::mib(384)), Err(TargetError::Superseded(_))));
    ack(&fixture, Request::UnplugAll);
    fixture.partition.wait_unplugged(target, AT_ONCE).unwrap();
    fixture.partition.wait_discarded(SOON).unwrap();
    fixture.partition.retire().unwrap();
    assert!(matches!(Fixture::new(ByteSize::mib(128)).partition.end_preparation(), Ok(None)));
}

#[test]
fn who_plugs_waits_until_the_guest_has_given_back_what_it_is_giving_back() {
    let fixture = preparing();
    // More is to come, not to go.
    fixture.partition.wait_prepared(SOON);
    fixture.partition.prepare(NONE).unwrap();
    let partition = fixture.partition.clone();
    let waiting = thread::spawn(move || {
        partition.wait_prepared(SOON);
        partition.report().plugged
    });
    fixture.partition.wait_prepared(Duration::from_millis(10));
    assert_eq!(fixture.partition.report().plugged, ByteSize::mib(256), "time was up");
    ack(&fixture, Request::UnplugAll);
    assert_eq!(waiting.join().unwrap(), NONE);
}

#[test]
fn what_prepares_is_part_of_the_state() {
    let fixture = preparing();
    let state = fixture.partition.save().unwrap();
    assert_eq!((state.generation, state.prepared), (1, 1));
    fixture.partition.raise_target(ByteSize::mib(256)).unwrap();
    let state = fixture.partition.save().unwrap();
    assert_eq!((state.generation, state.prepared), (2, 1));
}
