use std::time::{Duration, Instant};

use vm_memory::{ByteValued as _, GuestAddress};

use super::fake_link::{self, FakeHost};
use super::wire::{GSO_TCPV4, HDR_F_NEEDS_CSUM, HEADER_BYTES, S_LINK_UP, VirtioNetHdr};
use super::*;
use crate::virtio::limits::{LimitersState, Rate, RateLimit};
use crate::virtio::testing::{FakeDriver, FakeGuest, PATIENCE, Part, Used};

/// A device with a driver, and the host behind it.
struct Machine {
    guest: FakeGuest,
    host: FakeHost,
    device: Net,
    handle: NetHandle,
    driver: FakeDriver,
}

/// A buffer that the driver has given to the device: its head, its address and its length.
type Buffer = (u16, GuestAddress, u32);

const EVERYTHING: u64 = u64::MAX;

fn settings() -> NetSettings {
    NetSettings { mac: "02:00:00:00:00:07".parse().unwrap(), mtu: Some(1500), limits: RateLimits::default() }
}

impl Machine {
    fn new() -> Self {
        Self::with(EVERYTHING, &settings())
    }

    /// With the features of `accepted` that are offered.
    fn with(accepted: u64, settings: &NetSettings) -> Self {
        let (link, host) = fake_link::pair();
        let guest = FakeGuest::new();
        let mut device = Net::new(link, settings).unwrap();
        let features = FakeGuest::all_features(&device) & accepted;
        let driver = guest.try_activate(&mut device, features).unwrap();
        Self { guest, host, handle: device.handle(), device, driver }
    }

    /// Gives the device buffers for packets.
    fn post(&mut self, sizes: &[u32]) -> Vec<Buffer> {
        let post = |&size: &u32| {
            let address = self.guest.allocate(size as usize);
            (self.driver.queues[0].add(&[Part::WritableAt(address, size)]), address, size)
        };
        let buffers = sizes.iter().map(post).collect();
        self.driver.queues[0].kick();
        buffers
    }

    /// Waits for a packet of the host in `buffers`, which it takes from the front: its header, what is behind, and how many.
    fn receive(&mut self, buffers: &mut Vec<Buffer>) -> (VirtioNetHdr, Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let mut header = VirtioNetHdr::default();
        let mut count = 0;
        loop {
            let Used { head, len } = if count == 0 {
                self.driver.queues[0].wait_used()
            } else {
                // They have come all at once.
                self.driver.queues[0].pop_used().expect("the rest of the packet")
            };
            let (expected, address, _) = buffers.remove(0);
            assert_eq!(head, u32::from(expected));
            bytes.extend(self.guest.read(address, len as usize));
            if count == 0 {
                header.as_mut_slice().copy_from_slice(&bytes[..HEADER_BYTES]);
            }
            count += 1;
            if count == usize::from(header.num_buffers.to_native()) {
                return (header, bytes.split_off(HEADER_BYTES), count);
            }
        }
    }

    /// Sends a packet of the guest, in pieces.
    fn transmit(&mut self, header: &VirtioNetHdr, frame: &[u8], pieces: usize) {
        let packet = [header.as_slice(), frame].concat();
        let parts: Vec<_> = packet.chunks(packet.len().div_ceil(pieces)).map(Part::Readable).collect();
        self.driver.queues[1].add(&parts);
        self.driver.queues[1].kick();
    }

    fn config(&self) -> (Vec<u8>, u16, u16) {
        let mut bytes = [0xff; 16];
        self.device.read_config(0, &mut bytes);
        assert_eq!(bytes[12..], [0; 4]);
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (bytes[..6].to_vec(), number(6), number(10))
    }
}

/// Bytes that are not all alike.
fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + n / 256) as u8).collect()
}

#[test]
fn packets_go_both_ways() {
    let mut machine = Machine::new();
    let mut buffers = machine.post(&[2000; 4]);
    for size in [14, 60, 1514] {
        machine.host.send_frame(&frame(size));
        assert_eq!(
            machine.receive(&mut buffers),
            (VirtioNetHdr { num_buffers: 1.into(), ..Default::default() }, frame(size), 1)
        );
    }
    for (size, pieces) in [(14, 1), (60, 2), (1514, 5), (1514, 100), (65549, 250)] {
        machine.transmit(&VirtioNetHdr::default(), &frame(size), pieces);
        assert_eq!(machine.host.receive(), (VirtioNetHdr::default(), frame(size)));
        assert_eq!(machine.driver.queues[1].wait_used().len, 0);
    }
    let statistics = machine.handle.statistics();
    assert_eq!(statistics.received, Traffic { packets: 3, bytes: 14 + 60 + 1514, ..Traffic::default() });
    let bytes = 14 + 60 + 2 * 1514 + 65549;
    assert_eq!(statistics.transmitted, Traffic { packets: 5, bytes, ..Traffic::default() });
}

