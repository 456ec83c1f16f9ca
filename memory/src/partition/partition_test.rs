use std::sync::{Arc, mpsc};
use std::thread;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::testing::Fixture;

const MIB: u64 = 1 << 20;
pub(super) const SOON: Duration = Duration::from_secs(10);
pub(super) const AT_ONCE: Duration = Duration::ZERO;

pub(super) fn mib(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first / 2, count / 2).unwrap()
}

/// A partition with a window of 512 MiB of which `size` MiB are its target and plugged, by 128 MiB each time.
pub(super) fn plugged(size: u32) -> Fixture {
    let fixture = Fixture::new(ByteSize::mib(512));
    fixture.partition.set_target(ByteSize::mib(size.into())).unwrap();
    for first in (0..size).step_by(128) {
        ack(&fixture, Request::Plug(mib(first, 128)));
    }
    let _ = fixture.slots.calls();
    fixture
}

pub(super) fn ack(fixture: &Fixture, request: Request) {
    assert_eq!(fixture.partition.handle(request), Handled::Answer(Answer::Done), "{request:?}");
}

/// Like [`ack`] where discards or trimming may have the turn at first.
pub(super) fn ack_soon(fixture: &Fixture, request: Request) {
    let start = Instant::now();
    while fixture.partition.handle(request) == Handled::Later {
        assert!(start.elapsed() < SOON, "{request:?} is put off for ever");
        thread::yield_now();
    }
}

pub(super) fn write(fixture: &Fixture, offset: u64, value: u64) -> bool {
    fixture.view.memory().write_obj(value, GuestAddress(fixture.start() + offset)).is_ok()
}

fn read(fixture: &Fixture, offset: u64) -> Option<u64> {
    fixture.view.memory().read_obj(GuestAddress(fixture.start() + offset)).ok()
}

/// Returns when all that was queued so far is done, trimming included.
pub(super) fn let_the_discard_thread_catch_up(fixture: &Fixture) {
    let (sender, receiver) = mpsc::channel();
    fixture.discarder.queue().run(move || sender.send(()).unwrap()).unwrap();
    receiver.recv_timeout(SOON).unwrap();
}

#[test]
fn a_partition_comes_and_goes_as_a_whole() {
    let fixture = Fixture::new(ByteSize::mib(512));
    let partition = &fixture.partition;
    assert!(!write(&fixture, 0, 1), "devices see nothing of what is not plugged");
    let target = partition.set_target(ByteSize::mib(256)).unwrap();
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(256));
    assert!(matches!(partition.wait_plugged(target, AT_ONCE), Err(WaitError::Timeout { goal: "plugged", .. })));
    ack(&fixture, Request::Plug(mib(0, 128)));
    assert!(write(&fixture, 128 * MIB - 8, 1) && !write(&fixture, 128 * MIB - 4, 1) && !write(&fixture, 128 * MIB, 1));
    let_the_discard_thread_catch_up(&fixture);
    ack(&fixture, Request::Plug(mib(128, 128)));
    assert!(write(&fixture, 128 * MIB - 4, 1), "plugged neighbours are one region");
    assert_eq!(fixture.view.memory().num_regions(), 2);
    assert_eq!(partition.wait_plugged(target, AT_ONCE).unwrap().plugged, ByteSize::mib(256));
    assert_eq!(fixture.slots.slots(), [(fixture.start(), 256 * MIB)]);
    assert_eq!(fixture.slots.calls().len(), 1, "one slot, set once");

    partition.set_target(ByteSize::bytes(0)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 128)));
    assert_eq!(fixture.slots.calls(), [""; 0], "slots stay while the guest gives everything back");
    assert!(!write(&fixture, 128 * MIB, 1) && write(&fixture, 0, 1));
    ack(&fixture, Request::Unplug(mib(0, 128)));
    assert_eq!(fixture.slots.calls(), [format!("delete {:#x}+{:#x}", fixture.start(), 256 * MIB)]);
    assert_eq!(fixture.view.memory().num_regions(), 1);

    let report = partition.wait_discarded(SOON).unwrap();
    assert_eq!((report.plugged, report.discarding, report.slots), (ByteSize::bytes(0), ByteSize::bytes(0), 0));
    assert_eq!(report.unplugged, ByteSize::mib(256));
    assert_eq!(report.discarded, ByteSize::kib(12), "three pages had been touched");
    assert_eq!((report.phases.requests, report.phases.discarded), (2, ByteSize::kib(12)));
    assert_eq!(fixture.admission.admitted(), ByteSize::bytes(0));
}

