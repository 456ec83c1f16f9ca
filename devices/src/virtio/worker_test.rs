use std::sync::Mutex;
use std::sync::mpsc;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{NOTICE_AFTER, Outcome, Snapshot};
use crate::virtio::testing::{DriverQueue, FakeGuest, FakeInterrupt, PATIENCE, Part};
use vm_memory::{Bytes, GuestAddress};

/// Answers each request with its first readable byte; signals each arrival, and can be blocked before it answers.
struct Echo {
    worker: Option<QueueWorker<EchoHandler>>,
    gate: Arc<Mutex<()>>,
    served: mpsc::Sender<()>,
}

struct EchoHandler {
    gate: Arc<Mutex<()>>,
    served: mpsc::Sender<()>,
}

impl Echo {
    fn new() -> (Self, mpsc::Receiver<()>) {
        let (served, receiver) = mpsc::channel();
        (Self { worker: None, gate: Arc::default(), served }, receiver)
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u16 {
        4
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let handler = EchoHandler { gate: self.gate.clone(), served: self.served.clone() };
        self.worker = Some(QueueWorker::start(&mut activation, 0, handler)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.worker.take().and_then(QueueWorker::stop)]
    }
}

impl QueueHandler for EchoHandler {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        self.served.send(()).unwrap();
        drop(self.gate.lock().unwrap());
        let byte = chain.readable.read_obj::<u8>(&memory);
        Outcome::Used(byte.map_or(0, |byte| chain.writable.write(&memory, 0, &[byte]) as u32))
    }
}

#[test]
fn serves_more_than_its_budget_with_one_kick() {
    let guest = FakeGuest::new();
    let (mut device, served) = Echo::new();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    for _ in 0..200 {
        queue.add_indirect(&[Part::Readable(b"x"), Part::Writable(1)]);
    }
    queue.kick();
    for _ in 0..200 {
        assert_eq!(queue.wait_used().len, 1);
    }
    assert_eq!(served.try_iter().count(), 200);
}

#[test]
fn interrupts_are_suppressed_by_the_used_event() {
    let guest = FakeGuest::new();
    let (mut device, served) = Echo::new();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    queue.set_used_event(2);
    for n in 1..=3 {
        queue.add(&[Part::Readable(b"x"), Part::Writable(1)]);
        queue.kick();
        served.recv_timeout(PATIENCE).unwrap();
        if n == 3 {
            driver.interrupt.wait_queue(0, 1);
        }
    }
    assert_eq!(driver.interrupt.queue_count(0), 1);
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_stays_down_until_then() {
    let guest = FakeGuest::new();
    let (mut device, served) = Echo::new();
    let driver = guest.activate(&mut device);
    // More requests than the ring has room for.
    driver.queues[0].set_available_index(1000);
    driver.queues[0].kick();
    driver.interrupt.wait_needs_reset();
    assert_eq!(served.try_iter().count(), 0);

    device.reset();
    let mut driver = guest.activate(&mut device);
    assert_eq!(driver.queues[0].request(&[b"y"], &[1]).written[0], b"y");
}

#[test]
fn a_head_outside_the_table_asks_for_a_reset() {
    let guest = FakeGuest::new();
    let (mut device, _served) = Echo::new();
    let mut driver = guest.activate(&mut device);
    driver.queues[0].publish(256);
    driver.queues[0].kick();
    driver.interrupt.wait_needs_reset();
    assert_eq!(driver.interrupt.needs_reset_count(), 1);
}

#[test]
fn descriptors_that_loop_come_to_an_end() {
    let guest = FakeGuest::new();
    let (mut device, _served) = Echo::new();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let page = guest.allocate(4096);
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    // 0 -> 1 -> 0, without a writable one.
    queue.set_descriptor(0, page, 1, NEXT, 1);
    queue.set_descriptor(1, page, 1, NEXT, 0);
    queue.publish(0);
    // An indirect table whose entry is indirect and leads to itself.
    let table = guest.allocate(4096);
    queue.set_descriptor(2, table, 16, INDIRECT, 0);
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&table.0.to_le_bytes());
    entry[8] = 16;
    entry[12] = INDIRECT as u8;
    guest.memory().write_slice(&entry, table).unwrap();
    queue.publish(2);
    // Indirect tables of impossible length, and outside memory.
    queue.set_descriptor(3, table, 17, INDIRECT, 0);
    queue.publish(3);
    queue.set_descriptor(4, table, !15, INDIRECT, 0);
    queue.publish(4);
    queue.set_descriptor(5, GuestAddress(u64::MAX - 8), 16, INDIRECT, 0);
    queue.publish(5);
    queue.kick();
    for head in [0, 2, 3, 4, 5] {
        assert_eq!(queue.wait_used().head, head);
    }
    assert_eq!(queue.request(&[b"z"], &[1]).written[0], b"z");
}

