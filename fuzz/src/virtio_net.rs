//! Packets and commands of any shape on all queues of a network interface, and packets of any shape from its host: what the two sides
//! get of each other, against rules that are kept here (VIRTIO 1.2, section 5.1.6).

use std::collections::{HashMap, VecDeque};

use crate::Input;
use bellows_devices::virtio::net::fake_link::{self, FakeHost, FakeLink};
use bellows_devices::virtio::net::wire::{HEADER_BYTES, VirtioNetHdr, feature};
use bellows_devices::virtio::net::{NetSettings, RateLimits};
use bellows_devices::virtio::testing::{FakeDriver, FakeGuest, Part};
use bellows_devices::virtio::{Net, VirtioDevice};
use vm_memory::{ByteValued as _, GuestAddress};

const PAIRS: usize = 2;
const CONTROL: usize = 2 * PAIRS;
/// Most bytes of a packet: two VLAN tags, and the largest packet of the Internet protocol.
const MAX_FRAME: usize = 14 + 8 + 65535;
/// More buffers, or packets, would overrun the ring or the host's socket.
const MOST_WAITING: usize = 30;

/// Both sides.
struct Machine {
    guest: FakeGuest,
    device: Net,
    driver: FakeDriver,
    hosts: Vec<FakeHost>,
    features: u64,
    /// Pairs that the driver uses.
    used: usize,
    /// What lies in each pair's queue of buffers, by head: pieces of memory.
    buffers: [HashMap<u32, Vec<(GuestAddress, u32)>>; PAIRS],
    /// Packets that the hosts have sent and that have not come.
    sent: [VecDeque<Vec<u8>>; PAIRS],
    /// Packets that have come.
    came: u64,
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (links, hosts) = fake_link::queues(PAIRS);
    let mut machine = Machine::start(&links, hosts, &mut input);
    let mut steps = 0;
    while steps < 64 && !input.is_empty() {
        steps += 1;
        match input.byte() % 8 {
            0..=1 => machine.transmit(&mut input),
            2 => machine.transmit_anything(&mut input),
            3 => machine.post(&mut input),
            4..=5 => machine.receive(&mut input),
            6 => machine.command(&mut input),
            _ => machine.suspend(),
        }
        machine.collect();
    }
    machine.finish();
}