#[test]
fn the_configuration_says_what_was_set() {
    let machine = Machine::new();
    assert_eq!(machine.config(), (vec![2, 0, 0, 0, 0, 7], S_LINK_UP, 1500));
    assert_ne!(machine.device.features() & feature::MTU, 0);
    let untold = Machine::with(EVERYTHING, &NetSettings { mtu: None, ..settings() });
    assert_eq!(untold.device.features() & feature::MTU, 0);
    let (link, _host) = fake_link::pair();
    let error = Net::new(link, &NetSettings { mtu: Some(67), ..settings() }).err().unwrap();
    assert_eq!(error.to_string(), "the largest packet of a network interface has 67 bytes: expected 68 to 65535");
}

#[test]
fn a_large_packet_takes_several_buffers_at_once() {
    let mut machine = Machine::new();
    let large = VirtioNetHdr {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1460.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..VirtioNetHdr::default()
    };
    // The first is a surprise, the second is expected; one that ends with a buffer takes no further one.
    for size in [20_000, 20_000, 4 * 1500 - HEADER_BYTES, 60, 20_001] {
        let mut buffers = machine.post(&[1500; 16]);
        machine.host.send(large, &frame(size));
        let (header, bytes, count) = machine.receive(&mut buffers);
        assert_eq!(count, (size + HEADER_BYTES).div_ceil(1500));
        assert_eq!(header, VirtioNetHdr { num_buffers: (count as u16).into(), ..large });
        assert!(bytes == frame(size), "{size} bytes");
        // Those that are left are used next.
        while !buffers.is_empty() {
            machine.host.send_frame(&frame(100));
            assert_eq!(machine.receive(&mut buffers).1, frame(100));
        }
    }
}

#[test]
fn a_packet_waits_until_there_are_buffers_enough() {
    let mut machine = Machine::new();
    let mut buffers = machine.post(&[1500; 3]);
    let large = VirtioNetHdr { gso_type: GSO_TCPV4, gso_size: 1460.into(), ..checksum() };
    machine.host.send(large, &frame(9000));
    machine.host.send_frame(&frame(64));
    machine.guest.drain();
    assert_eq!(machine.driver.queues[0].pop_used(), None);
    // It waits through a pause, too, and whatever the guest writes into its buffers meanwhile.
    let states = machine.device.suspend();
    assert_eq!(states[0].unwrap().next_avail, 0, "the buffers are available again");
    for (_, address, bytes) in &buffers {
        use vm_memory::Bytes as _;
        machine.guest.memory().write_slice(&vec![0xee; *bytes as usize], *address).unwrap();
    }
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    machine.guest.drain();
    assert_eq!(machine.driver.queues[0].pop_used(), None);
    buffers.extend(machine.post(&[1500; 5]));
    let (_, bytes, count) = machine.receive(&mut buffers);
    assert!(bytes == frame(9000));
    assert_eq!(count, 7);
    assert_eq!(machine.receive(&mut buffers).1, frame(64));
}

fn checksum() -> VirtioNetHdr {
    VirtioNetHdr { flags: HDR_F_NEEDS_CSUM, csum_start: 34.into(), csum_offset: 16.into(), ..VirtioNetHdr::default() }
}

#[test]
fn without_mergeable_buffers_a_packet_has_one_or_is_dropped() {
    let mut machine = Machine::with(!(feature::MRG_RXBUF | feature::MTU), &settings());
    let mut buffers = machine.post(&[1526, 100, 1526, 66_000]);
    machine.host.send_frame(&frame(1514));
    assert_eq!(
        machine.receive(&mut buffers),
        (VirtioNetHdr { num_buffers: 1.into(), ..Default::default() }, frame(1514), 1)
    );
    // Too large for the next buffer, which the packet after it gets.
    machine.host.send_frame(&frame(1514));
    machine.host.send_frame(&frame(88));
    assert_eq!(machine.receive(&mut buffers).1, frame(88));
    machine.host.send_frame(&frame(1514));
    assert_eq!(machine.receive(&mut buffers).1, frame(1514));
    machine.host.send(VirtioNetHdr { gso_type: GSO_TCPV4, gso_size: 1460.into(), ..checksum() }, &frame(65_000));
    assert!(machine.receive(&mut buffers).1 == frame(65_000));
    assert_eq!(machine.handle.statistics().received.dropped, 1);
}

