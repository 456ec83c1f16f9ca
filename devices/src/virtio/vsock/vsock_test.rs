//! A guest's driver against the whole device, with real sockets on the host's side.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::connection::Ports;
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use super::*;
use crate::virtio::testing::{FakeDriver, FakeGuest, FakeInterrupt, PATIENCE, Part, Used};

#[path = "hostile_test.rs"]
mod hostile;
#[path = "streams_test.rs"]
mod streams;

const CID: u32 = 42;
const RX_BUFFER: u32 = 4096;
const BOTH: u32 = 3;

/// A packet with its payload.
type Packet = (Header, Vec<u8>);

/// A guest with a vsock driver, and the directory with the host's sockets.
struct Machine {
    device: Vsock,
    driver: FakeDriver,
    guest: FakeGuest,
    dir: TempDir,
    rx_buffers: HashMap<u32, GuestAddress>,
    /// Packets received and not looked at yet.
    inbox: HashMap<Ports, VecDeque<Packet>>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self::without_rx_buffers();
        machine.post_rx(64);
        machine
    }

    fn without_rx_buffers() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = FakeGuest::new();
        let mut device = Vsock::new(CID, &dir.path().join("v")).unwrap();
        let driver = guest.activate(&mut device);
        Self { device, driver, guest, dir, rx_buffers: HashMap::new(), inbox: HashMap::new() }
    }

    fn post_rx(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.guest.allocate(RX_BUFFER as usize);
            self.post_rx_at(address);
        }
        self.driver.queues[0].kick();
    }

    fn post_rx_at(&mut self, address: GuestAddress) {
        let head = self.driver.queues[0].add(&[Part::WritableAt(address, RX_BUFFER)]);
        self.rx_buffers.insert(head.into(), address);
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// Listens on the host for the guest's connections to `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    /// A host client, through the device's socket.
    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// Puts a chain into the transmit queue and waits until the device is done with it.
    fn transmit(&mut self, parts: &[Part<'_>]) {
        let queue = &mut self.driver.queues[1];
        let head = queue.add(parts);
        queue.kick();
        let used = queue.wait_used();
        assert_eq!(used.head, u32::from(head));
        assert_eq!(used.len, 0);
    }

    fn send_header(&mut self, header: &Header, payload: &[u8]) {
        let bytes = header.to_bytes();
        match payload {
            [] => self.transmit(&[Part::Readable(&bytes)]),
            _ => self.transmit(&[Part::Readable(&bytes), Part::Readable(payload)]),
        }
    }

    /// The next packet from the device.
    fn receive_any(&mut self) -> Packet {
        let used = self.driver.queues[0].wait_used();
        self.take_used(used)
    }

    fn take_used(&mut self, used: Used) -> Packet {
        let address = self.rx_buffers.remove(&used.head).expect("a buffer that is not out was used");
        let bytes = self.guest.read(address, used.len as usize);
        self.post_rx_at(address);
        self.driver.queues[0].kick();
        let header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.dst_cid, u64::from(CID));
        assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
        (header, bytes[HEADER_BYTES..].to_vec())
    }

    /// The next unread packet, for any ports.
    fn receive_next(&mut self) -> Packet {
        let waiting = self.inbox.values_mut().find_map(VecDeque::pop_front);
        waiting.unwrap_or_else(|| self.receive_any())
    }

    /// The next packet for `ports`.
    fn receive(&mut self, ports: Ports) -> Packet {
        loop {
            if let Some(packet) = self.inbox.get_mut(&ports).and_then(VecDeque::pop_front) {
                return packet;
            }
            let packet = self.receive_any();
            let to = Ports { host: packet.0.src_port, guest: packet.0.dst_port };
            self.inbox.entry(to).or_default().push_back(packet);
        }
    }

    /// Keeps the device's loop from running until it is released.
    fn hold(&self) -> Held {
        struct Hold {
            holding: mpsc::Sender<()>,
            released: mpsc::Receiver<()>,
        }
        impl event_manager::MutEventSubscriber for Hold {
            fn process(&mut self, _: event_manager::Events, _: &mut event_manager::EventOps) {}
            fn init(&mut self, _: &mut event_manager::EventOps) {
                self.holding.send(()).unwrap();
                let _ = self.released.recv();
            }
        }
        let (holding, held) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let handle = self.guest.event_loop().handle();
        let thread = thread::spawn(move || {
            drop(handle.add(Hold { holding, released }).unwrap());
        });
        held.recv_timeout(PATIENCE).unwrap();
        Held { release, thread }
    }

    /// Receives every packet that the device has sent by now, without waiting for more.
    fn take_in(&mut self) {
        self.guest.drain();
        while let Some(used) = self.driver.queues[0].pop_used() {
            let packet = self.take_used(used);
            let to = Ports { host: packet.0.src_port, guest: packet.0.dst_port };
            self.inbox.entry(to).or_default().push_back(packet);
        }
    }

    /// Checks that the device has used no further receive buffers.
    fn assert_silent(&mut self) {
        self.guest.drain();
        let used = self.driver.queues[0].pop_used();
        assert_eq!(used, None, "the device sent something");
    }

    /// Connects to the host's `port` and expects to be accepted.
    fn connect(&mut self, guest_port: u32, port: u32, buf_alloc: u32) -> GuestStream {
        let mut stream = GuestStream::new(Ports { host: port, guest: guest_port }, buf_alloc);
        stream.send(self, Op::Request, 0, &[]);
        assert_eq!(stream.receive(self).0.op, Op::Response.number());
        stream
    }

    /// Accepts the connection that a host client asked for.
    fn accept(&mut self, buf_alloc: u32) -> GuestStream {
        let (header, _) = self.receive_any();
        assert_eq!(header.op, Op::Request.number());
        let mut stream = GuestStream::new(Ports { host: header.src_port, guest: header.dst_port }, buf_alloc);
        stream.heard(&header);
        stream.send(self, Op::Response, 0, &[]);
        stream
    }

    /// A connection between a host client and the guest, through the device's socket.
    fn pair(&mut self, buf_alloc: u32) -> (UnixStream, GuestStream) {
        let mut client = self.client();
        client.write_all(b"CONNECT 52\n").unwrap();
        let stream = self.accept(buf_alloc);
        assert_eq!(read_line(&mut client), format!("OK {}\n", stream.ports.host));
        (client, stream)
    }
}