#[test]
fn what_was_plugged_again_is_zero() {
    let fixture = plugged(256);
    assert!(write(&fixture, 130 * MIB, 42));
    ack(&fixture, Request::Unplug(mib(130, 2)));
    fixture.partition.wait_discarded(SOON).unwrap();
    ack(&fixture, Request::Plug(mib(130, 2)));
    assert_eq!(read(&fixture, 130 * MIB), Some(0));
}

#[test]
fn a_plug_is_busy_until_the_discard_is_done() {
    let fixture = plugged(128);
    let (release, held) = mpsc::channel::<()>();
    fixture
        .discarder
        .queue()
        .run(move || {
            let _ = held.recv();
        })
        .unwrap();
    assert!(write(&fixture, 0, 42));
    ack(&fixture, Request::UnplugAll);
    assert_eq!(fixture.partition.handle(Request::Plug(mib(0, 2))), Handled::Answer(Answer::Busy));
    assert_eq!(fixture.partition.report().discarding, ByteSize::mib(128));
    assert_eq!(fixture.partition.retire().unwrap_err().discarding, ByteSize::mib(128));
    drop(release);
    fixture.partition.wait_discarded(SOON).unwrap();
    ack(&fixture, Request::Plug(mib(0, 2)));
    assert!(write(&fixture, 0, 43));
    assert_eq!(read(&fixture, 0), Some(43));
}

#[test]
fn an_unplug_waits_for_requests_in_flight() {
    let fixture = plugged(128);
    let (start, partition) = (fixture.start(), fixture.partition.clone());
    let in_flight = fixture.view.memory();
    // A later snapshot has replaced the one that is in flight by the time the blocks are revoked.
    fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    ack(&fixture, Request::Plug(mib(128, 128)));
    let _ = fixture.slots.calls();

    let (sender, answered) = mpsc::channel();
    let guest = thread::spawn(move || {
        let answer = loop {
            match partition.handle(Request::UnplugAll) {
                Handled::Later => thread::yield_now(),
                answer => break answer,
            }
        };
        sender.send(answer).unwrap();
    });
    while fixture.view.memory().num_regions() != 1 {
        thread::yield_now();
    }
    assert!(answered.try_recv().is_err(), "not answered while a device holds an old snapshot");
    assert_eq!(fixture.slots.calls(), [""; 0], "and the slot is still there");
    in_flight.write_obj(1_u64, GuestAddress(start)).unwrap();
    drop(in_flight);
    assert_eq!(answered.recv_timeout(SOON), Ok(Handled::Answer(Answer::Done)));
    guest.join().unwrap();
    let report = fixture.partition.wait_discarded(SOON).unwrap();
    assert_eq!(report.discarded, ByteSize::kib(4), "what was in flight was discarded, not left behind");
}

#[test]
fn a_device_that_never_lets_go_makes_the_unplug_busy() {
    let fixture = plugged(128);
    fixture.partition.patience.lock().limit = Duration::from_millis(50);
    let waker = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    fixture.partition.set_waker(Some(waker.clone()));
    assert!(write(&fixture, 0, 42));
    let stuck = fixture.view.memory();
    let target = fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    let start = Instant::now();
    let answer = loop {
        match fixture.partition.handle(Request::UnplugAll) {
            Handled::Later => assert_eq!(waker.read().unwrap(), 1, "it is brought again"),
            Handled::Answer(answer) => break answer,
        }
        assert_eq!(read(&fixture, 0), Some(42), "everything is as before");
        assert_eq!(fixture.slots.slots(), [(fixture.start(), 128 * MIB)]);
    };
    assert_eq!(answer, Answer::Busy);
    assert!(start.elapsed() >= Duration::from_millis(50));
    let (limit, start) = (Duration::from_millis(50), Instant::now());
    let error = fixture.partition.wait_unplugged(target, limit).unwrap_err();
    assert!(matches!(&error, WaitError::Failed(_, cause) if matches!(**cause, EffectError::InFlight(_))), "{error:?}");
    assert!(start.elapsed() >= limit, "the guest tries again, so who waits is patient");
    drop(stuck);
    ack(&fixture, Request::UnplugAll);
    fixture.partition.wait_unplugged(target, AT_ONCE).unwrap();
}

