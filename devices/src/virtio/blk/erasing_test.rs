//! Discards and writes of zeros, by a guest's driver on a device.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bellows_disk::{DiskId, RawDisk};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{GuestAddress, VolatileSlice};

use super::erase::VirtioBlkDiscardWriteZeroes;
use super::request::VirtioBlkReqHeader;
use super::*;
use crate::virtio::limits::Rate;
use crate::virtio::testing::{DriverQueue, FakeGuest, Part};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
const ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
const SIZE: usize = 1 << 20;

/// A file of ones on a file system with holes, and a disk in it.
fn ones(path: &Path) -> RawDisk {
    fs::write(path, vec![1; SIZE]).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
    RawDisk::open(path, false, DiskId::new("ones")).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn header(kind: u32) -> Vec<u8> {
    VirtioBlkReqHeader { type_: kind.into(), ..Default::default() }.as_slice().to_vec()
}

fn segment(sector: u64, num_sectors: u32, flags: u32) -> Vec<u8> {
    let segment =
        VirtioBlkDiscardWriteZeroes { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() };
    segment.as_slice().to_vec()
}

/// The status of a request with these segments.
fn erase(queue: &mut DriverQueue, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
    let data: Vec<u8> =
        segments.iter().flat_map(|(sector, sectors, flags)| segment(*sector, *sectors, *flags)).collect();
    let done = queue.request(&[&header(kind), &data], &[1]);
    assert_eq!(done.len, 1, "only the status was written");
    done.written[0][0]
}

fn field(device: &Block, offset: u64) -> u32 {
    let mut field = [0; 4];
    device.read_config(offset, &mut field);
    u32::from_le_bytes(field)
}

#[test]
fn a_driver_discards_and_zeroes_ranges_of_a_file() {
    let folder = folder();
    let path = folder.path().join("disk");
    let guest = FakeGuest::new();
    let mut device = Block::new(Box::new(ones(&path)) as Box<dyn Disk>);
    let handle = device.handle();
    let offered = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(device.features() & offered, offered);
    // max_discard_sectors, _seg, discard_sector_alignment, max_write_zeroes_sectors, _seg, write_zeroes_may_unmap
    let fields = [36, 40, 44, 48, 52, 56].map(|offset| field(&device, offset));
    assert_eq!(fields, [1 << 22, 64, 8, 1 << 17, 8, 1]);
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let blocks = || fs::metadata(&path).unwrap().blocks();
    let before = blocks();

    // 256 KiB in two segments; then as much each way of zeros.
    assert_eq!(erase(queue, DISCARD, &[(0, 256, 0), (256, 256, 0)]), OK);
    assert!(blocks() + 512 <= before, "{} of {before}", blocks());
    assert_eq!(erase(queue, ZEROES, &[(512, 512, 1)]), OK);
    assert!(blocks() + 1024 <= before, "{} of {before}", blocks());
    let holes = blocks();
    assert_eq!(erase(queue, ZEROES, &[(1024, 511, 0), (1535, 1, 0)]), OK);
    assert!(blocks() >= holes, "the room stays");
    // Nothing, at the very end.
    assert_eq!(erase(queue, DISCARD, &[(SIZE as u64 / 512, 0, 0)]), OK);
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), SIZE);
    assert!(content[..768 << 10].iter().all(|byte| *byte == 0));
    assert!(content[768 << 10..].iter().all(|byte| *byte == 1));
    let statistics = handle.statistics();
    assert_eq!((statistics.discards, statistics.discarded_bytes), (2, 256 << 10));
    assert_eq!((statistics.write_zeroes, statistics.zeroed_bytes, statistics.failed), (3, 512 << 10, 0));
}