impl Machine {
    fn start(links: &[FakeLink], hosts: Vec<FakeHost>, input: &mut Input<'_>) -> Self {
        let mac = "02:00:00:00:00:01".parse().expect("an address");
        let mtu = (input.byte() % 2 == 1).then_some(1500);
        let settings = NetSettings { mac, mtu, limits: RateLimits::default() };
        let mut device =
            Net::with_queue_pairs(links.iter().map(FakeLink::again).collect(), &settings).expect("a device");
        let guest = FakeGuest::new();
        // Most have all that is offered.
        let refused = if input.byte().is_multiple_of(4) { u64::from(input.u32()) } else { 0 };
        let features = FakeGuest::all_features(&device) & !refused;
        let driver = guest.try_activate(&mut device, features).expect("all queues are there");
        let (buffers, sent) = (Default::default(), Default::default());
        Self { guest, device, driver, hosts, features, used: 1, buffers, sent, came: 0 }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Pairs that the driver knows of. Other queues have other uses, or none.
    fn pairs(&self) -> usize {
        if self.has(feature::CTRL_VQ) && self.has(feature::MQ) { PAIRS } else { 1 }
    }

    /// A packet that is cut into pieces anywhere, with a header that may be wrong: the host gets it as it is, or not at all.
    fn transmit(&mut self, input: &mut Input<'_>) {
        let pair = usize::from(input.byte()) % self.used;
        let header = header(input);
        let size = usize::from(input.u16() >> (input.byte() % 16));
        let frame: Vec<u8> = (0..size).map(|n| (n * 7 + n / 256) as u8).collect();
        let packet = [header.as_slice(), &frame].concat();
        let pieces = packet.len().div_ceil(1 + usize::from(input.byte()) % 200);
        let parts: Vec<_> = packet.chunks(pieces).map(Part::Readable).collect();
        let queue = &mut self.driver.queues[2 * pair + 1];
        if input.byte().is_multiple_of(4) {
            queue.add_indirect(&parts);
        } else {
            queue.add(&parts);
        }
        queue.kick();
        assert_eq!(queue.wait_used().len, 0);
        let (checksum, segments) = (self.has(feature::CSUM), [feature::HOST_TSO4, feature::HOST_TSO6]);
        let sound = (14..=MAX_FRAME).contains(&size) && self.is_sound(&header, size, checksum, segments);
        match self.hosts[pair].try_receive() {
            Some((passed, bytes)) => {
                assert!(sound, "{header:?} passed");
                assert!(bytes == frame && passed.num_buffers.to_native() == 0);
                // Nothing else may be asked of the host's kernel.
                assert_eq!((passed.flags, passed.gso_type), (header.flags & 1, header.gso_type));
                assert!(usize::from(passed.hdr_len.to_native()) <= size);
            }
            None => assert!(!sound, "{header:?} of {size} bytes did not pass"),
        }
    }

    /// Whether a packet of `size` bytes may have `header`, where the receiver has agreed to complete checksums, and to segments.
    fn is_sound(&self, header: &VirtioNetHdr, size: usize, checksum: bool, [tcp4, tcp6]: [u64; 2]) -> bool {
        let unfinished = header.flags & 1 != 0;
        let (start, offset) = (usize::from(header.csum_start.to_native()), usize::from(header.csum_offset.to_native()));
        let in_place = checksum && start >= 14 && start + offset + 2 <= size;
        let segmented = |feature| checksum && unfinished && self.has(feature) && header.gso_size.to_native() != 0;
        (!unfinished || in_place)
            && match header.gso_type {
                0 => true,
                1 => segmented(tcp4),
                4 => segmented(tcp6),
                _ => false,
            }
    }

    /// A chain of any shape, of which nothing is known but that it is given back.
    fn transmit_anything(&mut self, input: &mut Input<'_>) {
        let pair = usize::from(input.byte()) % self.used;
        let parts = parts(input);
        let queue = &mut self.driver.queues[2 * pair + 1];
        queue.add(&parts);
        queue.kick();
        assert_eq!(queue.wait_used().len, 0);
        let _ = self.hosts[pair].try_receive();
    }

    /// Buffers for packets, of any shape, also on queues that are not used.
    fn post(&mut self, input: &mut Input<'_>) {
        let pair = usize::from(input.byte()) % self.pairs();
        if self.buffers[pair].len() >= MOST_WAITING {
            return;
        }
        let mut pieces = Vec::new();
        for _ in 0..=input.byte() % 5 {
            let bytes = u32::from(input.u16() >> (input.byte() % 16));
            // Sometimes one that is not there.
            let address = match input.byte() {
                0 => GuestAddress(input.u64() | FakeGuest::MEMORY as u64),
                _ => self.guest.allocate(bytes as usize),
            };
            pieces.push((address, bytes));
        }
        let mut parts: Vec<_> = pieces.iter().map(|&(address, bytes)| Part::WritableAt(address, bytes)).collect();
        if input.byte() == 0 {
            parts.insert(0, Part::Readable(b"?"));
        }
        let queue = &mut self.driver.queues[2 * pair];
        let head = queue.add(&parts);
        queue.kick();
        self.buffers[pair].insert(head.into(), pieces);
    }

    /// A packet of the host: the guest gets it as it is, later or not at all.
    fn receive(&mut self, input: &mut Input<'_>) {
        let pair = usize::from(input.byte()) % self.used;
        let header = header(input);
        let size = usize::from(input.u16() >> (input.byte() % 16));
        let frame: Vec<u8> = (0..size).map(|n| (n * 11 + n / 256) as u8).collect();
        if !self.hosts[pair].try_send_raw(&[header.as_slice(), &frame].concat()) {
            return;
        }
        let (checksum, segments) = (self.has(feature::GUEST_CSUM), [feature::GUEST_TSO4, feature::GUEST_TSO6]);
        if size >= 14 && self.is_sound(&header, size, checksum, segments) {
            self.sent[pair].push_back(frame);
        }
    }

    /// A command, which is answered if there is room for that.
    fn command(&mut self, input: &mut Input<'_>) {
        if self.pairs() == 1 {
            return;
        }
        let queue = &mut self.driver.queues[CONTROL];
        if input.byte().is_multiple_of(4) {
            let parts = parts(input);
            let done = queue.request_parts(&parts);
            assert!(done.len <= 1);
            // It may have been the right one.
            self.set_used(1 + usize::from(self.hosts[1].is_used()));
            return;
        }
        let wanted = usize::from(input.u16() >> (input.byte() % 16));
        let command = [4, input.byte() % 2, wanted as u8, (wanted >> 8) as u8];
        let done = queue.request(&[&command], &[1]);
        let valid = command[1] == 0 && (1..=PAIRS).contains(&wanted);
        assert_eq!((done.len, done.written[0][0]), (1, u8::from(!valid)));
        if valid {
            self.set_used(wanted);
        }
    }

    fn set_used(&mut self, used: usize) {
        for (index, host) in self.hosts.iter().enumerate() {
            assert_eq!(host.is_used(), index < used);
        }
        self.used = used;
    }

    fn suspend(&mut self) {
        let states = self.device.suspend();
        assert!(states.iter().all(Option::is_some));
        self.guest.resume(&mut self.device, &self.driver, states);
    }

    /// Takes what has come, and checks it.
    fn collect(&mut self) {
        self.guest.drain();
        for pair in 0..self.pairs() {
            while let Some(used) = self.driver.queues[2 * pair].pop_used() {
                let mut bytes = self.taken(pair, used.head, used.len);
                if bytes.is_empty() {
                    continue;
                }
                // A header may lie in several pieces, but not in several buffers.
                let count = u16::from_le_bytes([bytes[10], bytes[11]]);
                for _ in 1..count {
                    let used = self.driver.queues[2 * pair].pop_used().expect("the rest comes at once");
                    bytes.extend(self.taken(pair, used.head, used.len));
                }
                let frame = &bytes[HEADER_BYTES..];
                // Those before it were dropped.
                while self.sent[pair].front().is_some_and(|sent| sent != frame) {
                    self.sent[pair].pop_front();
                }
                self.came += 1;
                assert!(
                    self.sent[pair].pop_front().is_some(),
                    "a packet of {} bytes that nobody has sent",
                    frame.len()
                );
            }
        }
    }

    /// The first `len` bytes of a buffer that has come back.
    fn taken(&mut self, pair: usize, head: u32, len: u32) -> Vec<u8> {
        let pieces = self.buffers[pair].remove(&head).expect("a buffer that was given");
        let mut left = len;
        let mut bytes = Vec::new();
        for (address, piece) in pieces {
            let part = left.min(piece);
            if part > 0 {
                bytes.extend(self.guest.read(address, part as usize));
            }
            left -= part;
        }
        assert_eq!(left, 0, "more than there is room for");
        bytes
    }

    /// Nothing of that has harmed the device.
    fn finish(mut self) {
        assert_eq!(self.device.handle().statistics().received.packets, self.came);
        self.device.reset();
        while self.hosts[0].try_receive().is_some() {}
        let mut driver = self.guest.activate(&mut self.device);
        driver.queues[1].request(&[&[0; HEADER_BYTES], &[3; 60]], &[]);
        assert_eq!(self.hosts[0].receive().1, [3; 60]);
        assert_eq!(driver.queues[CONTROL].request(&[&[4, 0, 2, 0]], &[1]).written[0][0], 0);
        assert!(self.hosts[1].is_used());
    }
}

/// A header with any values, mostly of those that mean something.
fn header(input: &mut Input<'_>) -> VirtioNetHdr {
    let small = |input: &mut Input<'_>| u16::from(input.byte() % 128);
    match input.byte() % 4 {
        0 => VirtioNetHdr::default(),
        1 => VirtioNetHdr {
            flags: 1,
            csum_start: small(input).into(),
            csum_offset: small(input).into(),
            ..VirtioNetHdr::default()
        },
        2 => VirtioNetHdr {
            flags: input.byte() % 4,
            gso_type: input.byte() % 6,
            hdr_len: input.u16().into(),
            gso_size: input.u16().into(),
            csum_start: small(input).into(),
            csum_offset: small(input).into(),
            ..VirtioNetHdr::default()
        },
        _ => {
            let mut header = VirtioNetHdr::default();
            let bytes = input.bytes(HEADER_BYTES);
            header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
            header
        }
    }
}

/// A chain of any shape.
fn parts<'a>(input: &mut Input<'a>) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for _ in 0..=input.byte() % 6 {
        let (kind, len) = (input.byte(), input.u32() >> (input.byte() % 32));
        parts.push(match kind % 4 {
            0 => Part::Readable(input.bytes(len as usize % 1024)),
            1 => Part::Writable(len % 2048),
            2 => Part::ReadableAt(GuestAddress(input.u64() >> 32), len),
            _ => Part::WritableAt(GuestAddress(input.u64() | 0x1000_0000), len),
        });
    }
    parts
}