#[test]
fn the_link_does_what_the_driver_does_not() {
    let all = Offloads { checksum: true, tcp4: true, tcp6: true };
    for (without, offloads) in [
        (0, all),
        (feature::GUEST_TSO4, Offloads { tcp4: false, ..all }),
        (feature::GUEST_TSO6, Offloads { tcp6: false, ..all }),
        // These need checksums.
        (feature::GUEST_CSUM, Offloads::default()),
        (u64::MAX, Offloads::default()),
    ] {
        let machine = Machine::with(!without, &settings());
        assert_eq!(machine.host.offloads(), Some(offloads));
    }
}

#[test]
fn packets_that_the_driver_did_not_agree_to_do_not_reach_it() {
    let mut machine = Machine::with(0, &settings());
    let mut buffers = machine.post(&[70_000; 2]);
    machine.host.send(VirtioNetHdr { gso_type: GSO_TCPV4, gso_size: 1460.into(), ..checksum() }, &frame(3000));
    machine.host.send(checksum(), &frame(100));
    machine.host.send_raw(&[0; 25]);
    machine.host.send_raw(&[0; HEADER_BYTES + 65535 + 23]);
    machine.host.send(VirtioNetHdr { flags: 2, ..VirtioNetHdr::default() }, &frame(50));
    // That it was found right is nothing to one that did not ask.
    assert_eq!(
        machine.receive(&mut buffers),
        (VirtioNetHdr { num_buffers: 1.into(), ..Default::default() }, frame(50), 1)
    );
    assert_eq!(machine.handle.statistics().received.malformed, 4);

    let mut machine = Machine::new();
    let mut buffers = machine.post(&[2000; 2]);
    machine.host.send_frame(&frame(1500 + 23));
    machine.host.send_frame(&frame(1500 + 22));
    assert_eq!(machine.receive(&mut buffers).1.len(), 1522, "with two tags");
    assert_eq!(machine.handle.statistics().received.dropped, 1);
}

#[test]
fn a_full_ring_stops_the_reading() {
    let mut machine = Machine::new();
    machine.guest.drain();
    let before = machine.host.calls().0;
    for n in 0..8 {
        machine.host.send_frame(&frame(60 + n));
    }
    machine.guest.drain();
    assert_eq!(machine.host.calls().0, before, "nothing was read without a buffer");
    let mut buffers = machine.post(&[2000; 3]);
    for n in 0..3 {
        assert_eq!(machine.receive(&mut buffers).1.len(), 60 + n);
    }
    machine.guest.drain();
    assert_eq!(machine.host.calls().0, before + 3);
    let mut buffers = machine.post(&[2000; 8]);
    for n in 3..8 {
        assert_eq!(machine.receive(&mut buffers).1.len(), 60 + n);
    }
}

#[test]
fn a_link_that_is_full_keeps_the_packet() {
    let mut machine = Machine::new();
    const PACKETS: usize = 60;
    for n in 0..PACKETS {
        machine.transmit(&VirtioNetHdr::default(), &frame(10_000 + n), 1);
    }
    machine.guest.drain();
    assert!(usize::from(machine.driver.queues[1].used_index()) < PACKETS, "the socket takes a few");
    // It does not try again and again.
    let calls = machine.host.calls().1;
    machine.guest.drain();
    assert_eq!(machine.host.calls().1, calls);
    for n in 0..PACKETS {
        assert_eq!(machine.host.receive().1.len(), 10_000 + n);
    }
    for _ in 0..PACKETS {
        machine.driver.queues[1].wait_used();
    }
    assert_eq!(machine.handle.statistics().transmitted.packets, PACKETS as u64);
    assert_eq!(machine.handle.statistics().transmitted.dropped, 0);
}

