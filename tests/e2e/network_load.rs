//! Networks under load: what is lost, what is too much, what breaks off, and what goes away.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bellows_devices::virtio::net::Tap as Device;
use bellows_devices::virtio::net::link::Link as _;
use bellows_devices::virtio::net::pieces::{Room, Source};
use bellows_devices::virtio::net::wire::{HEADER_BYTES, MAX_FRAME, VirtioNetHdr};
use bellows_vmm::{NetConfig, RateLimits, StreamSocket, Tap};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::fixture::{Guest, PATIENCE};
use crate::network::{
    BULK, HostTap, SERVER, connect, digest, exchange, get, guest_network, noise, python, serve, shell,
};

/// A cable between a TAP and a VM's stream socket that loses packets, and has others overtaken; the same ones of as many in each run.
struct Cable {
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    overtaken: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    fn new(tap: &HostTap) -> Self {
        let tap = Device::open(tap.name()).unwrap();
        let (socket, far) = UnixStream::pair().unwrap();
        let (stop, lost, overtaken) = (Arc::default(), Arc::default(), Arc::default());
        let wires = Wires { tap, far, stop: Arc::clone(&stop) };
        let ways = [0x9e37_79b9, 0x7f4a_7c15].map(|seed| Way::new(seed, &lost, &overtaken));
        let thread = Some(thread::spawn(move || wires.carry(ways)));
        Self { socket, stop, lost, overtaken, thread }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// The ends of a cable.
struct Wires {
    tap: Device,
    far: UnixStream,
    stop: Arc<AtomicBool>,
}

/// One direction of a cable.
struct Way {
    chance: u64,
    /// A packet that others overtake, and how many have yet to.
    held: Option<(Vec<u8>, u32)>,
    lost: Arc<AtomicU64>,
    overtaken: Arc<AtomicU64>,
}

impl Way {
    fn new(seed: u64, lost: &Arc<AtomicU64>, overtaken: &Arc<AtomicU64>) -> Self {
        Self { chance: seed, held: None, lost: lost.clone(), overtaken: overtaken.clone() }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % limit
    }

    /// What leaves the cable once `packet` has entered it.
    fn pass(&mut self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match self.below(100) {
            0..=2 => {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return Vec::new();
            }
            3..=7 if self.held.is_none() => {
                let others = 1 + self.below(4) as u32;
                self.held = Some((packet, others));
                return Vec::new();
            }
            _ => {}
        }
        let mut leaving = vec![packet];
        if let Some((held, others)) = self.held.take() {
            if others > 1 {
                self.held = Some((held, others - 1));
            } else {
                self.overtaken.fetch_add(1, Ordering::SeqCst);
                leaving.push(held);
            }
        }
        leaving
    }
}

impl Wires {
    fn carry(mut self, [mut in_, mut out]: [Way; 2]) {
        let mut frame = vec![0; MAX_FRAME];
        while !self.stop.load(Ordering::SeqCst) {
            let mut ends = [
                PollFd::new(self.tap.descriptor(), PollFlags::POLLIN),
                PollFd::new(self.far.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut ends, PollTimeout::from(20_u8)).unwrap();
            let [from_tap, from_vm] = ends.map(|end| end.any().unwrap());
            if ready == 0 {
                // Nothing comes that could overtake what is held.
                in_.held.take().into_iter().for_each(|(packet, _)| self.feed_vm(&packet));
                out.held.take().into_iter().for_each(|(packet, _)| self.feed_tap(&packet));
            }
            if from_tap {
                let mut room = Room::empty();
                assert!(room.push(&mut frame));
                if let Ok(bytes) = self.tap.read(&mut VirtioNetHdr::default(), &mut room) {
                    let packet = frame[..bytes - HEADER_BYTES].to_vec();
                    in_.pass(packet).iter().for_each(|packet| self.feed_vm(packet));
                }
            }
            if from_vm {
                let mut length = [0; 4];
                // The VM has ended.
                let Ok(()) = self.far.read_exact(&mut length) else { return };
                let mut packet = vec![0; u32::from_be_bytes(length) as usize];
                self.far.read_exact(&mut packet).unwrap();
                out.pass(packet).iter().for_each(|packet| self.feed_tap(packet));
            }
        }
    }

    fn feed_vm(&mut self, packet: &[u8]) {
        // It may have ended.
        let _ = self.far.write_all(&[&(packet.len() as u32).to_be_bytes()[..], packet].concat());
    }

    fn feed_tap(&self, packet: &[u8]) {
        let mut source = Source::empty();
        assert!(source.push(packet));
        let _ = self.tap.write(&VirtioNetHdr::default(), &mut source);
    }
}

/// On the way to a guest and back, packets get lost and overtake each other: data comes as it was sent all the same.
#[test]
fn what_gets_lost_on_the_way_comes_again() {
    const MIB: usize = 2;
    let tap = HostTap::at("blp", &["172.16.11.1/30"]);
    let cable = Cable::new(&tap);
    let network = guest_network(&["172.16.11.2/30"], "172.16.11.1");
    let end = StreamSocket::Fd(cable.socket.as_raw_fd());
    let guest = Guest::ours().network(NetConfig { guest: Some(network), ..NetConfig::new("eth0", end) }).boot();
    let sent = noise(MIB << 20);
    let expected = digest(&sent);
    let (port, served, told) = exchange(sent);
    let arguments = ["172.16.11.1", &port.to_string(), &MIB.to_string()];
    let printed = guest.ends_well(guest.start_spec(&python("bulk", BULK, &arguments)));
    served.join().unwrap();
    assert_eq!(printed, format!("{expected} {}\n", told.recv().unwrap()));
    let (lost, overtaken) = (cable.lost.load(Ordering::SeqCst), cable.overtaken.load(Ordering::SeqCst));
    assert!(lost > 20 && overtaken > 20, "{lost} lost, {overtaken} overtaken");
    let statistics = guest.vm.network_statistics("eth0").unwrap();
    assert_eq!((statistics.received.malformed, statistics.transmitted.malformed), (0, 0), "{statistics:?}");
    guest.shutdown();
}

/// Connections that are open at once.
const CONNECTIONS: usize = 1000;

/// Waits for so many connections; then answers each in turn with what it has said.
const MANY: &str = "
import socket, sys
listener = socket.create_server(('', 9000), backlog=1024)
print('serving', flush=True)
streams = [listener.accept()[0] for _ in range(int(sys.argv[1]))]
print('connected', flush=True)
for stream in streams:
    stream.sendall(stream.recv(100).upper())
# What an instance leaves behind when it ends is reset.
for stream in streams:
    assert not stream.recv(1)
";

/// Sends to a server that breaks off, again and again; then breaks off itself as often.
const BREAKS: &str = "
import socket, struct, sys
host, port, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(times):
    stream = socket.create_connection((host, port), timeout=250)
    try:
        while True:
            stream.sendall(bytes(1 << 16))
    except (ConnectionResetError, BrokenPipeError):
        pass
for _ in range(times):
    stream = socket.create_connection((host, port), timeout=250)
    stream.sendall(b'x' * 100)
    stream.recv(1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    stream.close()
print('done')
";

/// A thousand connections are open at once, and each gets its own answer. Connections that break off in the middle on either side leave the
/// others alone.
#[test]
fn connections_are_many_and_break_off() {
    const TIMES: usize = 10;
    let tap = HostTap::at("blq", &["172.16.12.1/30"]);
    let network = guest_network(&["172.16.12.2/30"], "172.16.12.1");
    let guest = Guest::ours().network(NetConfig { guest: Some(network), ..tap.config("eth0") }).boot();
    let server = guest.start_spec(&python("many", MANY, &[&CONNECTIONS.to_string()]));
    server.wait_for("serving");
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect("172.16.12.2", 9000)).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        // In one piece.
        stream.write_all(format!("number {index}").as_bytes()).unwrap();
    }
    server.wait_for("connected");

    let mut served = 0;
    let (port, breaking) = serve(2 * TIMES, move |mut stream| {
        served += 1;
        if served <= TIMES {
            // What has not been read when it is closed has it reset.
            stream.read_exact(&mut [0; 1 << 16]).unwrap();
            stream.peek(&mut [0; 1]).unwrap();
        } else {
            stream.read_exact(&mut [0; 100]).unwrap();
            stream.write_all(b"y").unwrap();
            let error = stream.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
    let arguments = ["172.16.12.1", &port.to_string(), &TIMES.to_string()];
    assert_eq!(guest.ends_well(guest.start_spec(&python("breaks", BREAKS, &arguments))), "done\n");
    breaking.join().unwrap();

    for (index, stream) in streams.iter_mut().enumerate() {
        let expected = format!("NUMBER {index}");
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
    }
    drop(streams);
    assert_eq!(guest.ends_well(server), "serving\nconnected\n");
    guest.shutdown();
}

/// Sends datagrams of 1000 bytes without end, whatever becomes of them.
pub const FLOOD: &str = "
import socket, sys
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print('flooding', flush=True)
while True:
    try:
        out.sendto(bytes(1000), (sys.argv[1], 9))
    except OSError:
        pass
";

/// A guest that floods sends what its limit lets pass, and its other interface works; without the limit, too. Then the TAP goes away under
/// the flood: the interface goes down, and the guest goes on.
#[test]
fn a_guest_that_floods_harms_nobody_and_survives_its_tap() {
    let taps = [HostTap::at("blr", &["172.16.13.1/30"]), HostTap::at("bls", &["172.16.13.5/30"])];
    let first = NetConfig { guest: Some(guest_network(&["172.16.13.2/30"], "172.16.13.1")), ..taps[0].config("eth0") };
    let second = NetConfig { guest: Some(guest_network(&["172.16.13.6/30"], "172.16.13.5")), ..taps[1].config("eth1") };
    let guest = Guest::ours().vcpus(2).network(first).network(second).boot();
    let server = guest.start_spec(&python("server", SERVER, &[]));
    server.wait_for("serving");
    let _sink = UdpSocket::bind("172.16.13.1:9").unwrap();
    let limits: RateLimits =
        serde_json::from_str(r#"{"transmit": {"operations": {"per_second": 300, "burst": 30}}}"#).unwrap();
    guest.vm.set_network_limits("eth0", limits).unwrap();
    let flood = guest.start_spec(&python("flood", FLOOD, &["172.16.13.1"]));
    flood.wait_for("flooding");
    let sent = || guest.vm.network_statistics("eth0").unwrap().transmitted.packets;
    let heard = || assert_eq!(get("172.16.13.6", "/heard"), "/heard from ::ffff:172.16.13.5");
    // Packets of its own and answers, until the flood has had its burst.
    let (begun, before) = (Instant::now(), sent());
    while sent() - before < 900 {
        assert!(begun.elapsed() < PATIENCE, "{} packets", sent() - before);
        heard();
    }
    let passed = sent() - before;
    let most = 31 + begun.elapsed().as_millis() as u64 * 300 / 1000;
    assert!(passed <= most, "{passed} packets in {:?}: at most {most}", begun.elapsed());

    guest.vm.set_network_limits("eth0", RateLimits::default()).unwrap();
    let before = sent();
    while sent() - before < 2000 {
        heard();
    }
    taps[0].delete();
    let begun = Instant::now();
    while guest.vm.network_interfaces()[0].up {
        assert!(begun.elapsed() < PATIENCE, "the interface stays up");
        thread::sleep(Duration::from_millis(50));
    }
    heard();
    assert!(guest.vm.network_interfaces()[1].up && !flood.is_silent(), "the flood goes on, to nowhere");
    for job in [flood, server] {
        job.signal(9);
        job.finish();
    }
    guest.shutdown();
}

/// Sends and takes over several connections at once; prints a digest of what each has taken.
const SEVERAL: &str = "
import hashlib, socket, sys, threading
host, port, count, mib = sys.argv[1], *map(int, sys.argv[2:])
digests = []
def talk():
    stream = socket.create_connection((host, port), timeout=250)
    stream.sendall(bytes(range(256)) * (mib << 12))
    taken = hashlib.sha256()
    while data := stream.recv(1 << 18):
        taken.update(data)
    digests.append(taken.hexdigest())
threads = [threading.Thread(target=talk) for _ in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*digests, flush=True)
";

/// How many queues the host's kernel sends through. `/sys` shows the network namespace of the process that mounted it.
fn sending_queues(tap: &HostTap) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let look = "mount -t sysfs sysfs \"$0\"; ls \"$0/class/net/$1/queues\"";
    let mut command = Command::new("unshare");
    let output = command.args(["-m", "sh", "-ec", look]).arg(directory.path()).arg(tap.name()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().filter(|queue| queue.starts_with("tx-")).count()
}

/// A guest with two CPUs sends and receives through two pairs of queues, of an interface from the start and of one that comes later.
#[test]
fn a_guest_uses_several_pairs_of_queues() {
    const COUNT: usize = 8;
    const MIB: usize = 1;
    let tap = HostTap::with_queues("blt");
    tap.set_addresses(&["172.16.14.1/30"]);
    let config = NetConfig {
        queue_pairs: Some(2),
        guest: Some(guest_network(&["172.16.14.2/30"], "172.16.14.1")),
        ..tap.config("eth0")
    };
    let guest = Guest::ours().vcpus(2).network(config.clone()).boot();
    let talk = |id: &str| {
        let given = noise(MIB << 20);
        let expected = digest(&given);
        let (port, served) = serve(COUNT, {
            let mut threads = Vec::new();
            move |mut stream| {
                let given = given.clone();
                // They are there at the same time.
                threads.push(thread::spawn(move || {
                    let mut taken = vec![0; MIB << 20];
                    stream.read_exact(&mut taken).unwrap();
                    assert!((0..).zip(&taken).all(|(index, byte): (usize, &u8)| *byte == index as u8));
                    stream.write_all(&given).unwrap();
                }));
                if threads.len() == COUNT {
                    threads.drain(..).for_each(|thread| thread.join().unwrap());
                }
            }
        });
        let arguments = ["172.16.14.1", &port.to_string(), &COUNT.to_string(), &MIB.to_string()];
        let printed = guest.ends_well(guest.start_spec(&python(id, SEVERAL, &arguments)));
        served.join().unwrap();
        assert_eq!(printed.trim(), vec![expected; COUNT].join(" "));
        // The host's kernel uses as many queues as the guest has asked for.
        assert_eq!(sending_queues(&tap), 2);
    };
    let listed = guest.ends_well(guest.start_spec(&shell("listed", "ls /sys/class/net/eth0/queues")));
    assert_eq!(listed, "rx-0\nrx-1\ntx-0\ntx-1\n");
    talk("first");

    guest.vm.detach_network("eth0", PATIENCE).unwrap();
    let info = guest.vm.attach_network(&config, PATIENCE).unwrap();
    assert_eq!((info.queue_pairs, info.up), (2, true));
    talk("second");
    guest.vm.detach_network("eth0", PATIENCE).unwrap();

    // More than there are CPUs, and at a TAP with one queue.
    let many = guest.vm.attach_network(&NetConfig { queue_pairs: Some(3), ..config.clone() }, PATIENCE).unwrap_err();
    assert!(many.to_string().contains("is 3: expected 1 to 2"), "{many}");
    let single = HostTap::new("blu");
    let host = Tap::Name(single.name().to_owned()).into();
    let error = guest.vm.attach_network(&NetConfig { host, ..config }, PATIENCE).unwrap_err();
    let error = format!("{error:?}");
    assert!(error.contains("several queues"), "{error}");
    guest.shutdown();
}
