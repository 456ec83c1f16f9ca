use proptest::prelude::*;
use serde_json::json;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::IpAddress;

use super::*;
use crate::virtio::net::mmds::connection::PORT;
use crate::virtio::net::mmds::ethernet::{HEAD, MAC, is_for};
use crate::virtio::net::mmds::store::Store;
use crate::virtio::net::mmds::tokens::Tokens;
use crate::virtio::net::mmds::{ADDRESS, Version};

const SMALL: &[u8] = b"GET /small HTTP/1.1\r\n\r\n";

fn service() -> Service {
    let mut store = Store::new(1 << 20);
    store.put(json!({ "small": "text", "large": "0123456789".repeat(10_000) })).unwrap();
    Service { store, tokens: Tokens::default(), version: Version::V1, imds_compat: false, random: || None }
}

/// A guest with a stack that knows Ethernet, and sockets for as many clients.
struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: GuestWire,
    begin: Instant,
    /// What is added to the time.
    later: Duration,
}

#[derive(Default)]
struct GuestWire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct GuestOutgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::Device for GuestWire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = GuestOutgoing<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(Incoming, GuestOutgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), GuestOutgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<GuestOutgoing<'_>> {
        Some(GuestOutgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // As with a checksum that the device is to complete.
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities
    }
}

impl phy::TxToken for GuestOutgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Guest {
    fn new() -> Self {
        let mut wire = GuestWire::default();
        let mac = EthernetAddress([2, 0, 0, 0, 0, 1]);
        let mut interface = Interface::new(Config::new(HardwareAddress::Ethernet(mac)), &mut wire, time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 0)).unwrap();
        });
        let begin = Instant::now();
        Self { interface, sockets: SocketSet::new(Vec::new()), wire, begin, later: Duration::ZERO }
    }

    fn now(&self) -> Instant {
        Instant::now() + self.later
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (ADDRESS, PORT), port).unwrap();
        handle
    }

    fn poll(&mut self) {
        let moment = time::Instant::from_micros(self.now().duration_since(self.begin).as_micros() as i64);
        self.interface.poll(moment, &mut self.wire, &mut self.sockets);
    }

    /// Carries frames both ways until there are none.
    fn run(&mut self, stack: &mut Stack, service: &mut Service) {
        for _ in 0..1000 {
            self.poll();
            let mut is_quiet = true;
            while let Some(frame) = self.wire.outgoing.pop_front() {
                assert!(is_for(&frame[..HEAD.min(frame.len())], ADDRESS), "{frame:x?}");
                stack.take(&frame, service, self.now());
                is_quiet = false;
            }
            while let Some(frame) = stack.next(service, self.now()) {
                assert_eq!(frame[..12], [[2, 0, 0, 0, 0, 1], MAC.0].concat());
                self.wire.incoming = Some(frame);
                self.poll();
                is_quiet = false;
            }
            if is_quiet {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        assert_eq!(socket.send_slice(bytes), Ok(bytes.len()));
    }

    fn receive(&mut self, handle: SocketHandle) -> Vec<u8> {
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let mut bytes = vec![0; 4096];
        let received = socket.recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(received);
        bytes
    }

    fn socket(&self, handle: SocketHandle) -> &Socket<'static> {
        self.sockets.get(handle)
    }
}

fn machine() -> (Service, Guest, Stack) {
    (service(), Guest::new(), Stack::new(ADDRESS, None, 7, Instant::now()))
}

#[test]
fn a_guest_reads_its_metadata() {
    let (mut service, mut guest, mut stack) = machine();
    let handle = guest.connect(40_000);
    guest.run(&mut stack, &mut service);
    assert!(guest.socket(handle).may_send(), "it listens");
    for part in [&b"GET /sm"[..], b"all HTTP/1.1\r\n\r\nGET /none HTTP/1.1\r\n\r\n"] {
        guest.send(handle, part);
        guest.run(&mut stack, &mut service);
    }
    let text = String::from_utf8(guest.receive(handle)).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("\r\n\r\ntextHTTP/1.1 404"), "{text}");

    // More than the buffers hold at once.
    guest.send(handle, b"GET /large HTTP/1.0\r\n\r\n");
    let mut all = Vec::new();
    for _ in 0..200 {
        guest.run(&mut stack, &mut service);
        all.extend(guest.receive(handle));
    }
    assert!(all.ends_with(b"0123456789") && all.len() > 100_000, "{} bytes", all.len());
    assert!(!guest.socket(handle).may_recv(), "the service has closed");
}