#[test]
fn a_link_that_goes_away_leaves_the_guest_running() {
    for write_finds_out in [false, true] {
        let mut machine = Machine::new();
        let _buffers = machine.post(&[2000; 2]);
        machine.guest.drain();
        assert!(machine.handle.is_up());
        machine.host.fail(libc::EBADFD);
        if write_finds_out {
            machine.transmit(&VirtioNetHdr::default(), &frame(60), 1);
        } else {
            machine.host.send_frame(&frame(60));
        }
        machine.driver.interrupt.wait_config(1);
        assert!(!machine.handle.is_up());
        assert_eq!((machine.config().1, machine.device.config_generation()), (0, 1));
        let calls = machine.host.calls();
        // The driver's packets are dropped, not kept, also by a device that goes on.
        for _ in 0..2 {
            machine.transmit(&VirtioNetHdr::default(), &frame(60), 1);
            while machine.handle.statistics().transmitted.dropped == 0 || machine.driver.queues[1].pop_used().is_none()
            {
                std::thread::yield_now();
            }
            let states = machine.device.suspend();
            machine.guest.resume(&mut machine.device, &machine.driver, states);
        }
        machine.guest.drain();
        assert_eq!(machine.host.calls(), calls);
        assert_eq!(machine.driver.interrupt.needs_reset_count(), 0);
    }
}

/// A guest whose interface is down gives the device no buffers, and sends nothing.
#[test]
fn a_link_that_goes_away_is_missed_without_traffic() {
    let machine = Machine::new();
    machine.guest.drain();
    machine.host.hang_up();
    machine.driver.interrupt.wait_config(1);
    assert!(!machine.handle.is_up());
    assert_eq!(machine.driver.interrupt.needs_reset_count(), 0);
}

#[test]
fn an_error_of_the_moment_costs_a_packet() {
    let mut machine = Machine::new();
    // An interface that is down.
    machine.host.fail(libc::EIO);
    machine.transmit(&VirtioNetHdr::default(), &frame(60), 1);
    machine.driver.queues[1].wait_used();
    machine.host.fail(0);
    machine.transmit(&VirtioNetHdr::default(), &frame(61), 1);
    assert_eq!(machine.host.receive().1.len(), 61);
    machine.driver.queues[1].wait_used();
    assert!(machine.handle.is_up());
    let transmitted = machine.handle.statistics().transmitted;
    assert_eq!((transmitted.packets, transmitted.dropped), (1, 1));
}

#[test]
fn an_offload_that_is_refused_stops_the_start() {
    let (link, host) = fake_link::pair();
    let guest = FakeGuest::new();
    let mut device = Net::new(link, &settings()).unwrap();
    host.fail(libc::EINVAL);
    let features = FakeGuest::all_features(&device);
    let error = guest.try_activate(&mut device, features).err().unwrap();
    assert!(matches!(error, ActivateError::Host { .. }), "{error}");
    host.fail(0);
    guest.try_activate(&mut device, features).unwrap();
}

#[test]
fn limits_slow_both_directions_down_and_can_be_lifted() {
    let rate = |per_second: u64, burst: u64| {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap(), one_time_burst: 0 })
    };
    let slow = RateLimit { bandwidth: rate(1_000_000, 1), operations: None };
    let few = RateLimit { bandwidth: None, operations: rate(100, 2) };
    for (receive, transmit, least) in [
        (RateLimit::default(), few, Duration::from_millis(20)),
        (few, RateLimit::default(), Duration::from_millis(20)),
        (RateLimit::default(), slow, Duration::from_millis(30)),
        (slow, RateLimit::default(), Duration::from_millis(30)),
    ] {
        let limits = RateLimits { receive, transmit };
        let mut machine = Machine::with(EVERYTHING & !feature::MTU, &NetSettings { limits, ..settings() });
        assert_eq!(machine.handle.limits(), limits);
        let begin = Instant::now();
        let mut buffers = machine.post(&[12_000; 5]);
        for _ in 0..4 {
            if transmit == RateLimit::default() {
                machine.host.send_frame(&frame(10_000));
            } else {
                machine.transmit(&VirtioNetHdr::default(), &frame(10_000), 1);
            }
        }
        for _ in 0..4 {
            if transmit == RateLimit::default() {
                machine.receive(&mut buffers);
            } else {
                let _ = machine.host.receive();
            }
        }
        assert!(begin.elapsed() >= least, "{:?}: {limits:?}", begin.elapsed());
        assert!(begin.elapsed() < PATIENCE);
    }

    let stopped = RateLimit { bandwidth: None, operations: rate(1, 1) };
    let mut machine = Machine::with(
        EVERYTHING,
        &NetSettings { limits: RateLimits { receive: stopped, transmit: stopped }, ..settings() },
    );
    let begin = Instant::now();
    for n in 0..8 {
        machine.transmit(&VirtioNetHdr::default(), &frame(60 + n), 1);
    }
    let _ = machine.host.receive();
    machine.handle.set_limits(RateLimits::default());
    for _ in 0..7 {
        let _ = machine.host.receive();
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "the limits were lifted: {:?}", begin.elapsed());
}