#[test]
fn what_is_wrong_with_one_segment_keeps_all_from_happening() {
    let folder = folder();
    let path = folder.path().join("disk");
    let guest = FakeGuest::new();
    let mut device = Block::new(Box::new(ones(&path)) as Box<dyn Disk>);
    let handle = device.handle();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let end = SIZE as u64 / 512;
    let mut failed = 0;
    for kind in [DISCARD, ZEROES] {
        for (wrong, expected) in [
            ((end, 1, 0), IOERR),
            ((end - 1, 2, 0), IOERR),
            ((u64::MAX, 1, 0), IOERR),
            ((u64::MAX / 512 + 1, 1, 0), IOERR),
            ((0, u32::MAX, 0), IOERR),
            ((0, 1, 2), UNSUPP),
            ((0, 1, u32::MAX), UNSUPP),
        ] {
            assert_eq!(erase(queue, kind, &[(0, 8, 0), wrong]), expected, "{kind} {wrong:?}");
            assert_eq!(erase(queue, kind, &[wrong, (0, 8, 0)]), expected, "{kind} {wrong:?}");
            failed += 2;
        }
        for bytes in [0, 1, 15, 17, 31, 65 * 16, 5000] {
            let data = vec![0; bytes];
            assert_eq!(queue.request(&[&header(kind), &data], &[1]).written[0][0], IOERR, "{kind}: {bytes} bytes");
            failed += 1;
        }
        // Segments in memory that is not there, and cut at odd places.
        let (head, good) = (header(kind), segment(8, 8, 0));
        let nowhere = GuestAddress(FakeGuest::MEMORY as u64);
        for parts in [
            &[Part::Readable(&head), Part::ReadableAt(nowhere, 16), Part::Writable(1)][..],
            &[Part::Readable(&head), Part::Readable(&good), Part::ReadableAt(nowhere, 16), Part::Writable(1)],
            &[Part::Readable(&head), Part::ReadableAt(GuestAddress(u64::MAX), 16), Part::Writable(1)],
        ] {
            assert_eq!(queue.request_parts(parts).written[0], [IOERR]);
            failed += 1;
        }
    }
    assert_eq!(erase(queue, DISCARD, &[(0, 1, 1)]), UNSUPP, "a discard has no flags");
    assert!(fs::read(&path).unwrap() == vec![1; SIZE], "nothing has happened");
    assert_eq!(handle.statistics(), BlockStatistics { failed: failed + 1, ..Default::default() });
    let (head, tail) = (header(DISCARD), segment(0, 8, 0));
    let pieces: Vec<&[u8]> = [&head, &tail].into_iter().flat_map(|bytes| bytes.chunks(3)).collect();
    assert_eq!(queue.request(&pieces, &[1]).written[0], [OK]);
    assert_eq!(fs::read(&path).unwrap()[..8192], [&[0; 4096][..], &[1; 4096]].concat());
}