#[test]
fn a_ring_whose_end_is_gone_asks_for_a_reset() {
    let goes = (GuestAddress(1 << 30), 1 << 20);
    let guest = FakeGuest::with_memory(&[(GuestAddress(0), 1 << 30), goes]);
    let (mut device, _served) = Echo::new();
    let interrupt = Arc::new(FakeInterrupt::new(1));
    let mut driver = guest.queue(0, 256, interrupt.clone());
    // The index is in what stays, the entries are not.
    driver.available = GuestAddress((1 << 30) - 4);
    driver.set_available_index(1);
    let activation = Activation {
        memory: guest.view().clone(),
        queues: vec![Some(driver.device_side(false))],
        interrupt: interrupt.clone(),
        features: 0,
        event_loop: guest.event_loop().handle(),
    };
    let (rest, _) = guest.memory().remove_region(goes.0, goes.1 as u64).unwrap();
    guest.view().lock().unwrap().replace(rest);
    device.activate(activation).unwrap();
    driver.kick();
    interrupt.wait_needs_reset();
    device.reset();
}

#[test]
fn reset_waits_for_the_request_in_flight() {
    let guest = FakeGuest::new();
    let (mut device, served) = Echo::new();
    let mut driver = guest.activate(&mut device);
    let gate = device.gate.clone();
    let closed = gate.lock().unwrap();
    driver.queues[0].add(&[Part::Readable(b"x"), Part::Writable(1)]);
    driver.queues[0].kick();
    served.recv_timeout(PATIENCE).unwrap();
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| device.reset());
        drop(closed);
        reset.join().unwrap();
        assert!(driver.queues[0].pop_used().is_some());
    });
}

#[test]
fn a_missing_queue_is_refused() {
    let guest = FakeGuest::new();
    let (mut device, _served) = Echo::new();
    let error = device
        .activate(Activation {
            memory: guest.view().clone(),
            queues: vec![None],
            interrupt: Arc::new(FakeInterrupt::new(1)),
            features: 0,
            event_loop: guest.event_loop().handle(),
        })
        .unwrap_err();
    assert!(matches!(error, ActivateError::MissingQueue(0)), "{error}");
}

/// Serves requests one by one as they are let through.
struct Steps {
    begun: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl QueueHandler for Steps {
    fn handle(&mut self, _: &Chain, _: Snapshot) -> Outcome {
        self.begun.send(()).unwrap();
        self.go_on.recv().unwrap();
        Outcome::Used(0)
    }
}

/// A queue with three requests of which the first has begun.
fn three_requests()
-> (FakeGuest, Arc<FakeInterrupt>, QueueWorker<Steps>, DriverQueue, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let guest = FakeGuest::new();
    let interrupt = Arc::new(FakeInterrupt::new(1));
    let mut queue = guest.queue(0, 256, interrupt.clone());
    let ((begun, has_begun), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let mut activation = Activation {
        memory: guest.view().clone(),
        queues: vec![Some(queue.device_side(false))],
        interrupt: interrupt.clone(),
        features: 0,
        event_loop: guest.event_loop().handle(),
    };
    for _ in 0..3 {
        queue.add(&[Part::Writable(1)]);
    }
    let worker = QueueWorker::start(&mut activation, 0, Steps { begun, go_on }).unwrap();
    queue.kick();
    has_begun.recv_timeout(PATIENCE).unwrap();
    (guest, interrupt, worker, queue, has_begun, go)
}

#[test]
fn a_completed_request_is_signalled_before_slow_ones_behind_it() {
    let (_guest, interrupt, worker, mut queue, has_begun, go) = three_requests();
    // The request takes its time.
    std::thread::sleep(2 * NOTICE_AFTER);
    go.send(()).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    assert_eq!(interrupt.queue_count(0), 1, "while the second one runs");
    assert!(queue.pop_used().is_some());
    go.send(()).unwrap();
    go.send(()).unwrap();
    interrupt.wait_queue(0, 2);
    drop(worker);
}

#[test]
fn a_reset_waits_for_one_request_and_not_for_those_behind_it() {
    let (_guest, _interrupt, worker, _queue, has_begun, go) = three_requests();
    let stop = worker.stop.clone();
    let reset = std::thread::spawn(move || drop(worker));
    while !stop.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    (0..3).for_each(|_| go.send(()).unwrap());
    reset.join().unwrap();
    assert_eq!(has_begun.try_iter().count(), 0, "the others were not begun");
}
