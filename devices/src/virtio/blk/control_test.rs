//! What the host changes while a guest uses the disk: its rate limit, and the disk itself.

use std::io;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use bellows_disk::{Disk, DiskId};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};
use vm_memory::VolatileSlice;

use super::request::VirtioBlkReqHeader;
use super::*;
use crate::virtio::limits::Rate;
use crate::virtio::limits::token_bucket::BucketState;
use crate::virtio::testing::{DriverQueue, FakeGuest, PATIENCE, Pending};

/// A disk of `sectors` sectors of one byte. A read signals that it has begun, and waits.
struct Plain {
    byte: u8,
    sectors: u64,
    read_only: bool,
    gate: Option<(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>)>,
}

impl Plain {
    fn new(byte: u8, sectors: u64) -> Self {
        Self { byte, sectors, read_only: true, gate: None }
    }
}

impl Disk for Plain {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn id(&self) -> DiskId {
        DiskId::new(&self.byte.to_string())
    }

    fn read_at(&self, _: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some((begun, go_on)) = &self.gate {
            begun.send(()).map_err(io::Error::other)?;
            go_on.lock().unwrap().recv().map_err(io::Error::other)?;
        }
        buffers.iter().for_each(|buffer| buffer.copy_from(&vec![self.byte; buffer.len()]));
        Ok(())
    }
}

fn disk(byte: u8, sectors: u64) -> Arc<dyn Disk> {
    Arc::new(Plain::new(byte, sectors))
}

fn rate(per_second: u64, burst: u64, one_time_burst: u64) -> Option<Rate> {
    Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap(), one_time_burst })
}

/// Makes a request available.
fn begin(queue: &mut DriverQueue, kind: u32, sector: u64, bytes: u32) -> Pending {
    let header = VirtioBlkReqHeader { type_: kind.into(), sector: sector.into(), ..Default::default() };
    let pending = if bytes > 0 {
        queue.begin(&[header.as_slice()], &[bytes, 1])
    } else {
        queue.begin(&[header.as_slice()], &[1])
    };
    queue.kick();
    pending
}

fn read(queue: &mut DriverQueue, sector: u64, bytes: u32) -> Pending {
    begin(queue, VIRTIO_BLK_T_IN, sector, bytes)
}