/// Neither a suspension nor a reset brings a new burst, and a device that goes on from the state has what the first one had left.
#[test]
fn what_a_limit_has_left_outlives_the_driver() {
    let slow = Rate { per_second: 1.try_into().unwrap(), burst: 1000.try_into().unwrap(), one_time_burst: 2 };
    let transmit = RateLimit { bandwidth: None, operations: Some(slow) };
    let settings = NetSettings { limits: RateLimits { transmit, ..RateLimits::default() }, ..settings() };
    let (link, host) = fake_link::pair();
    let guest = FakeGuest::new();
    let mut device = Net::new(link.again(), &settings).unwrap();
    let left = |device: &Net| {
        let DeviceState::Net(state) = device.save() else { panic!("the state of another device") };
        let bucket = state.limiters.transmit.operations.unwrap();
        assert_eq!((bucket.rate, state.limiters.receive), (slow, Default::default()));
        (bucket.tokens, bucket.one_time_burst)
    };
    assert_eq!(left(&device), (1000, 2));
    let packet = [&[0; HEADER_BYTES][..], &frame(60)].concat();
    for (sent, expected) in [(1, (1000, 1)), (3, (998, 0))] {
        let mut driver = guest.activate(&mut device);
        for _ in 0..sent {
            assert_eq!(driver.queues[1].request(&[&packet], &[]).len, 0);
            let _ = host.receive();
        }
        device.reset();
        assert_eq!(left(&device), expected);
    }
    let mut other = Net::new(link.again(), &NetSettings { limits: RateLimits::default(), ..settings }).unwrap();
    other.restore(&device.save()).unwrap();
    assert_eq!((other.save(), other.handle().limits()), (device.save(), settings.limits));
    let mut wrong = device.save();
    let DeviceState::Net(state) = &mut wrong else { panic!("{wrong:?}") };
    state.limiters.transmit.operations.as_mut().unwrap().tokens = 1001;
    assert!(other.restore(&wrong).unwrap_err().to_string().contains("at most 1000"));
    other.handle().set_limits(RateLimits::default());
    let DeviceState::Net(lifted) = other.save() else { panic!("the state of another device") };
    assert_eq!(lifted.limiters, LimitersState::default(), "a change counts from when it was made");
}

#[test]
fn the_driver_is_interrupted_for_every_packet_that_it_waits_for() {
    // Without and with event indices, which count buffers and not packets.
    for without in [0, 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX] {
        let mut machine = Machine::with(!without, &settings());
        let mut buffers = machine.post(&[1000; 60]);
        let large = VirtioNetHdr { gso_type: GSO_TCPV4, gso_size: 1460.into(), ..checksum() };
        for _ in 0..5 {
            // The interrupt that the driver asks for lies anywhere among a packet's buffers.
            machine.host.send(large, &frame(8_500));
            let (_, bytes, count) = machine.receive(&mut buffers);
            assert_eq!((bytes.len(), count), (8_500, 9));
        }
    }
}

#[test]
fn a_state_is_that_of_one_interface() {
    let machine = Machine::new();
    let state = machine.device.save();
    let device = |settings| Net::new(fake_link::pair().0, &settings).unwrap();
    device(settings()).restore(&state).unwrap();
    let other = NetSettings { mac: "02:00:00:00:00:08".parse().unwrap(), ..settings() };
    let error = device(other).restore(&state).unwrap_err().to_string();
    assert!(error.contains("[2, 0, 0, 0, 0, 7]") && error.contains("[2, 0, 0, 0, 0, 8]"), "{error}");
    device(NetSettings { mtu: Some(1400), ..settings() }).restore(&state).unwrap_err();
    device(NetSettings { mtu: None, ..settings() }).restore(&state).unwrap_err();
}