#[test]
fn a_packet_that_is_lost_comes_again() {
    let (mut service, mut guest, mut stack) = machine();
    let handle = guest.connect(40_000);
    guest.run(&mut stack, &mut service);
    assert_eq!(stack.wait(guest.now()), None, "nothing is due while nothing is said");
    guest.send(handle, SMALL);
    guest.poll();
    while let Some(frame) = guest.wire.outgoing.pop_front() {
        stack.take(&frame, &mut service, guest.now());
    }
    assert_eq!(stack.wait(guest.now()), None, "while frames wait, only the guest can go on");
    while stack.next(&mut service, guest.now()).is_some() {}
    let wait = stack.wait(guest.now()).unwrap();
    assert!((PATIENCE..Duration::from_secs(5)).contains(&wait), "{wait:?}");
    guest.later = wait + Duration::from_millis(1);
    stack.turn(&mut service, guest.now());
    assert!(stack.waiting() > 0);
    guest.run(&mut stack, &mut service);
    assert!(guest.receive(handle).ends_with(b"text"));
}

#[test]
fn one_connection_too_many_ends_the_one_that_is_idle_the_longest() {
    let (mut service, mut guest, mut stack) = machine();
    let mut handles = Vec::new();
    let begin = |guest: &mut Guest, stack: &mut Stack, service: &mut Service, number: usize| {
        let handle = guest.connect(40_000 + number as u16);
        guest.run(stack, service);
        guest.send(handle, SMALL);
        guest.run(stack, service);
        assert!(guest.receive(handle).ends_with(b"text"), "client {number}");
        handle
    };
    // One place is for the next client.
    for number in 0..CONNECTIONS - 1 {
        handles.push(begin(&mut guest, &mut stack, &mut service, number));
    }
    guest.send(handles[0], SMALL);
    guest.run(&mut stack, &mut service);
    for number in CONNECTIONS..3 * CONNECTIONS {
        assert!(handles.iter().rev().take(CONNECTIONS - 2).all(|handle| guest.socket(*handle).is_active()));
        handles.push(begin(&mut guest, &mut stack, &mut service, number));
        let is_open = |index: usize| guest.socket(handles[index]).is_active();
        if number == CONNECTIONS {
            assert!(is_open(0) && !is_open(1), "the first was used last, and the second is told that it has ended");
        }
    }
    let last = handles[handles.len() - 1];
    guest.send(last, SMALL);
    guest.run(&mut stack, &mut service);
    assert!(guest.receive(last).ends_with(b"text"));
}

#[test]
fn a_client_that_sends_without_end_is_answered_once_and_cut_off() {
    let (mut service, mut guest, mut stack) = machine();
    let handle = guest.connect(40_000);
    guest.run(&mut stack, &mut service);
    let mut answers = Vec::new();
    for _ in 0..20 {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        let _ = socket.send_slice(&[b'a'; 4096]);
        guest.run(&mut stack, &mut service);
        answers.extend(guest.receive(handle));
    }
    let text = String::from_utf8(answers).unwrap();
    assert!(text.starts_with("HTTP/1.1 400 ") && text.matches("HTTP/1.1").count() == 1, "{text}");
    assert!(!guest.socket(handle).may_recv());
}

#[test]
fn a_reset_guest_begins_anew() {
    let (mut service, mut guest, mut stack) = machine();
    guest.connect(40_000);
    guest.poll();
    for frame in guest.wire.outgoing.drain(..) {
        stack.take(&frame, &mut service, Instant::now());
    }
    assert!(stack.waiting() > 0);
    stack.reset();
    assert_eq!((stack.waiting(), stack.wait(Instant::now())), (0, None));
    let mut guest = Guest::new();
    let handle = guest.connect(40_000);
    guest.run(&mut stack, &mut service);
    guest.send(handle, SMALL);
    guest.run(&mut stack, &mut service);
    assert!(guest.receive(handle).ends_with(b"text"));
}