#[test]
fn what_was_not_negotiated_is_not_supported() {
    let folder = folder();
    let path = folder.path().join("disk");
    let guest = FakeGuest::new();
    let mut device = Block::new(Box::new(ones(&path)) as Box<dyn Disk>);
    for (kind, missing) in [(DISCARD, VIRTIO_BLK_F_DISCARD), (ZEROES, VIRTIO_BLK_F_WRITE_ZEROES)] {
        let features = FakeGuest::all_features(&device) & !(1 << missing);
        let mut driver = guest.try_activate(&mut device, features).unwrap();
        assert_eq!(erase(&mut driver.queues[0], kind, &[(0, 8, 0)]), UNSUPP);
        device.reset();
    }
    drop(device);
    let mut device = Block::new(Box::new(RawDisk::open(&path, true, DiskId::default()).unwrap()) as Box<dyn Disk>);
    assert_eq!(device.features() & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
    assert_eq!([36, 40, 44, 48, 52, 56].map(|offset| field(&device, offset)), [0; 6]);
    // Also where a driver acknowledges what it was not offered.
    let features = FakeGuest::all_features(&device) | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    let mut driver = guest.try_activate(&mut device, features).unwrap();
    for kind in [DISCARD, ZEROES] {
        assert_ne!(erase(&mut driver.queues[0], kind, &[(0, 8, 0)]), OK);
    }
    assert!(fs::read(&path).unwrap() == vec![1; SIZE]);
}

/// A disk in memory, without holes.
struct Plain(std::sync::Mutex<Vec<u8>>, std::sync::atomic::AtomicU64);

impl Plain {
    fn new() -> Arc<Self> {
        Arc::new(Self(std::sync::Mutex::new(vec![1; SIZE]), Default::default()))
    }
}

impl Disk for Plain {
    fn sectors(&self) -> u64 {
        SIZE as u64 / 512
    }

    fn read_only(&self) -> bool {
        false
    }

    fn id(&self) -> DiskId {
        DiskId::new("plain")
    }

    fn read_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let (mut at, mut bytes) = (offset as usize, self.0.lock().unwrap());
        for buffer in buffers {
            buffer.copy_to(&mut bytes[at..at + buffer.len()]);
            at += buffer.len();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_disk_without_holes_offers_no_discards_and_writes_its_zeros() {
    let guest = FakeGuest::new();
    let disk = Plain::new();
    let mut device = Block::new(disk.clone() as Arc<dyn Disk>);
    assert_eq!(device.features() & (1 << VIRTIO_BLK_F_DISCARD), 0);
    assert_eq!([36, 40, 44, 48, 52, 56].map(|offset| field(&device, offset)), [0, 0, 0, 1 << 17, 8, 0]);
    let features = FakeGuest::all_features(&device) & !(1 << VIRTIO_BLK_F_FLUSH);
    let mut driver = guest.try_activate(&mut device, features).unwrap();
    let queue = &mut driver.queues[0];
    assert_eq!(erase(queue, DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(erase(queue, ZEROES, &[(1, 1500, 1), (2000, 3, 0)]), OK);
    let flushes = disk.1.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(flushes, 1, "the driver relies on completed requests");
    let bytes = disk.0.lock().unwrap();
    let zero = |sector: usize| (1..1501).contains(&sector) || (2000..2003).contains(&sector);
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == u8::from(!zero(sector))), "{sector}");
    }
}

#[test]
fn an_exchanged_disk_without_holes_answers_so_and_the_driver_goes_on() {
    let folder = folder();
    let path = folder.path().join("disk");
    let guest = FakeGuest::new();
    let mut device = Block::controlled(Arc::new(ones(&path)) as Arc<dyn Disk>, RateLimit::default()).unwrap();
    let features = device.features();
    let mut driver = guest.activate(&mut device);
    assert!(device.handle().replace(Plain::new(), crate::virtio::testing::PATIENCE).unwrap());
    assert_eq!(device.features(), features, "what is offered stays");
    assert_eq!(erase(&mut driver.queues[0], DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(erase(&mut driver.queues[0], ZEROES, &[(0, 8, 1)]), OK);
    // A state is for a disk that offers the same.
    device.reset();
    let other = Block::controlled(Plain::new() as Arc<dyn Disk>, RateLimit::default());
    let error = other.unwrap().restore(&device.save()).unwrap_err().to_string();
    assert!(error.contains("discards: true") && error.contains("discards: false"), "{error}");
}

#[test]
fn segments_count_as_requests_and_zeros_as_bytes() {
    let rate = |per_second: u64, burst: u64| {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap(), one_time_burst: 0 })
    };
    let folder = folder();
    let path = folder.path().join("disk");
    let left = |limit, kind, segments: &[(u64, u32, u32)]| {
        let guest = FakeGuest::new();
        let mut device = Block::controlled(Arc::new(ones(&path)) as Arc<dyn Disk>, limit).unwrap();
        let mut driver = guest.activate(&mut device);
        assert_eq!(erase(&mut driver.queues[0], kind, segments), OK);
        device.reset();
        let DeviceState::Block(state) = device.save() else { panic!("the state of another device") };
        (state.limiter.operations.map(|bucket| bucket.tokens), state.limiter.bandwidth.map(|bucket| bucket.tokens))
    };
    let limit = RateLimit { bandwidth: rate(1, 1 << 20), operations: rate(1, 100) };
    let three = [(0, 8, 0), (8, 8, 0), (16, 8, 0)];
    assert_eq!(left(limit, DISCARD, &three), (Some(97), Some(1 << 20)));
    assert_eq!(left(limit, ZEROES, &three), (Some(97), Some((1 << 20) - 3 * 4096)));
}