/// A device's loop that does not run.
struct Held {
    release: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Held {
    fn release(self) {
        drop(self.release);
        self.thread.join().unwrap();
    }
}

/// The guest's end of a stream, which counts by the specification.
struct GuestStream {
    ports: Ports,
    buf_alloc: u32,
    /// Bytes taken out of the guest's buffer.
    fwd_cnt: u32,
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    received: u32,
}

impl GuestStream {
    fn new(ports: Ports, buf_alloc: u32) -> Self {
        Self { ports, buf_alloc, fwd_cnt: 0, sent: 0, peer_buf_alloc: 0, peer_fwd_cnt: 0, received: 0 }
    }

    fn header(&self, op: Op, flags: u32, len: usize) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: self.ports.guest,
            dst_port: self.ports.host,
            len: len as u32,
            kind: TYPE_STREAM,
            op: op.number(),
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    fn send(&mut self, machine: &mut Machine, op: Op, flags: u32, payload: &[u8]) {
        self.sent = self.sent.wrapping_add(payload.len() as u32);
        machine.send_header(&self.header(op, flags, payload.len()), payload);
    }

    /// Bytes that may be sent.
    fn credit(&self) -> usize {
        (self.peer_buf_alloc - self.sent.wrapping_sub(self.peer_fwd_cnt)) as usize
    }

    fn heard(&mut self, header: &Header) {
        if header.op != Op::Reset.number() {
            (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        }
        self.received = self.received.wrapping_add(header.len);
        let unread = self.received.wrapping_sub(self.fwd_cnt);
        assert!(unread <= self.buf_alloc, "{unread} bytes were sent into a buffer of {}", self.buf_alloc);
    }

    fn receive(&mut self, machine: &mut Machine) -> Packet {
        let packet = machine.receive(self.ports);
        self.heard(&packet.0);
        packet
    }

    fn expect(&mut self, machine: &mut Machine, op: Op) -> Packet {
        let packet = self.receive(machine);
        assert_eq!(Op::from_number(packet.0.op), Some(op), "{packet:?}");
        packet
    }

    /// Data from the host until there are `len` bytes of it; room is made for more at once.
    fn read(&mut self, machine: &mut Machine, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let (_, payload) = self.expect(machine, Op::ReadWrite);
            self.fwd_cnt = self.fwd_cnt.wrapping_add(payload.len() as u32);
            data.extend(payload);
        }
        data
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

/// Bytes that no other seed and no shift gives.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn the_configuration_has_the_guests_context_identifier() {
    let machine = Machine::without_rx_buffers();
    let mut config = [0xff; 16];
    machine.device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut config = [0xff; 2];
    machine.device.read_config(u64::MAX - 1, &mut config);
    assert_eq!(config, [0, 0]);
    assert_eq!(machine.device.device_type(), 19);
    assert_eq!(machine.device.queue_max_sizes().len(), 3);
}

#[test]
fn reserved_contexts_and_used_paths_are_refused() {
    let machine = Machine::without_rx_buffers();
    for cid in [0, 1, 2, u32::MAX] {
        let error = Vsock::new(cid, &machine.dir.path().join("w")).err().unwrap();
        assert!(error.to_string().contains(&cid.to_string()), "{error}");
    }
    assert!(!machine.dir.path().join("w").exists());
    let error = Vsock::new(3, &machine.path()).err().unwrap();
    assert!(error.to_string().contains(machine.path().to_str().unwrap()), "{error}");
    let path = machine.path();
    assert!(path.exists());
    drop(machine.device);
    assert!(!path.exists());
}

#[test]
fn streams_are_implied_unless_the_driver_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let guest = FakeGuest::new();
    let mut device = Vsock::new(CID, &dir.path().join("v")).unwrap();
    assert_eq!(device.features(), 0b101);
    for (features, works) in [(0b000, true), (0b001, true), (0b101, true), (0b100, false)] {
        let started = guest.try_activate(&mut device, features);
        assert_eq!(started.is_ok(), works, "{features:#b}");
        device.reset();
    }
}