#[test]
fn a_request_that_takes_long_delays_no_unplug_of_other_memory() {
    let fixture = plugged(256);
    let memory = fixture.view.memory();
    let base = fixture.view.pin(&memory, [(GuestAddress(4096), 8192)]).unwrap();
    let used = fixture.view.pin(&memory, [(GuestAddress(fixture.start() + 130 * MIB - 8), 16)]).unwrap();
    drop(memory);
    // All around, in what is one piece for devices.
    ack_soon(&fixture, Request::Unplug(mib(0, 128)));
    ack_soon(&fixture, Request::Unplug(mib(132, 124)));
    assert_eq!(fixture.partition.report().plugged, ByteSize::mib(4));
    let_the_discard_thread_catch_up(&fixture);
    for block in [128, 130] {
        assert_eq!(fixture.partition.handle(Request::Unplug(mib(block, 2))), Handled::Later);
    }
    used.slices().next().unwrap().write_obj(7_u64, 0).unwrap();
    assert_eq!(read(&fixture, 130 * MIB - 8), Some(7), "plugged it stays");
    drop(used);
    ack_soon(&fixture, Request::UnplugAll);
    assert_eq!(fixture.partition.wait_discarded(SOON).unwrap().plugged, ByteSize::bytes(0));
    drop(base);
}

#[test]
fn a_request_that_lets_its_snapshot_go_is_waited_for_all_the_same() {
    let fixture = plugged(128);
    let (partition, memory) = (fixture.partition.clone(), fixture.view.memory());
    let guest = thread::spawn(move || {
        loop {
            if let Handled::Answer(answer) = partition.handle(Request::UnplugAll) {
                return answer;
            }
        }
    });
    while fixture.view.memory().num_regions() != 1 {
        thread::yield_now();
    }
    // The snapshot was taken before, the pin comes when the blocks are out of sight already.
    let pinned = fixture.view.pin(&memory, [(GuestAddress(fixture.start()), 4096)]).unwrap();
    drop(memory);
    assert_eq!(fixture.partition.report().plugged, ByteSize::mib(128));
    pinned.slices().next().unwrap().write_obj(1_u64, 0).unwrap();
    drop(pinned);
    assert_eq!(guest.join().unwrap(), Answer::Done);
    assert_eq!(fixture.partition.wait_discarded(SOON).unwrap().discarded, ByteSize::kib(4), "nothing is left behind");
}

#[test]
fn an_unplug_of_many_pieces_waits_for_devices_once() {
    let fixture = Fixture::new(ByteSize::mib(512));
    fixture.partition.set_target(ByteSize::mib(512)).unwrap();
    for first in (0..512).step_by(4) {
        ack(&fixture, Request::Plug(mib(first, 2)));
    }
    assert_eq!(fixture.view.memory().num_regions(), 1 + 128);
    let (view, (held, holding)) = (fixture.view.clone(), mpsc::channel());
    let (stop, stopped) = mpsc::channel::<()>();
    // A device that is never idle: each request takes a snapshot before the one before lets its own go.
    let device = thread::spawn(move || {
        let mut snapshot = view.memory();
        held.send(()).unwrap();
        let mut requests = 0;
        while matches!(stopped.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout)) {
            snapshot = view.memory();
            requests += 1;
        }
        drop(snapshot);
        requests
    });
    holding.recv().unwrap();
    while fixture.partition.handle(Request::UnplugAll) == Handled::Later {}
    drop(stop);
    let requests = device.join().unwrap();
    assert!(requests < 64, "one wait for all, not for each of 128: {requests} requests meanwhile");
    assert_eq!(fixture.view.memory().num_regions(), 1);
}

#[test]
fn a_thread_that_waits_for_the_turn_comes_before_the_next_request_of_the_guest() {
    let fixture = plugged(128);
    let waker = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    fixture.partition.set_waker(Some(waker.clone()));
    let turn = fixture.partition.turns.take();
    let partition = fixture.partition.clone();
    let waiting = thread::spawn(move || partition.set_target(ByteSize::mib(1)).map(drop));
    while fixture.partition.turns.waiting() == 0 {
        thread::yield_now();
    }
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Later);
    drop(turn);
    assert!(waiting.join().unwrap().is_err());
    assert_eq!(waker.read().unwrap(), 1, "the guest's turn, whatever came of the other's");
    ack(&fixture, Request::UnplugAll);
}

