use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::thread;

use proptest::prelude::*;
use vm_memory::ByteValued as _;

use super::super::framing::tests::{framed, packets, sizes};
use super::super::wire::{MAX_FRAME, S_LINK_UP, feature};
use super::super::{MacAddress, Net, NetHandle, NetSettings, RateLimits};
use super::*;
use crate::virtio::VirtioDevice as _;
use crate::virtio::testing::{FakeDriver, FakeGuest, PATIENCE, Part};

/// A link, and the other side of its stream.
fn pair() -> (StreamLink, UnixStream) {
    let (device, host) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    host.set_write_timeout(Some(PATIENCE)).unwrap();
    (StreamLink::from(device), host)
}

fn read(link: &StreamLink) -> io::Result<Vec<u8>> {
    let mut header = VirtioNetHdr { flags: 0xff, ..VirtioNetHdr::default() };
    let (mut first, mut second) = (vec![0; 1000], vec![0; MAX_FRAME]);
    let mut room = Room::empty();
    assert!(room.push(&mut first) && room.push(&mut second));
    let bytes = link.read(&mut header, &mut room)?;
    assert_eq!(header, VirtioNetHdr::default());
    let mut frame = [first, second].concat();
    frame.truncate(bytes - HEADER_BYTES);
    Ok(frame)
}

/// Writes a packet in pieces of `piece` bytes.
fn write(link: &StreamLink, frame: &[u8], piece: usize) -> io::Result<Written> {
    let mut source = Source::empty();
    let piece = piece.max(frame.len().div_ceil(60));
    assert!(frame.chunks(piece).all(|piece| source.push(piece)));
    link.write(&VirtioNetHdr::default(), &mut source)
}

fn would_block<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn packets_come_whole_through_a_socket(
        sizes in sizes(),
        steps in proptest::collection::vec(prop_oneof![1_usize..9, 1_usize..100_000], 1..20),
    ) {
        let (link, mut host) = pair();
        let (expected, stream) = (packets(&sizes), framed(&packets(&sizes)));
        let (mut taken, mut begin, mut steps) = (Vec::new(), 0, steps.iter().cycle());
        while begin < stream.len() {
            let end = (begin + steps.next().unwrap()).min(stream.len());
            host.write_all(&stream[begin..end]).unwrap();
            begin = end;
            loop {
                match read(&link) {
                    Ok(packet) => taken.push(packet),
                    result => break prop_assert!(would_block(&result)),
                }
            }
        }
        prop_assert!(taken == expected);
        drop(host);
        prop_assert_eq!(read(&link).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn packets_leave_whole_whatever_the_other_side_takes(
        sizes in sizes(),
        piece in 1_usize..5000,
        steps in proptest::collection::vec(1_usize..50_000, 1..20),
    ) {
        let (link, mut host) = pair();
        let (expected, mut taken) = (framed(&packets(&sizes)), Vec::new());
        let mut steps = steps.iter().cycle();
        let mut take = |taken: &mut Vec<u8>| {
            let mut bytes = vec![0; *steps.next().unwrap()];
            let read = host.read(&mut bytes).unwrap();
            taken.extend_from_slice(&bytes[..read]);
        };
        for packet in &packets(&sizes) {
            let mut written = write(&link, packet, piece);
            while would_block(&written) {
                // Nothing of it is on its way.
                take(&mut taken);
                written = write(&link, packet, piece);
            }
            written.unwrap();
        }
        while would_block(&link.flush()) {
            take(&mut taken);
        }
        link.flush().unwrap();
        while taken.len() < expected.len() {
            take(&mut taken);
        }
        prop_assert!(taken == expected);
    }
}

#[test]
fn what_is_no_stream_is_refused_with_its_number() {
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    let internet = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for (fd, what) in [
        (datagram.as_raw_fd(), "a Unix socket of another type"),
        (file.as_raw_fd(), "not a socket"),
        (internet.as_raw_fd(), "a socket of another family"),
        (listener.as_raw_fd(), "not connected"),
    ] {
        let error = StreamLink::from_descriptor(fd).unwrap_err();
        assert!(
            matches!(&error, StreamError::NotStream { fd: found, found: kind } if (*found, *kind) == (fd, what)),
            "{error}"
        );
    }
    assert!(matches!(StreamLink::from_descriptor(-1), Err(StreamError::Descriptor { fd: -1, .. })));

    let link = StreamLink::connect(&path).unwrap();
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(&framed(&packets(&[60]))).unwrap();
    assert_eq!(read(&link).unwrap().len(), 60);
    let again = StreamLink::from_descriptor(link.socket.as_raw_fd()).unwrap();
    host.write_all(&framed(&packets(&[61]))).unwrap();
    assert_eq!(read(&again).unwrap().len(), 61);
    drop(listener);
    let error = StreamLink::connect(&path).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("passt"), "{error}");
}