/// Waits for a request: its status, and the first byte of its data.
fn finish(queue: &mut DriverQueue, pending: Pending) -> (u8, u8) {
    let done = queue.finish(pending);
    (*done.written.last().unwrap().last().unwrap(), done.written[0][0])
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;

#[test]
fn requests_wait_for_their_limit_and_go_on_when_it_is_lifted() {
    let guest = FakeGuest::new();
    let limit = RateLimit { bandwidth: None, operations: rate(1, 2, 1) };
    let mut device = Block::controlled(disk(7, 64), limit).unwrap();
    let handle = device.handle();
    assert_eq!(handle.limit(), limit);
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let pending: Vec<_> = (0..20).map(|sector| read(queue, sector, 512)).collect();
    guest.drain();
    assert_eq!(queue.used_index(), 3, "the burst and the one-time burst");
    let begun = Instant::now();
    handle.set_limit(RateLimit::default());
    for pending in pending {
        assert_eq!(finish(queue, pending), (OK, 7));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "the limit was lifted: {:?}", begun.elapsed());
}

#[test]
fn bytes_are_paid_off_before_the_next_and_a_flush_has_none() {
    let guest = FakeGuest::new();
    // An hour to pay the first request off.
    let limit = RateLimit { bandwidth: rate(8, 1, 0), operations: None };
    let mut device = Block::controlled(disk(7, 1 << 20), limit).unwrap();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let first = read(queue, 0, 28 << 10);
    let flush = begin(queue, VIRTIO_BLK_T_FLUSH, 0, 0);
    let id = begin(queue, VIRTIO_BLK_T_GET_ID, 0, 20);
    let beyond = read(queue, 1 << 20, 512);
    let second = read(queue, 0, 512);
    guest.drain();
    assert_eq!(queue.used_index(), 4, "what has no data for the disk does not wait, however much is due");
    assert_eq!(finish(queue, first), (OK, 7));
    assert_eq!(finish(queue, flush).0, OK);
    assert_eq!(finish(queue, id), (OK, b'7'));
    assert_ne!(finish(queue, beyond).0, OK);
    device.handle().set_limit(RateLimit::default());
    assert_eq!(finish(queue, second), (OK, 7));
}

#[test]
fn the_rate_is_kept_by_the_clock() {
    let guest = FakeGuest::new();
    for limit in [
        RateLimit { bandwidth: None, operations: rate(200, 1, 0) },
        RateLimit { bandwidth: rate(200 * 512, 512, 0), operations: None },
    ] {
        let mut device = Block::controlled(disk(7, 64), limit).unwrap();
        let mut driver = guest.activate(&mut device);
        let queue = &mut driver.queues[0];
        let begun = Instant::now();
        let pending: Vec<_> = (0..11).map(|_| read(queue, 0, 512)).collect();
        for pending in pending {
            assert_eq!(finish(queue, pending), (OK, 7));
        }
        // Ten of them waited 5 ms; a byte less than a request passes it.
        assert!(begun.elapsed() >= Duration::from_millis(45), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn what_a_limit_has_left_outlives_the_driver() {
    let guest = FakeGuest::new();
    let slow = rate(1, 1000, 2);
    let limit = RateLimit { bandwidth: None, operations: slow };
    let mut device = Block::controlled(disk(7, 64), limit).unwrap();
    let left = |device: &Block| {
        let DeviceState::Block(state) = device.save() else { panic!("the state of another device") };
        state.limiter.operations.unwrap()
    };
    for (requests, tokens, one_time_burst) in [(1, 1000, 1), (3, 998, 0)] {
        let mut driver = guest.activate(&mut device);
        for _ in 0..requests {
            let pending = read(&mut driver.queues[0], 0, 512);
            assert_eq!(finish(&mut driver.queues[0], pending), (OK, 7));
        }
        device.reset();
        assert_eq!(left(&device), BucketState { rate: slow.unwrap(), tokens, one_time_burst });
    }
    let mut other = Block::controlled(disk(7, 64), RateLimit::default()).unwrap();
    other.restore(&device.save()).unwrap();
    assert_eq!((other.save(), other.handle().limit()), (device.save(), limit));
}

fn capacity(device: &Block) -> u64 {
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    u64::from_le_bytes(capacity)
}

#[test]
fn a_request_in_progress_finishes_on_the_old_disk_and_the_next_is_for_the_new_one() {
    let ((begun, has_begun), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let guest = FakeGuest::new();
    let old: Arc<dyn Disk> = Arc::new(Plain { gate: Some((begun, Mutex::new(go_on))), ..Plain::new(1, 64) });
    let gone = Arc::downgrade(&old);
    let mut device = Block::controlled(old, RateLimit::default()).unwrap();
    let handle = device.handle();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let first = read(queue, 60, 512);
    has_begun.recv_timeout(PATIENCE).unwrap();
    let generation = device.config_generation();
    assert!(!handle.replace(disk(2, 128), Duration::ZERO).unwrap(), "the old disk is in use");
    assert_eq!((capacity(&device), device.config_generation()), (128, generation + 1));
    assert!(gone.upgrade().is_some());
    go.send(()).unwrap();
    assert_eq!(finish(queue, first), (OK, 1));
    driver.interrupt.wait_config(1);
    assert!(gone.upgrade().is_none(), "the driver hears of it when the old disk is gone");
    let second = read(queue, 127, 512);
    assert_eq!(finish(queue, second), (OK, 2));

    // A smaller one; without a request in progress it is done at once.
    assert!(handle.replace(disk(3, 8), PATIENCE).unwrap());
    driver.interrupt.wait_config(2);
    let beyond = read(queue, 8, 512);
    assert_ne!(finish(queue, beyond).0, OK);
    let third = read(queue, 7, 512);
    assert_eq!(finish(queue, third), (OK, 3));

    let writable = Arc::new(Plain { read_only: false, ..Plain::new(4, 8) });
    let error = handle.replace(writable, PATIENCE).unwrap_err().to_string();
    assert_eq!(error, "the disk is writable: expected one that is read-only, as before");
    let third = read(queue, 7, 512);
    assert_eq!(finish(queue, third), (OK, 3));
    assert_eq!(driver.interrupt.config_count(), 2, "what was refused is no news");
}

/// The driver hears of an exchange that happened while the device was suspended, even from a device that goes on elsewhere.
#[test]
fn an_exchange_during_a_suspension_is_told_afterwards() {
    let guest = FakeGuest::new();
    let mut device = Block::controlled(disk(1, 64), RateLimit::default()).unwrap();
    let mut driver = guest.activate(&mut device);
    let states = device.suspend();
    assert!(device.handle().replace(disk(2, 128), Duration::ZERO).unwrap(), "nobody uses the old disk");
    let state = device.save();
    let mut other = Block::controlled(disk(2, 128), RateLimit::default()).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    for (count, device) in (1..).zip([&mut device, &mut other]) {
        guest.resume(device, &driver, states.clone());
        driver.interrupt.wait_config(count);
        let _ = device.suspend();
    }
    guest.resume(&mut device, &driver, states);
    let pending = read(&mut driver.queues[0], 127, 512);
    assert_eq!(finish(&mut driver.queues[0], pending), (OK, 2));
    assert_eq!(driver.interrupt.config_count(), 2, "it is told once");
    // A driver that begins anew knows the disk.
    let _ = device.suspend();
    assert!(device.handle().replace(disk(3, 64), Duration::ZERO).unwrap());
    device.reset();
    let driver = guest.activate(&mut device);
    guest.drain();
    assert_eq!(driver.interrupt.config_count(), 0);
}