#[test]
fn the_last_target_counts_and_the_others_hear_of_it() {
    let fixture = plugged(128);
    let first = fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    let partition = fixture.partition.clone();
    let waiting = thread::spawn(move || partition.wait_plugged(first, SOON));
    let second = fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    assert!(matches!(waiting.join().unwrap(), Err(WaitError::Superseded(_))), "zero is plugged, and not what it wants");
    assert!(matches!(fixture.partition.take_back(first), Err(TargetError::Superseded(_))));
    assert_eq!(fixture.partition.report().target, ByteSize::bytes(0));
    let _ = fixture.partition.take_back(second).unwrap();
    assert_eq!(fixture.partition.report().target, ByteSize::mib(256));
    assert_eq!(fixture.partition.generation(), 4);
}

#[test]
fn who_waits_for_the_guest_hears_of_its_end() {
    let fixture = plugged(128);
    let target = fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    let partition = fixture.partition.clone();
    let waiting = thread::spawn(move || partition.wait_unplugged(target, SOON));
    fixture.partition.end();
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "partition 1: the VM has ended");
    fixture.partition.wait_discarded(AT_ONCE).unwrap();
}

#[test]
fn growing_and_shrinking_go_one_way() {
    let fixture = plugged(256);
    let partition = &fixture.partition;
    for size in [0, 2, 254] {
        let error = partition.raise_target(ByteSize::mib(size)).unwrap_err().to_string();
        assert!(error.ends_with("expected at least 256 MiB, or a call that shrinks it"), "{error}");
    }
    let error = partition.lower_target(ByteSize::mib(258)).unwrap_err().to_string();
    assert_eq!(error, "partition 1 cannot be shrunk to 258 MiB: expected at most 256 MiB, which it should have now");
    assert_eq!((partition.report().target, partition.generation()), (ByteSize::mib(256), 1), "nothing changed");
    let _ = partition.lower_target(ByteSize::mib(128)).unwrap();
    assert!(partition.raise_target(ByteSize::mib(192)).is_err(), "256 MiB are still plugged");
    let _ = partition.raise_target(ByteSize::mib(256)).unwrap();
    let empty = Fixture::new(ByteSize::mib(512));
    let error = empty.partition.raise_target(ByteSize::bytes(0)).unwrap_err().to_string();
    assert!(error.contains("with 0 bytes: expected at least 2 MiB"), "{error}");
}

#[test]
fn memory_that_went_back_has_to_be_admitted_again() {
    let fixture = plugged(384);
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 256)));
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(384), "the guest can still reach it");
    let_the_discard_thread_catch_up(&fixture);
    fixture.partition.wait_discarded(SOON).unwrap();
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(128), "slots have followed");
    fixture.host.set(ByteSize::mib(255));
    let error = fixture.partition.set_target(ByteSize::mib(384)).unwrap_err().to_string();
    assert_eq!(error, "partition 1 cannot grow to 384 MiB: it needs 256 MiB more and the host has 255 MiB available");
    fixture.partition.set_target(ByteSize::mib(130)).unwrap();
    fixture.host.set(ByteSize::mib(256));
    fixture.partition.set_target(ByteSize::mib(384)).unwrap();
}

#[test]
fn a_size_that_is_taken_back_costs_nothing_and_breaks_no_driver() {
    let fixture = Fixture::new(ByteSize::mib(512));
    for _ in 0..3 {
        let target = fixture.partition.set_target(ByteSize::mib(256)).unwrap();
        assert_eq!(fixture.admission.admitted(), ByteSize::mib(256));
        let _ = fixture.partition.take_back(target).unwrap();
        assert_eq!(fixture.admission.admitted(), ByteSize::bytes(0));
        // The guest's first request, which was under way by then.
        assert_eq!(fixture.partition.handle(Request::Plug(mib(0, 128))), Handled::Answer(Answer::Nack));
    }
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    ack(&fixture, Request::Plug(mib(0, 128)));
    assert_eq!(fixture.slots.slots(), [(fixture.start(), 128 * MIB)], "no more than was admitted");
}