/// A device at a stream, with a driver.
struct Machine {
    guest: FakeGuest,
    host: UnixStream,
    device: Net,
    handle: NetHandle,
    driver: FakeDriver,
}

impl Machine {
    fn new() -> Self {
        let (link, host) = pair();
        let guest = FakeGuest::new();
        let mac = MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap();
        let mut device = Net::new(link, &NetSettings { mac, mtu: None, limits: RateLimits::default() }).unwrap();
        let driver = guest.activate(&mut device);
        Self { guest, host, handle: device.handle(), device, driver }
    }

    /// Has the guest send a packet.
    fn transmit(&mut self, frame: &[u8]) {
        self.driver.queues[1].add(&[Part::Readable(&[0; HEADER_BYTES]), Part::Readable(frame)]);
        self.driver.queues[1].kick();
    }

    /// Gives the guest a buffer of `bytes` bytes, and waits for a packet in it.
    fn receive(&mut self, bytes: u32) -> Vec<u8> {
        let done = self.driver.queues[0].request(&[], &[bytes]);
        let mut written = done.written.concat();
        written.truncate(done.len as usize);
        written.split_off(HEADER_BYTES)
    }

    /// Reads `bytes` bytes of the stream.
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.host.read_exact(&mut taken).unwrap();
        taken
    }

    /// Bytes of the stream that are there to be read.
    fn waiting(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one `int`, which lives through the call.
        assert_eq!(unsafe { libc::ioctl(self.host.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
        bytes as usize
    }

    /// Whether the guest is told that the link is up.
    fn says_up(&self) -> bool {
        let mut status = [0; 2];
        self.device.read_config(6, &mut status);
        u16::from_le_bytes(status) & S_LINK_UP != 0
    }
}

#[test]
fn packets_go_both_ways_and_are_complete() {
    let mut machine = Machine::new();
    assert_eq!(machine.device.features() & (feature::OFFLOADS | feature::MTU), 0);
    assert_ne!(machine.device.features() & feature::MRG_RXBUF, 0);
    let sizes = [14, 60, 1514, MAX_FRAME];
    for frame in packets(&sizes) {
        machine.transmit(&frame);
        let stream = framed(std::slice::from_ref(&frame));
        assert!(machine.take(stream.len()) == stream);
        machine.driver.queues[1].wait_used();
        machine.host.write_all(&stream).unwrap();
        assert!(machine.receive(70_000) == frame);
    }
    // A packet whose checksum is missing was not agreed upon.
    let header = VirtioNetHdr { flags: 1, csum_start: 34.into(), csum_offset: 16.into(), ..VirtioNetHdr::default() };
    machine.driver.queues[1].request(&[header.as_slice(), &[0; 60]], &[]);
    let statistics = machine.handle.statistics();
    assert_eq!((statistics.transmitted.packets, statistics.transmitted.malformed), (4, 1));
    assert_eq!(statistics.received.packets, 4);
}

#[test]
fn a_length_that_is_too_small_costs_that_packet_alone() {
    let mut machine = Machine::new();
    let stream = framed(&packets(&[0, 13, 1, 60]));
    machine.host.write_all(&stream).unwrap();
    assert_eq!(machine.receive(2000), packets(&[0, 0, 0, 60])[3]);
    assert_eq!(machine.handle.statistics().received.malformed, 3);
    assert!(machine.handle.is_up());
}

#[test]
fn a_length_that_is_too_large_ends_the_link() {
    for length in [MAX_FRAME as u32 + 1, 1 << 31, u32::MAX] {
        let mut machine = Machine::new();
        machine.host.write_all(&framed(&packets(&[60]))).unwrap();
        machine.host.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(machine.receive(2000).len(), 60);
        machine.driver.queues[0].add(&[Part::Writable(2000)]);
        machine.driver.queues[0].kick();
        machine.driver.interrupt.wait_config(1);
        assert!(!machine.handle.is_up() && !machine.says_up());
        // The guest's packets are dropped.
        machine.transmit(&[0; 60]);
        machine.driver.queues[1].wait_used();
        assert_eq!(machine.handle.statistics().transmitted.dropped, 1);
        assert_eq!(machine.driver.interrupt.needs_reset_count(), 0);
    }
}

#[test]
fn the_other_side_may_vanish_at_any_point() {
    let stream = framed(&packets(&[60, 100]));
    for (sent, buffers) in [(0, 0), (0, 1), (2, 1), (30, 1), (64, 1), (80, 0), (80, 2), (stream.len(), 0)] {
        let (link, mut host) = pair();
        let guest = FakeGuest::new();
        let mac = MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap();
        let mut device = Net::new(link, &NetSettings { mac, mtu: None, limits: RateLimits::default() }).unwrap();
        let mut driver = guest.activate(&mut device);
        for _ in 0..buffers {
            driver.queues[0].add(&[Part::Writable(2000)]);
        }
        driver.queues[0].kick();
        host.write_all(&stream[..sent]).unwrap();
        drop(host);
        driver.interrupt.wait_config(1);
        assert!(!device.handle().is_up());
        assert_eq!(driver.interrupt.needs_reset_count(), 0);
    }
}

/// More than a socket takes.
const MANY: usize = 12;

#[test]
fn a_side_that_does_not_read_leaves_packets_in_the_queue() {
    let mut machine = Machine::new();
    let frames = packets(&[60_000; MANY]);
    frames.iter().for_each(|frame| machine.transmit(frame));
    machine.guest.drain();
    let taken = machine.driver.queues[1].used_index();
    assert!(usize::from(taken) < MANY, "the socket takes a few: {taken}");
    machine.guest.drain();
    assert_eq!(machine.driver.queues[1].used_index(), taken);
    // All of them come, also the end of the last one, behind which nothing is in the queue.
    let stream = framed(&frames);
    assert!(machine.take(stream.len()) == stream);
    for _ in 0..MANY {
        machine.driver.queues[1].wait_used();
    }
    let transmitted = machine.handle.statistics().transmitted;
    assert_eq!((transmitted.packets, transmitted.dropped), (MANY as u64, 0));
}

/// A machine whose socket has taken the last packet in part, and all packets. How much a socket takes is the kernel's affair: it may
/// be all of one and nothing of the next, which another first packet changes.
fn in_the_middle_of_a_packet() -> (Machine, Vec<Vec<u8>>) {
    for first in [14, 20_000, 35_000, 50_000] {
        let mut machine = Machine::new();
        let frames = packets(&[&[first][..], &[60_000; MANY]].concat());
        let (mut sent, mut bytes) = (0, 0);
        while machine.waiting() == bytes {
            machine.transmit(&frames[sent]);
            machine.guest.drain();
            bytes += PREFIX_BYTES + frames[sent].len();
            sent += 1;
        }
        if usize::from(machine.driver.queues[1].used_index()) == sent {
            return (machine, frames[..sent].to_vec());
        }
    }
    panic!("the socket has taken no packet in part");
}

#[test]
fn the_end_of_a_packet_needs_no_other_to_leave() {
    for pause in [false, true] {
        let (mut machine, frames) = in_the_middle_of_a_packet();
        if pause {
            let states = machine.device.suspend();
            machine.guest.resume(&mut machine.device, &machine.driver, states);
        }
        let stream = framed(&frames);
        assert!(machine.take(stream.len()) == stream);
    }
}

#[test]
fn a_pause_or_a_reset_does_not_tear_packets() {
    for reset in [false, true] {
        let mut machine = Machine::new();
        let frames = packets(&[60_000; MANY]);
        frames.iter().for_each(|frame| machine.transmit(frame));
        // Half a packet for the guest.
        let stream = framed(&packets(&[1000, 500]));
        machine.driver.queues[0].add(&[Part::Writable(2000)]);
        machine.driver.queues[0].kick();
        machine.host.write_all(&stream[..600]).unwrap();
        machine.guest.drain();
        let taken = usize::from(machine.driver.queues[1].used_index());
        assert!(taken < MANY);
        if reset {
            machine.device.reset();
            machine.driver = machine.guest.activate(&mut machine.device);
            machine.transmit(&[5; 60]);
        } else {
            let states = machine.device.suspend();
            machine.guest.resume(&mut machine.device, &machine.driver, states);
        }
        let rest = if reset { vec![vec![5; 60]] } else { frames[taken..].to_vec() };
        let expected = [framed(&frames[..taken]), framed(&rest)].concat();
        assert!(machine.take(expected.len()) == expected, "reset: {reset}");
        machine.host.write_all(&stream[600..]).unwrap();
        if !reset {
            assert_eq!(machine.driver.queues[0].wait_used().len as usize, HEADER_BYTES + 1000);
        } else {
            assert!(machine.receive(2000) == packets(&[1000])[0]);
        }
        assert!(machine.receive(2000) == packets(&[0, 500])[1]);
    }
}

/// A guest without buffers stops the reading, not the device.
#[test]
fn a_guest_that_does_not_read_stops_the_other_side() {
    let mut machine = Machine::new();
    let frames = packets(&[1500; 400]);
    let (mut host, stream) = (machine.host.try_clone().unwrap(), framed(&frames));
    let writer = thread::spawn(move || host.write_all(&stream).unwrap());
    machine.guest.drain();
    machine.transmit(&[1; 60]);
    assert_eq!(machine.take(64)[4..], [1; 60]);
    for frame in &frames {
        assert!(machine.receive(2000) == *frame);
    }
    writer.join().unwrap();
}
