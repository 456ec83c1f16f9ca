//! A driver that breaks the rules: nothing of it reaches the host, and the device goes on.

use vm_memory::{ByteValued as _, GuestAddress};

use super::fake_link::{self, FakeHost};
use super::wire::{HEADER_BYTES, VirtioNetHdr};
use super::*;
use crate::virtio::testing::{FakeDriver, FakeGuest, Part};

struct Machine {
    guest: FakeGuest,
    host: FakeHost,
    device: Net,
    driver: FakeDriver,
}

impl Machine {
    fn new() -> Self {
        let (link, host) = fake_link::pair();
        let guest = FakeGuest::new();
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let mut device = Net::new(link, &NetSettings { mac, mtu: None, limits: RateLimits::default() }).unwrap();
        let driver = guest.activate(&mut device);
        Self { guest, host, device, driver }
    }

    fn statistics(&self) -> NetStatistics {
        self.device.handle().statistics()
    }

    /// A sound packet each way.
    fn assert_works(&mut self) {
        let before = self.statistics();
        self.driver.queues[1].request(&[&[0; HEADER_BYTES], &[3; 60]], &[]);
        assert_eq!(self.host.receive(), (VirtioNetHdr::default(), vec![3; 60]));
        self.host.send_frame(&[4; 60]);
        let done = self.driver.queues[0].request(&[], &[2000]);
        assert_eq!(done.len as usize, HEADER_BYTES + 60);
        assert_eq!(done.written[0][HEADER_BYTES..][..60], [4; 60]);
        let now = self.statistics();
        assert_eq!(now.transmitted.packets, before.transmitted.packets + 1);
        assert_eq!(now.received.packets, before.received.packets + 1);
    }
}

#[test]
fn malformed_packets_do_not_reach_the_host() {
    let mut machine = Machine::new();
    let end = FakeGuest::MEMORY as u64;
    let header = [0; HEADER_BYTES];
    let frame = [7; 60];
    let bad_header = |change: fn(&mut VirtioNetHdr)| {
        let mut header = VirtioNetHdr::default();
        change(&mut header);
        header.as_slice().to_vec()
    };
    let headers = [
        bad_header(|header| header.gso_type = 2),
        bad_header(|header| header.gso_type = 0xff),
        bad_header(|header| (header.gso_type, header.gso_size) = (1, 1000.into())),
        bad_header(|header| (header.gso_type, header.flags, header.csum_start) = (1, 1, 34.into())),
        bad_header(|header| (header.flags, header.csum_start, header.csum_offset) = (1, 59.into(), 0.into())),
        bad_header(|header| (header.flags, header.csum_start, header.csum_offset) = (1, 0.into(), 0.into())),
        bad_header(|header| (header.flags, header.csum_start, header.csum_offset) = (1, 65535.into(), 65535.into())),
    ];
    let mut chains: Vec<Vec<Part<'_>>> = vec![
        vec![Part::Readable(&[])],
        vec![Part::Readable(&header[..11])],
        vec![Part::Readable(&header)],
        vec![Part::Readable(&header), Part::Readable(&frame[..13])],
        vec![Part::Readable(&header), Part::Readable(&frame), Part::Writable(1)],
        vec![Part::Writable(2000)],
        vec![Part::Writable(1), Part::Readable(&header), Part::Readable(&frame)],
        vec![Part::ReadableAt(GuestAddress(0x1000), u32::MAX)],
        vec![Part::ReadableAt(GuestAddress(0x1000), 65557 + HEADER_BYTES as u32 + 1)],
        vec![Part::Readable(&header), Part::ReadableAt(GuestAddress(end - 30), 60)],
        vec![Part::Readable(&header), Part::ReadableAt(GuestAddress(u64::MAX - 30), 60)],
        vec![Part::ReadableAt(GuestAddress(end), HEADER_BYTES as u32), Part::Readable(&frame)],
        vec![Part::ReadableAt(GuestAddress(u64::MAX), u32::MAX); 200],
    ];
    chains.extend(headers.iter().map(|header| vec![Part::Readable(header), Part::Readable(&frame)]));
    let count = chains.len() as u64;
    for chain in chains {
        assert_eq!(machine.driver.queues[1].request_parts(&chain).len, 0);
    }
    assert_eq!(machine.statistics().transmitted, Traffic { malformed: count, ..Traffic::default() });
    assert!(!machine.host.has_packet());
    assert_eq!(machine.host.calls().1, 0);
    machine.assert_works();
}

#[test]
fn chains_that_do_not_end_are_given_back() {
    let mut machine = Machine::new();
    for (queue, flags) in [(0, 3), (1, 1)] {
        if queue == 0 {
            machine.host.send_frame(&[1; 60]);
        }
        for next in [200, 201, 256, u16::MAX] {
            let address = machine.guest.allocate(4096);
            let queue = &mut machine.driver.queues[queue];
            queue.set_descriptor(200, address, 100, flags, 201);
            queue.set_descriptor(201, address, 100, flags, next);
            queue.publish(200);
            queue.kick();
            let used = queue.wait_used();
            assert_eq!((used.head, used.len), (200, 0));
        }
        let pieces = vec![if queue == 0 { Part::Writable(16) } else { Part::Readable(&[0; 16]) }; 600];
        machine.driver.queues[queue].add_indirect(&pieces);
        machine.driver.queues[queue].kick();
        assert_eq!(machine.driver.queues[queue].wait_used().len, 0);
        // The packet that found no buffer gets the next.
        if queue == 0 {
            let done = machine.driver.queues[0].request(&[], &[100]);
            assert_eq!(done.written[0][HEADER_BYTES..][..60], [1; 60]);
        }
    }
    machine.assert_works();
}