/// A TCP segment for the service, with headers that are right and with `bytes` for what a client may choose.
fn segment(address: Ipv4Addr, bytes: &[u8]) -> Vec<u8> {
    let byte = |index: usize| bytes.get(index).copied().unwrap_or(index as u8);
    let data = bytes.get(16..).unwrap_or_default();
    let mut ip = vec![0x45, 0];
    ip.extend(((20 + 20 + data.len()) as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    // One of a few clients, most of which are no addresses of one.
    ip.extend([[10, 0, 0, byte(0) % 3], [0, 0, 0, 0], [255; 4], address.octets()][usize::from(byte(1) % 8 / 5)]);
    ip.extend(address.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let mut frame = [MAC.0, [2, 0, 0, 0, 0, 9]].concat();
    frame.extend([8, 0]);
    frame.extend(ip);
    // Its ports, its numbers, how long its options are, its flags, its window.
    frame.extend([0, byte(2) % 2, 0, 80 + byte(3) / 200]);
    frame.extend((4..12).map(byte));
    frame.extend([(5 + byte(12) % 11) << 4, byte(13), byte(14), byte(15), 0, 0, 0, 0]);
    frame.extend(data);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames of a hostile guest: no panic, and what waits for it is bounded. A client is served afterwards.
    #[test]
    fn hostile_frames_do_no_harm(
        frames in proptest::collection::vec((0..4_u8, proptest::collection::vec(any::<u8>(), 0..80)), 0..300),
        reads in any::<bool>(),
    ) {
        let (mut service, mut guest, mut stack) = machine();
        for (kind, bytes) in frames {
            let frame = match kind {
                0 => {
                    let mut frame = [MAC.0, [2, 0, 0, 0, 0, 9]].concat();
                    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2]);
                    frame.extend(bytes.iter().copied().chain([0; 15]).take(15));
                    frame.extend(ADDRESS.octets());
                    frame
                }
                1 => bytes,
                _ => segment(ADDRESS, &bytes),
            };
            let _ = is_for(&frame[..HEAD.min(frame.len())], ADDRESS);
            stack.take(&frame, &mut service, guest.now());
            guest.later += Duration::from_millis(100);
            prop_assert!(stack.waiting() <= MAX_WAITING);
            if reads {
                while stack.next(&mut service, guest.now()).is_some() {}
            }
        }
        while stack.next(&mut service, guest.now()).is_some() {}
        let handle = guest.connect(50_000);
        guest.run_past_others(&mut stack, &mut service);
        guest.send(handle, SMALL);
        guest.run_past_others(&mut stack, &mut service);
        prop_assert!(guest.receive(handle).ends_with(b"text"));
    }

    /// Segments of a connection that are cut, doubled, or out of order carry nothing but what was sent.
    #[test]
    fn a_request_in_any_pieces_is_one(cuts in proptest::collection::vec(1..20_usize, 1..30), twice in any::<bool>()) {
        let (mut service, mut guest, mut stack) = machine();
        let handle = guest.connect(40_000);
        guest.run(&mut stack, &mut service);
        let mut rest = SMALL;
        for cut in cuts.into_iter().chain([SMALL.len()]) {
            let (part, behind) = rest.split_at(cut.min(rest.len()));
            rest = behind;
            guest.send(handle, part);
            guest.poll();
            let frames: Vec<_> = guest.wire.outgoing.drain(..).collect();
            for frame in frames.iter().rev().chain(frames.iter().filter(|_| twice)) {
                stack.take(frame, &mut service, guest.now());
            }
            guest.run(&mut stack, &mut service);
        }
        let text = String::from_utf8(guest.receive(handle)).unwrap();
        prop_assert!(text.matches("HTTP/1.1 200 OK").count() == 1 && text.ends_with("text"), "{}", text);
    }
}

impl Guest {
    /// As `run`, with others in the guest who are answered as well, and sent again what they do not confirm.
    fn run_past_others(&mut self, stack: &mut Stack, service: &mut Service) {
        for _ in 0..50 {
            self.poll();
            while let Some(frame) = self.wire.outgoing.pop_front() {
                stack.take(&frame, service, self.now());
            }
            while let Some(frame) = stack.next(service, self.now()) {
                if frame[..6] == [2, 0, 0, 0, 0, 1] {
                    self.wire.incoming = Some(frame);
                    self.poll();
                }
            }
        }
    }
}
