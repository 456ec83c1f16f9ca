//! Network interfaces whose packets the host's kernel carries.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bellows_vmm::{ByteSize, NetConfig, RateLimits};

use crate::fixture::{Guest, PATIENCE, Running, partition};
use crate::network::{BULK, HostTap, digest, exchange, guest_network, noise, python, shell};

/// Floods the host with datagrams of one byte each time, which the network interface takes from this program's memory.
const FLOOD: &str = "
import socket, sys
host, port, mark = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# SO_ZEROCOPY, MSG_ZEROCOPY
out.setsockopt(socket.SOL_SOCKET, 60, 1)
out.connect((host, port))
memory = bytearray([mark]) * (8 << 20)
views = [memoryview(memory)[at:at + 1400] for at in range(0, len(memory) - 1400, 4096)]
print('flooding', flush=True)
while True:
    for view in views:
        try:
            out.send(view, 0x4000000)
        except OSError:
            # Too many wait to be sent, or for their notices to be read: MSG_ERRQUEUE.
            try:
                while True:
                    out.recvmsg(1, 512, 0x2000 | socket.MSG_DONTWAIT)
            except OSError:
                pass
";

/// Datagrams of each mark that have come, all of which were whole.
struct Heard {
    by_mark: [AtomicU64; 3],
    stop: AtomicBool,
}

