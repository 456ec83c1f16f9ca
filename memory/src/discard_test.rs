use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

use super::*;
use crate::host::Backing;

const MIB: u64 = 1 << 20;

#[test]
fn ranges_are_discarded_in_order_and_counted() {
    let discarder = Discarder::spawn().unwrap();
    let mapping = Arc::new(HostMapping::reserve(16 * MIB, Backing::None).unwrap());
    let region = mapping.region(0, 16 * MIB, GuestAddress(0)).unwrap();
    for page in 0..3 {
        region.write_obj(1_u8, MemoryRegionAddress(page * 4096)).unwrap();
    }
    region.write_obj(1_u8, MemoryRegionAddress(8 * MIB)).unwrap();
    let (sender, receiver) = mpsc::channel();
    for range in 0..4 {
        let sender = sender.clone();
        let done = move |discarded: Discarded| sender.send((range, discarded)).unwrap();
        discarder.queue().discard(mapping.clone(), range * 4 * MIB, 4 * MIB, done).unwrap();
    }
    for (range, freed) in [(0, 3 * 4096), (1, 0), (2, 4096), (3, 0)] {
        let (done, discarded) = receiver.recv().unwrap();
        assert_eq!((done, discarded.freed), (range, ByteSize::bytes(freed)));
        assert!(discarded.error.is_none());
    }
    assert_eq!(region.read_obj::<u8>(MemoryRegionAddress(0)).unwrap(), 0);
}

#[test]
fn an_impossible_range_is_reported() {
    let discarder = Discarder::spawn().unwrap();
    let mapping = Arc::new(HostMapping::reserve(2 * MIB, Backing::None).unwrap());
    let (sender, receiver) = mpsc::channel();
    discarder.queue().discard(mapping, 2 * MIB, 2 * MIB, move |discarded| sender.send(discarded).unwrap()).unwrap();
    assert!(matches!(receiver.recv().unwrap().error, Some(MapError::NoRange { .. })));
}

#[test]
fn ending_finishes_what_is_queued_and_takes_nothing_more() {
    let discarder = Discarder::spawn().unwrap();
    let queue = discarder.queue();
    let (sender, receiver) = mpsc::channel();
    for n in 0..100 {
        let sender = sender.clone();
        queue.run(move || sender.send(n).unwrap()).unwrap();
    }
    drop((discarder, sender));
    assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!(queue.run(|| ()), Err(WorkerEnded));
}

#[test]
fn others_wait_for_no_thread_that_gives_way() {
    let policy = || {
        // SAFETY: takes numbers only; on Linux 0 is this thread.
        unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) }
    };
    let discarder = Discarder::spawn().unwrap();
    let (sender, receiver) = mpsc::channel();
    let urgent = sender.clone();
    discarder.queue().run(move || urgent.send(policy()).unwrap()).unwrap();
    assert_eq!(receiver.recv().unwrap(), policy(), "as urgent as this one");
    let mapping = Arc::new(HostMapping::reserve(2 * MIB, Backing::None).unwrap());
    discarder.queue().discard(mapping, 0, 2 * MIB, move |_| sender.send(policy()).unwrap()).unwrap();
    assert_ne!(receiver.recv().unwrap(), policy(), "which discards are not");
}
