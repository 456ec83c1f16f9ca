//! A guest can write only a bounded number of lines to the host's log, whatever it does and however often: neither the
//! devices nor their libraries log without bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};

use bellows_devices::virtio::net::{MacAddress, NetSettings, RateLimits, fake_link};
use bellows_devices::virtio::testing::{FakeGuest, Part, PciDriver, PciMachine};
use bellows_devices::virtio::{Block, Mem, Net, Rng, VirtioDevice, Vsock};
use bellows_disk::{Disk, DiskId};
use bellows_memory::ByteSize;
use bellows_memory::testing::Fixture;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use vm_memory::{GuestAddress, VolatileSlice};

/// How often each guest repeats its actions.
const TIMES: u32 = 1000;

static EVENTS: AtomicU64 = AtomicU64::new(0);
static RECORDS: AtomicU64 = AtomicU64::new(0);

/// Counts all events, whatever their level.
struct Events;

impl Subscriber for Events {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        EVENTS.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Counts what libraries log.
struct Records;

impl log::Log for Records {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.target(), record.args());
        RECORDS.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

/// A disk on which every read fails.
struct Broken;

impl Disk for Broken {
    fn sectors(&self) -> u64 {
        8
    }

    fn id(&self) -> DiskId {
        DiskId::default()
    }

    fn read_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Starts a device with rings outside memory.
fn rings_that_are_not_there() {
    let machine = PciMachine::new();
    let address = machine.plug(Box::new(Rng::new()));
    let driver = PciDriver::probe(&machine, address);
    let mut queue = driver.queue(&machine, 0);
    for round in 0..TIMES {
        driver.reset();
        assert!(driver.negotiate(driver.offered()));
        let nowhere = GuestAddress(u64::from(round % 2) << 40);
        (queue.descriptors, queue.available, queue.used) = (nowhere, nowhere, nowhere);
        driver.set_up_queue(&queue);
        driver.write_status(driver.status() | 4);
        assert_ne!(driver.status() & 0x40, 0, "the device needs a reset");
    }
}

/// Breaks the rules of a queue in one of several ways, and resets the device.
fn broken_queues(device: &mut dyn VirtioDevice, queue: usize) {
    let mut guest = FakeGuest::new();
    for round in 0..TIMES {
        if round.is_multiple_of(8) {
            // Queues take memory.
            guest = FakeGuest::new();
        }
        let mut driver = guest.activate(device);
        let broken = &mut driver.queues[queue];
        match round % 3 {
            0 => broken.publish(u16::MAX),
            1 => broken.set_available_index(u16::MAX),
            _ => broken.publish(broken.size),
        }
        broken.kick();
        driver.interrupt.wait_needs_reset();
        device.reset();
    }
}

/// Makes malformed requests.
fn nonsense(device: &mut dyn VirtioDevice, queue: usize, requests: &[&[Part<'_>]]) {
    let guest = FakeGuest::new();
    let mut driver = guest.activate(device);
    for _ in 0..TIMES {
        for request in requests {
            driver.queues[queue].request_parts(request);
        }
    }
    device.reset();
}

#[test]
fn a_guest_writes_a_bounded_log() {
    tracing::subscriber::set_global_default(Events).unwrap();
    log::set_logger(&Records).unwrap();
    log::set_max_level(log::LevelFilter::Trace);

    rings_that_are_not_there();
    // With a limit, in case a device stops answering.
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let mut vsock = Vsock::new(42, &dir.path().join("v")).unwrap();
        let fixture = Fixture::new(ByteSize::mib(128));
        let mut memory = Mem::new(fixture.partition.clone());
        let mut disk = Block::new(Arc::new(Broken) as Arc<dyn Disk>);
        let (link, _host) = fake_link::pair();
        let mac = MacAddress::derived("tap0", "eth0");
        let mut net = Net::new(link, &NetSettings { mac, mtu: None, limits: RateLimits::default() }).unwrap();
        broken_queues(&mut net, 1);
        broken_queues(&mut Rng::new(), 0);
        broken_queues(&mut disk, 0);
        broken_queues(&mut memory, 0);
        broken_queues(&mut vsock, 1);

        let nowhere = GuestAddress(1 << 40);
        let header = [0xff; 44];
        nonsense(&mut Rng::new(), 0, &[&[Part::WritableAt(nowhere, 10)]]);
        nonsense(
            &mut disk,
            0,
            &[
                &[Part::Readable(&header)],
                &[Part::Readable(&header), Part::Writable(1)],
                &[Part::Writable(1), Part::Readable(b"x")],
            ],
        );
        nonsense(
            &mut memory,
            0,
            &[
                &[Part::Readable(&header[..10]), Part::Writable(10)],
                &[Part::Readable(&header[..24]), Part::Writable(10)],
                &[Part::Readable(&[0; 24]), Part::WritableAt(nowhere, 10)],
            ],
        );
        nonsense(
            &mut net,
            1,
            &[&[Part::Readable(&header)], &[Part::Readable(&header[..12])], &[Part::ReadableAt(nowhere, 100)]],
        );
        let mut packet = [0; 44];
        packet[0] = 42;
        packet[8] = 2;
        packet[28..32].copy_from_slice(&[1, 0, 9, 0]);
        nonsense(
            &mut vsock,
            1,
            &[&[Part::Readable(&header[..43])], &[Part::Readable(&header)], &[Part::Readable(&packet)]],
        );
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(300)).unwrap();

    assert_eq!(RECORDS.load(Ordering::Relaxed), 0, "libraries log the actions of a guest");
    let events = EVENTS.load(Ordering::Relaxed);
    assert!(events > 0, "no line was logged: the guests broke no rule");
    assert!(events < u64::from(TIMES), "{events} events");
}