impl Heard {
    fn listen(&self, socket: &UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut datagram = [0; 2000];
        while !self.stop.load(Ordering::SeqCst) {
            let Ok(bytes) = socket.recv(&mut datagram) else { continue };
            let mark = datagram[0];
            assert!(bytes == 1400 && datagram[..bytes].iter().all(|byte| *byte == mark), "{:?}", &datagram[..bytes]);
            self.by_mark[usize::from(mark)].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until there were `more` of `mark`.
    fn wait(&self, mark: usize, more: u64) {
        let (begun, before) = (Instant::now(), self.by_mark[mark].load(Ordering::SeqCst));
        while self.by_mark[mark].load(Ordering::SeqCst) < before + more {
            assert!(begun.elapsed() < PATIENCE, "packets of {mark} have ended after {before}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn config(tap: &HostTap, network: &str) -> NetConfig {
    let guest = guest_network(&[&format!("{network}.2/30")], &format!("{network}.1"));
    NetConfig { guest: Some(guest), vhost: true, ..tap.config("eth0") }
}

/// An interface that is up, and that the monitor has seen no packet of.
fn is_sound(guest: &Running) {
    let [info] = &guest.vm.network_interfaces()[..] else { panic!("one interface") };
    assert!(info.vhost && info.up);
    assert_eq!((info.statistics.received.packets, info.statistics.transmitted.packets), (0, 0));
}

/// A guest floods packets out of a partition that shrinks meanwhile, and that is unplugged right after the flood's end; then the next flood
/// comes out of it. All packets have what was sent, those out of another partition go on, and the host has each memory back.
#[test]
fn a_partition_leaves_while_packets_come_out_of_it() {
    let tap = HostTap::at("blv", &["172.16.20.1/30"]);
    let guest = Guest::ours().vcpus(2).partition(128).partition(128).network(config(&tap, "172.16.20")).boot();
    let socket = UdpSocket::bind("172.16.20.1:0").unwrap();
    let port = socket.local_addr().unwrap().port().to_string();
    let heard = Heard { by_mark: Default::default(), stop: AtomicBool::new(false) };
    let flood = |id: &str, mark: &str, number: u16| {
        guest.plug(number, 128);
        let flood = python(id, FLOOD, &["172.16.20.1", &port, mark]).in_partition(partition(number));
        let flood = guest.start_spec(&flood);
        flood.wait_for("flooding");
        flood
    };
    thread::scope(|scope| {
        let listener = scope.spawn(|| heard.listen(&socket));
        let steady = flood("steady", "2", 2);
        heard.wait(2, 50);
        for round in 0..4 {
            let flood = flood(&format!("flood-{round}"), "1", 1);
            heard.wait(1, 50);
            let shrunk = guest.vm.shrink(partition(1), ByteSize::mib(64), PATIENCE).unwrap();
            assert!(shrunk.left <= ByteSize::mib(128), "{shrunk:?}");
            heard.wait(1, 50);
            flood.signal(9);
            flood.finish();
            guest.unplug(1);
            heard.wait(2, 50);
        }
        is_sound(&guest);
        steady.signal(9);
        steady.finish();
        guest.unplug(2);
        heard.stop.store(true, Ordering::SeqCst);
        listener.join().unwrap();
    });
    let counts = [1, 2].map(|mark: usize| heard.by_mark[mark].load(Ordering::SeqCst));
    println!("{counts:?} packets");
    guest.shutdown();
}

/// MiB that go each way.
const BULK_MIB: usize = 8;

/// Data comes as it was sent through several pairs of queues, while the VM is paused and goes on; so it does once the interface has left and
/// come again.
#[test]
fn data_comes_through_the_kernel_while_a_vm_is_paused() {
    let tap = HostTap::with_queues("blw");
    tap.set_addresses(&["172.16.21.1/30"]);
    let config = NetConfig { queue_pairs: Some(2), ..config(&tap, "172.16.21") };
    let guest = Guest::ours().vcpus(2).network(config.clone()).boot();
    let sent = noise(BULK_MIB << 20);
    let expected = digest(&sent);
    for id in ["bulk-1", "bulk-2"] {
        let (port, served, told) = exchange(sent.clone());
        let bulk = guest.start_spec(&python(id, BULK, &["172.16.21.1", &port.to_string(), &BULK_MIB.to_string()]));
        let mut pauses = 0;
        while !bulk.is_silent() {
            guest.vm.pause().unwrap();
            guest.vm.resume().unwrap();
            guest.vm.statistics().unwrap();
            pauses += 1;
        }
        let printed = guest.ends_well(bulk);
        served.join().unwrap();
        assert_eq!(printed, format!("{expected} {}\n", told.recv().unwrap()), "after {pauses} pauses");
        println!("{pauses} pauses");
        is_sound(&guest);
        guest.vm.detach_network("eth0", PATIENCE).unwrap();
        guest.vm.attach_network(&config, PATIENCE).unwrap();
    }
    let limited = guest.vm.set_network_limits("eth0", RateLimits::default()).unwrap_err();
    assert!(limited.to_string().contains("vhost-net serves it"), "{limited}");

    tap.delete();
    let begun = Instant::now();
    while guest.vm.network_interfaces()[0].up {
        assert!(begun.elapsed() < PATIENCE, "the interface stays up");
        thread::sleep(Duration::from_millis(50));
    }
    let carrier = guest.ends_well(guest.start_spec(&shell("after", "cat /sys/class/net/eth0/carrier")));
    assert_eq!(carrier, "0\n", "the guest goes on");
    guest.shutdown();
}

/// Partitions that may come to be more pieces of memory than the host's kernel takes are refused with the figure, before anything boots.
#[test]
fn more_memory_regions_than_the_host_takes_are_refused() {
    let tap = HostTap::new("blx");
    let limit = std::fs::read_to_string("/sys/module/vhost/parameters/max_mem_regions").unwrap();
    let most: usize = limit.trim().parse().unwrap();
    let guest = |partitions: usize| {
        let guest = Guest::ours().network(NetConfig { vhost: true, ..tap.config("eth0") });
        (0..partitions).fold(guest, |guest, _| guest.partition(128))
    };
    let error = guest(most).refused();
    assert!(
        error.contains("`eth0`") && error.contains(&format!("{} pieces: expected at most {most}", most + 1)),
        "{error}"
    );
    guest(2).boot().shutdown();
}