#[test]
fn what_the_guest_comes_to_reach_beyond_its_size_is_admitted_or_refused() {
    let fixture = plugged(512);
    ack(&fixture, Request::Unplug(mib(0, 512)));
    fixture.partition.wait_discarded(SOON).unwrap();
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    ack(&fixture, Request::Plug(mib(256, 2)));
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(128));
    ack(&fixture, Request::Plug(mib(0, 2)));
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(130));
    fixture.host.set(ByteSize::mib(1));
    assert_eq!(fixture.partition.handle(Request::Plug(mib(128, 2))), Handled::Answer(Answer::Busy));
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(130));
    ack(&fixture, Request::Plug(mib(258, 124)));
    fixture.host.set(ByteSize::mib(2));
    fixture.slots.fail(Some("set"));
    ack(&fixture, Request::Unplug(mib(258, 2)));
    let_the_discard_thread_catch_up(&fixture);
    assert_eq!(fixture.partition.handle(Request::Plug(mib(128, 2))), Handled::Answer(Answer::Busy));
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(130), "what fails is not charged");
}

#[test]
fn slots_follow_granules_where_the_guest_keeps_a_part() {
    let fixture = plugged(384);
    fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 128)));
    let_the_discard_thread_catch_up(&fixture);
    assert_eq!(fixture.slots.calls(), [format!("replace {:#x}+{:#x}", fixture.start(), 384 * MIB)]);
    let start = fixture.start();
    assert_eq!(fixture.slots.slots(), [(start, 128 * MIB), (start + 256 * MIB, 128 * MIB)]);
}

#[test]
fn slots_are_trimmed_after_the_guest_stopped_halfway() {
    let fixture = plugged(256);
    let target = fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 128)));
    assert!(matches!(fixture.partition.wait_unplugged(target, AT_ONCE), Err(WaitError::Timeout { .. })));
    fixture.partition.trim_slots().unwrap();
    assert_eq!(fixture.slots.slots(), [(fixture.start(), 128 * MIB)]);
    fixture.partition.trim_slots().unwrap();
    fixture.partition.wait_discarded(SOON).unwrap();
    assert_eq!(fixture.admission.admitted(), ByteSize::mib(128), "what the guest can still touch");
}

#[test]
fn a_request_that_meets_an_operation_is_put_off_and_figures_are_not() {
    let fixture = plugged(256);
    let waker = Arc::new(EventFd::new(0).unwrap());
    fixture.partition.set_waker(Some(waker.clone()));
    let turn = fixture.partition.turns.take();
    assert_eq!(fixture.partition.handle(Request::State(mib(0, 2))), Handled::Later);
    assert_eq!(fixture.partition.report().plugged, ByteSize::mib(256), "nothing waits for figures");
    drop(turn);
    assert_eq!(waker.read().unwrap(), 1);
    assert!(!matches!(fixture.partition.handle(Request::State(mib(0, 2))), Handled::Later));
}

#[test]
fn sizes_that_can_not_be_are_refused_before_the_guest_hears_of_them() {
    let fixture = plugged(128);
    for (size, expected) in
        [(ByteSize::mib(1), "partition 1 cannot have the size"), (ByteSize::gib(1), "partition 1 cannot have the size")]
    {
        assert_eq!(fixture.partition.set_target(size).unwrap_err().to_string(), expected);
    }
    let id = PartitionId::new(2).unwrap();
    let mut other = crate::admission::Charge::new(fixture.admission.clone(), id, Backing::None);
    other.admit(ByteSize::mib(384), ByteSize::bytes(0)).unwrap();
    let error = fixture.partition.set_target(ByteSize::mib(256)).unwrap_err().to_string();
    assert!(error.contains("beyond the VM's limit of 512 MiB"), "{error}");
    assert_eq!(fixture.partition.report().target, ByteSize::mib(128));
}

#[test]
fn only_an_empty_partition_is_given_up() {
    let fixture = plugged(128);
    let error = fixture.partition.retire().unwrap_err();
    assert_eq!(error.to_string(), "partition 1 cannot be removed: 128 MiB are plugged and 0 bytes being discarded");
    ack(&fixture, Request::UnplugAll);
    fixture.partition.wait_discarded(SOON).unwrap();
    fixture.partition.retire().unwrap();
    assert_eq!(fixture.partition.handle(Request::Plug(mib(0, 2))), Handled::Answer(Answer::Nack));
    assert!(matches!(fixture.partition.set_target(ByteSize::mib(128)), Err(TargetError::Retired(_))));
    assert_eq!(fixture.admission.admitted(), ByteSize::bytes(0));
}

#[test]
fn a_partition_takes_its_slots_and_its_view_along() {
    let Fixture { partition, slots, view, .. } = plugged(256);
    drop(partition);
    assert_eq!(slots.slots(), []);
    assert_eq!(view.memory().num_regions(), 1);
}
