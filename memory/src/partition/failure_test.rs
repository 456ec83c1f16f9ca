//! What the host cannot do for a partition.

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::partition_test::{AT_ONCE, SOON, ack, let_the_discard_thread_catch_up, mib, plugged, write};
use super::*;
use crate::testing::{Fixture, RecordedSlots};
use crate::view::{FollowError, Follower};

#[test]
fn what_the_hypervisor_refuses_is_undone() {
    let fixture = Fixture::new(ByteSize::mib(512));
    let target = fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    fixture.slots.fail(Some("set"));
    assert_eq!(fixture.partition.handle(Request::Plug(mib(0, 128))), Handled::Answer(Answer::Busy));
    assert_eq!(fixture.partition.report().plugged, ByteSize::bytes(0));
    assert!(!write(&fixture, 0, 1));
    let error = fixture.partition.wait_plugged(target, SOON).unwrap_err();
    assert_eq!(error.to_string(), "partition 1: the guest's request failed");
    fixture.slots.fail(None);
    ack(&fixture, Request::Plug(mib(0, 128)));
    fixture.partition.wait_plugged(target, AT_ONCE).unwrap();
}

#[test]
fn a_slot_that_can_not_be_deleted_puts_the_partition_out_of_use() {
    let fixture = plugged(128);
    fixture.slots.fail(Some("delete"));
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    assert!(write(&fixture, 0, 1), "devices see what the guest may still use");
    fixture.slots.fail(None);
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    let state = Handled::Answer(Answer::State(BlockState::Plugged));
    assert_eq!(fixture.partition.handle(Request::State(mib(0, 128))), state);
    assert!(matches!(fixture.partition.set_target(ByteSize::bytes(0)), Err(TargetError::Broken(_))));
}

#[test]
fn a_guest_that_has_lost_memory_does_not_go_on() {
    let fixture = plugged(384);
    fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    fixture.slots.fail(Some("replace"));
    ack(&fixture, Request::Unplug(mib(128, 128)));
    let_the_discard_thread_catch_up(&fixture);
    let lost = fixture.slots.lost_memory().unwrap();
    assert!(lost.contains("cannot replace the memory slot"), "{lost}");
    assert!(matches!(fixture.partition.set_target(ByteSize::bytes(0)), Err(TargetError::Broken(_))));

    let unharmed = plugged(128);
    unharmed.slots.fail(Some("delete"));
    assert_eq!(unharmed.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    assert_eq!(unharmed.slots.lost_memory(), None, "what is still there is not lost");
}

#[test]
fn a_slot_that_can_not_be_brought_back_is_lost_memory() {
    let fixture = plugged(384);
    fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    ack(&fixture, Request::Unplug(mib(128, 128)));
    let_the_discard_thread_catch_up(&fixture);
    // Two slots: the first is deleted, the second is not, and the first does not come back.
    fixture.slots.fail_after("delete", 1);
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    assert!(fixture.slots.lost_memory().is_some());
}

#[test]
fn what_can_not_be_discarded_stays_charged_and_is_tried_again() {
    let fixture = plugged(128);
    assert!(write(&fixture, 0, 42));
    let memory = fixture.view.memory().get_host_address(GuestAddress(fixture.start())).unwrap();
    // SAFETY: a page of guest memory, which is mapped; its contents don't change.
    assert_eq!(unsafe { libc::mlock(memory.cast(), 4096) }, 0, "{}", std::io::Error::last_os_error());
    fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    ack(&fixture, Request::UnplugAll);
    for _ in 0..2 {
        let error = fixture.partition.wait_discarded(SOON).unwrap_err();
        assert!(matches!(&error, WaitError::NotDiscarded(_, cause) if cause.to_string().contains("MADV_DONTNEED")));
        let report = fixture.partition.report();
        assert_eq!((report.discarding, report.discarded), (ByteSize::mib(128), ByteSize::bytes(0)));
        assert_eq!(fixture.admission.admitted(), ByteSize::mib(128), "it is still there");
    }
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_eq!(fixture.partition.handle(Request::Plug(mib(0, 2))), Handled::Answer(Answer::Busy));
    fixture.partition.set_target(ByteSize::bytes(0)).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(memory.cast(), 4096) }, 0);
    assert_eq!(fixture.partition.wait_discarded(SOON).unwrap().discarded, ByteSize::kib(4));
    assert_eq!(fixture.admission.admitted(), ByteSize::bytes(0));
}

/// Notes whether the partition's first byte is among the memory that it is told, and how many slots there are at that moment.
struct Watcher {
    slots: Arc<RecordedSlots>,
    start: u64,
    refuses: AtomicBool,
    told: Mutex<Vec<(bool, usize)>>,
}

impl Follower for Watcher {
    fn follow(&self, regions: &[Arc<GuestRegionMmap>]) -> Result<(), FollowError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err("too much".into());
        }
        let seen = regions.iter().any(|region| region.start_addr().0 == self.start);
        self.told.lock().push((seen, self.slots.slots().len()));
        Ok(())
    }
}

#[test]
fn memory_goes_from_followers_before_the_guest_has_lost_it_and_comes_to_them_before_it_has_it() {
    let fixture = Fixture::new(ByteSize::mib(512));
    let watcher = Arc::new(Watcher {
        slots: fixture.slots.clone(),
        start: fixture.start(),
        refuses: AtomicBool::new(false),
        told: Mutex::default(),
    });
    let _following = fixture.view.follow(watcher.clone()).unwrap();
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    ack(&fixture, Request::Plug(mib(0, 128)));
    assert_eq!(watcher.told.lock().last(), Some(&(true, 1)), "when the request is answered");
    fixture.partition.set_target(ByteSize::bytes(0)).unwrap();

    watcher.refuses.store(true, Ordering::Relaxed);
    assert_eq!(fixture.partition.handle(Request::UnplugAll), Handled::Answer(Answer::Busy));
    assert!(write(&fixture, 0, 1), "the guest keeps what a follower goes on using");
    assert_eq!(fixture.slots.slots().len(), 1);

    watcher.refuses.store(false, Ordering::Relaxed);
    ack(&fixture, Request::UnplugAll);
    assert_eq!(watcher.told.lock().last(), Some(&(false, 1)), "before the slot goes");
    assert!(fixture.slots.slots().is_empty());
}
