//! A queue that the host drives, like the receive queue of a network device.

use std::os::unix::net::UnixDatagram;

use event_manager::MutEventSubscriber;

use super::*;
use crate::event_loop::OnLoop;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{FakeDriver, FakeGuest, Part};

const PACKETS: u16 = 0;
const KICK: u32 = 0;
const HOST: u32 = 1;

/// A device that puts each packet of the host into a buffer of the driver.
struct Receiver {
    host: Arc<UnixDatagram>,
    active: Option<OnLoop<Handler>>,
}

struct Handler {
    queue: DeviceQueue,
    packets: Packets,
}

struct Packets {
    host: Arc<UnixDatagram>,
    /// A packet that waits for a buffer.
    next: Option<Vec<u8>>,
}

impl QueueHandler for Packets {
    fn is_ready(&mut self) -> bool {
        if self.next.is_none() {
            let mut packet = [0; 64];
            self.next = self.host.recv(&mut packet).ok().map(|bytes| packet[..bytes].to_vec());
        }
        self.next.is_some()
    }

    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        // This device accepts no smaller buffers; they stay where they are.
        let Some(packet) = self.next.take_if(|packet| packet.len() as u64 <= chain.writable.bytes()) else {
            return Outcome::NotYet;
        };
        Outcome::Used(chain.writable.write(&memory, 0, &packet) as u32)
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, _: &mut EventOps) {
        match events.data() {
            KICK => self.queue.kicked(&mut self.packets),
            _ => self.queue.serve(&mut self.packets),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.queue.listen(KICK, ops);
        // Packets without a buffer must not wake the loop again and again.
        ops.add(Events::with_data(&*self.packets.host, HOST, EventSet::IN | EventSet::EDGE_TRIGGERED)).unwrap();
    }
}

impl VirtioDevice for Receiver {
    fn device_type(&self) -> u16 {
        1
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = DeviceQueue::take(&mut activation, PACKETS)?;
        let packets = Packets { host: self.host.clone(), next: None };
        let handler = Handler { queue, packets };
        self.active = Some(activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.active.take().and_then(OnLoop::take_back).map(|handler| handler.queue.state())]
    }
}

fn receiver() -> (FakeGuest, Receiver, FakeDriver, UnixDatagram) {
    let guest = FakeGuest::new();
    let (wire, host) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut device = Receiver { host: Arc::new(host), active: None };
    let driver = guest.activate(&mut device);
    (guest, device, driver, wire)
}

#[test]
fn buffers_wait_for_packets() {
    let (guest, _device, mut driver, wire) = receiver();
    let queue = &mut driver.queues[0];
    let pending: Vec<_> = (0..100).map(|_| queue.begin(&[], &[64])).collect();
    queue.kick();
    guest.drain();
    assert_eq!(queue.used_index(), 0, "the host has nothing for the driver");
    for (number, pending) in (0_u8..).zip(pending) {
        wire.send(&[number; 3]).unwrap();
        let done = queue.finish(pending);
        assert_eq!(done.len, 3);
        assert_eq!(done.written[0][..4], [number, number, number, 0]);
    }
}

#[test]
fn packets_wait_for_buffers() {
    let (guest, _device, mut driver, wire) = receiver();
    let queue = &mut driver.queues[0];
    for number in 0..5_u8 {
        wire.send(&[number]).unwrap();
    }
    guest.drain();
    for number in 0..5_u8 {
        let done = queue.request(&[], &[64]);
        assert_eq!(done.written[0][0], number, "in the order in which they came");
    }
    let pending = queue.begin(&[], &[64]);
    queue.kick();
    guest.drain();
    assert_eq!(queue.used_index(), 5, "no packet is left for the last buffer");
    wire.send(b"late").unwrap();
    assert_eq!(queue.finish(pending).len, 4);
}

#[test]
fn a_chain_that_is_not_used_stays_the_next_one() {
    let (guest, mut device, mut driver, wire) = receiver();
    wire.send(&[7; 20]).unwrap();
    let buffer = guest.allocate(64);
    let head = driver.queues[0].add(&[Part::WritableAt(buffer, 8)]);
    driver.queues[0].kick();
    guest.drain();
    assert_eq!(driver.queues[0].used_index(), 0);
    let states = device.suspend();
    assert_eq!(states[0].unwrap().next_avail, 0);
    // The driver mends its buffer.
    driver.queues[0].set_descriptor(head, buffer, 64, 2, 0);
    wire.send(&[8; 20]).unwrap();
    guest.resume(&mut device, &driver, states);
    assert_eq!(driver.queues[0].wait_used().len, 20);
}