#[test]
fn useless_receive_buffers_are_given_back() {
    let mut machine = Machine::new();
    let end = FakeGuest::MEMORY as u64;
    machine.host.send_frame(&[1; 60]);
    for parts in [
        &[Part::Writable(HEADER_BYTES as u32 - 1)][..],
        &[Part::Readable(&[0; 100])],
        &[Part::Readable(&[0; 100]), Part::Writable(2000)],
        &[Part::WritableAt(GuestAddress(end - 10), 2000)],
        &[Part::WritableAt(GuestAddress(u64::MAX - 10), 2000)],
        &[Part::Writable(2000), Part::Readable(b"x")],
        &[Part::WritableAt(GuestAddress(end - 10), u32::MAX), Part::WritableAt(GuestAddress(0), u32::MAX)],
    ] {
        assert_eq!(machine.driver.queues[0].request_parts(parts).len, 0);
    }
    assert_eq!(machine.statistics().received, Traffic { malformed: 7, ..Traffic::default() });
    let done = machine.driver.queues[0].request(&[], &[5, 7, 60]);
    assert_eq!(done.written[2], [1; 60]);
    machine.assert_works();
}

/// The header of a packet to be segmented.
fn large() -> VirtioNetHdr {
    VirtioNetHdr {
        flags: 1,
        gso_type: 1,
        gso_size: 1460.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..VirtioNetHdr::default()
    }
}

#[test]
fn a_malformed_buffer_among_those_of_a_large_packet_costs_the_packet() {
    let mut machine = Machine::new();
    machine.guest.drain();
    let large = large();
    let queue = &mut machine.driver.queues[0];
    let sound = queue.add(&[Part::Writable(1000)]);
    let malformed = queue.add(&[Part::Writable(3)]);
    let last = queue.add(&[Part::Writable(1000)]);
    machine.host.send(large, &[1; 3000]);
    machine.host.send_frame(&[2; 60]);
    machine.host.send_frame(&[3; 60]);
    machine.driver.queues[0].kick();
    for (head, len) in [(sound, 72), (malformed, 0), (last, 72)] {
        let used = machine.driver.queues[0].wait_used();
        assert_eq!((used.head, used.len), (u32::from(head), len));
    }
    assert_eq!(machine.statistics().received.dropped, 1);
    machine.assert_works();
}

#[test]
fn a_packet_larger_than_all_buffers_together_is_dropped() {
    let mut machine = Machine::new();
    let large = large();
    machine.host.send(large, &[1; 60_000]);
    machine.host.send_frame(&[2; 60]);
    // Every descriptor of the queue, with two pieces for each call to fill.
    for _ in 0..256 {
        machine.driver.queues[0].add(&[Part::Writable(100)]);
    }
    machine.driver.queues[0].kick();
    assert_eq!(machine.driver.queues[0].wait_used().len, 72);
    assert_eq!(machine.statistics().received, Traffic { packets: 1, bytes: 60, malformed: 0, dropped: 1 });
}

#[test]
fn a_packet_in_very_many_pieces_arrives_whole() {
    let mut machine = Machine::new();
    let frame: Vec<u8> = (0..1500).map(|n| (n % 251) as u8).collect();
    machine.host.send_frame(&frame);
    // More pieces than one call takes, some of them empty.
    let sizes: Vec<u32> = [12].into_iter().chain((0..250).map(|n| n % 13)).collect();
    assert!(sizes.iter().sum::<u32>() as usize >= HEADER_BYTES + 1400);
    let whole: Vec<u32> = sizes.into_iter().chain([200]).collect();
    let done = machine.driver.queues[0].request(&[], &whole);
    assert_eq!(done.len as usize, HEADER_BYTES + 1500);
    assert!(done.written.concat()[HEADER_BYTES..][..1500] == frame);
}

#[test]
fn an_impossible_ring_needs_a_reset() {
    for queue in [0, 1] {
        let mut machine = Machine::new();
        machine.host.send_frame(&[1; 60]);
        machine.driver.queues[queue].set_available_index(1000);
        machine.driver.queues[queue].kick();
        machine.driver.interrupt.wait_needs_reset();
        machine.driver.queues[queue].kick();
        machine.guest.drain();
        assert_eq!(machine.driver.interrupt.needs_reset_count(), 1);
        machine.device.reset();
        machine.driver = machine.guest.activate(&mut machine.device);
        if queue == 0 {
            // What came for the old driver is for the new one too.
            let done = machine.driver.queues[0].request(&[], &[2000]);
            assert_eq!(done.written[0][HEADER_BYTES..][..60], [1; 60]);
        } else {
            let done = machine.driver.queues[0].request(&[], &[2000]);
            assert_eq!(done.len as usize, HEADER_BYTES + 60);
        }
        machine.assert_works();
    }
}
