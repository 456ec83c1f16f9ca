use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, mpsc};

use bellows_block::{Digest, LayerDisk, StoredFile};
use bellows_disk::{DiskId, RawDisk};
use bellows_memory::ByteSize;
use bellows_memory::partition::Handled;
use bellows_memory::partition::{Answer, Request};
use bellows_memory::testing::Fixture;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use vm_memory::{GuestAddress, VolatileSlice};

use super::request::HEADER_SIZE;
use super::*;
use crate::virtio::Pmem;
use crate::virtio::testing::{Completion, DriverQueue, FakeGuest, PATIENCE, Part};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Bytes that differ from sector to sector.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8 ^ (n / 512) as u8).collect()
}

/// A layer whose file holds `data`.
fn layer(directory: &Path, data: &[u8]) -> StoredFile {
    let path = directory.join("layer.erofs");
    fs::write(&path, data).unwrap();
    StoredFile { digest: Digest::of(data), path, bytes: data.len() as u64 }
}

fn layer_disks(layer: &StoredFile) -> [(&'static str, Arc<dyn Disk>); 2] {
    bellows_memory::host::catch_faults().unwrap();
    let open = || LayerDisk::open(layer).unwrap();
    [("pread", Arc::new(open().unmapped())), ("mapped", Arc::new(open()))]
}

fn header(kind: u32, sector: u64) -> [u8; HEADER_SIZE as usize] {
    let mut header = [0; HEADER_SIZE as usize];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn status(done: &Completion) -> u8 {
    *done.written.last().unwrap().last().unwrap()
}

fn read(queue: &mut DriverQueue, sector: u64, bytes: u32) -> Result<Vec<u8>, u8> {
    let done = queue.request(&[&header(VIRTIO_BLK_T_IN, sector)], &[bytes, 1]);
    match status(&done) {
        OK => {
            assert_eq!(done.len, bytes + 1);
            Ok(done.written[0].clone())
        }
        error => {
            assert_eq!(done.len, 1, "only the status was written");
            Err(error)
        }
    }
}

#[test]
fn reads_what_the_layer_holds() {
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(1 << 20);
    let layer = layer(directory.path(), &data);
    for (name, disk) in layer_disks(&layer) {
        let guest = FakeGuest::new();
        let mut device = Block::new(disk);
        let mut driver = guest.activate(&mut device);
        let queue = &mut driver.queues[0];
        for (sector, bytes) in [(0, 512), (7, 4096), (2047, 512), (1, 128 << 10), (0, 512 << 10)] {
            let start = sector as usize * 512;
            assert!(read(queue, sector, bytes).unwrap() == data[start..start + bytes as usize], "{name} {sector}");
        }
        // More buffers than one system call takes, of odd lengths.
        let mut lengths = vec![333_u32; 200];
        lengths.push(512 - 200 * 333 % 512);
        let whole: u32 = lengths.iter().sum();
        lengths.push(1);
        let done = queue.request(&[&header(VIRTIO_BLK_T_IN, 3)], &lengths);
        assert_eq!(status(&done), OK);
        assert_eq!(done.len, whole + 1);
        assert!(done.written.concat()[..whole as usize] == data[3 * 512..][..whole as usize], "{name}");
    }
}

#[test]
fn headers_and_status_may_be_split_anywhere() {
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(8192);
    let layer = layer(directory.path(), &data);
    let guest = FakeGuest::new();
    let mut device = Block::new(layer_disks(&layer)[0].1.clone());
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let request = header(VIRTIO_BLK_T_IN, 2);
    for cut in 0..=HEADER_SIZE as usize {
        let done = queue.request(&[&request[..cut], &[], &request[cut..]], &[100, 413]);
        assert_eq!(status(&done), OK, "{cut}");
        assert_eq!(done.len, 513, "{cut}");
        assert_eq!(done.written.concat()[..512], data[1024..1536]);
    }
    let bytes: Vec<&[u8]> = request.chunks(1).collect();
    let done = queue.request(&bytes, &[1025]);
    assert_eq!(status(&done), OK);
    assert_eq!(done.len, 1025);
    // An indirect table, and an empty descriptor behind the status.
    let buffer = guest.allocate(513);
    queue.add_indirect(&[Part::Readable(&request), Part::WritableAt(buffer, 513), Part::Writable(0)]);
    queue.kick();
    assert_eq!(queue.wait_used().len, 513);
    assert_eq!(guest.read(buffer, 513), [&data[1024..1536], &[OK]].concat());
}

#[test]
fn a_truncated_layer_is_an_error_and_the_device_goes_on() {
    let data = pattern(64 << 10);
    for which in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let layer = layer(directory.path(), &data);
        let (name, disk) = layer_disks(&layer)[which].clone();
        let guest = FakeGuest::new();
        let mut device = Block::new(disk);
        let mut driver = guest.activate(&mut device);
        let queue = &mut driver.queues[0];
        assert!(read(queue, 120, 4096).is_ok());

        // Also in the middle of a page: a mapping reads zeros there.
        let file = File::options().write(true).open(&layer.path).unwrap();
        for bytes in [32 << 10, 20_000, 0] {
            file.set_len(bytes).unwrap();
            assert_eq!(read(queue, 120, 4096), Err(IOERR), "{name} of {bytes} bytes");
            assert_eq!(read(queue, bytes / 4096 * 8, 4096), Err(IOERR), "{name} of {bytes} bytes");
        }
        fs::write(&layer.path, &data).unwrap();
        match name {
            // Pages were missing that had been there: it stays lost.
            "mapped" => assert_eq!(read(queue, 120, 4096), Err(IOERR)),
            _ => assert!(read(queue, 120, 4096).unwrap() == data[120 * 512..][..4096], "{name}"),
        }
    }
}

#[test]
fn a_layer_describes_itself_and_refuses_writes() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path(), &pattern(8192));
    for (_, disk) in layer_disks(&layer) {
        let guest = FakeGuest::new();
        let mut device = Block::new(disk);
        assert_eq!(device.device_type(), 2);
        assert_eq!(device.features() & (1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_FLUSH), 1 << VIRTIO_BLK_F_RO);
        let mut capacity = [0xff; 8];
        device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 16);
        for offset in [28, 36, 60, u64::MAX - 1, u64::MAX] {
            let mut data = [0xff; 6];
            device.read_config(offset, &mut data);
            assert_eq!(data, [0; 6], "at {offset}");
        }
        let mut queues = [0xff; 8];
        device.read_config(32, &mut queues);
        assert_eq!(queues, [0, 0, 1, 0, 0, 0, 0, 0]);

        let mut driver = guest.activate(&mut device);
        let queue = &mut driver.queues[0];
        let done = queue.request(&[&header(VIRTIO_BLK_T_OUT, 0), &[1; 512]], &[1]);
        assert_eq!(status(&done), IOERR);
        assert_eq!(done.len, 1);
        assert_eq!(fs::read(&layer.path).unwrap(), pattern(8192));
        let done = queue.request(&[&header(VIRTIO_BLK_T_GET_ID, 0)], &[9, 11, 1]);
        assert_eq!(status(&done), OK);
        assert_eq!(done.len, 21);
        assert_eq!(done.written.concat()[..20], layer.digest.hex().as_bytes()[..20]);
        assert_eq!(status(&queue.request(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1])), OK);
    }
}

#[test]
fn writes_reach_a_raw_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    fs::write(&path, pattern(1 << 20)).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(&path, false, DiskId::new("raw")).unwrap());
    let guest = FakeGuest::new();
    let mut device = Block::with_queues(disk, 2);
    assert_ne!(device.features() & (1 << VIRTIO_BLK_F_FLUSH), 0);
    assert_ne!(device.features() & (1 << VIRTIO_BLK_F_MQ), 0);
    let mut driver = guest.activate(&mut device);
    for index in 0..2 {
        let queue = &mut driver.queues[index];
        let data = vec![0xa0 + index as u8; 1536];
        let sector = 5 + 10 * index as u64;
        let request = [&header(VIRTIO_BLK_T_OUT, sector)[..], &data[..100]].concat();
        let done = queue.request(&[&request, &data[100..]], &[1]);
        assert_eq!(status(&done), OK);
        assert_eq!(done.len, 1);
        assert_eq!(status(&queue.request(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1])), OK);
        assert_eq!(read(queue, sector, 1536).unwrap(), data);
        let start = sector as usize * 512;
        assert_eq!(fs::read(&path).unwrap()[start..start + 1536], data);
    }
}

/// The guest's persistent memory is a slot of the hypervisor's, outside every view of devices. So `O_DIRECT` from or to a
/// mapped file of its image is an I/O error.
#[test]
fn requests_cannot_use_persistent_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let data = pattern(64 << 10);
    fs::write(&path, &data).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(&path, false, DiskId::new("raw")).unwrap());
    let guest = FakeGuest::new();
    let image = GuestAddress(5 << 30);
    let mut devices = (Block::new(disk), Pmem::new(image, 128 << 20));
    let mut driver = guest.activate(&mut devices.0);
    let _pmem = guest.activate(&mut devices.1);
    let queue = &mut driver.queues[0];
    let (write, read_header) = (header(VIRTIO_BLK_T_OUT, 8), header(VIRTIO_BLK_T_IN, 8));
    let ordinary = guest.allocate_with(&[0xee; 512]);
    for parts in [
        &[Part::Readable(&write), Part::ReadableAt(image, 4096), Part::Writable(1)][..],
        &[Part::Readable(&write), Part::ReadableAt(ordinary, 512), Part::ReadableAt(image, 512), Part::Writable(1)],
        &[Part::Readable(&read_header), Part::WritableAt(image, 4096), Part::Writable(1)],
    ] {
        let done = queue.request_parts(parts);
        assert_eq!(status(&done), IOERR);
        assert_eq!(done.len, 1);
    }
    assert!(fs::read(&path).unwrap() == data, "none of it was written");
    assert!(read(queue, 8, 4096).unwrap() == data[4096..8192], "the disk still serves");
}

#[test]
fn hostile_requests_get_an_answer_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(64 << 10);
    let layer = layer(directory.path(), &data);
    for (name, disk) in layer_disks(&layer) {
        let guest = FakeGuest::new();
        let mut device = Block::new(disk);
        let mut driver = guest.activate(&mut device);
        let queue = &mut driver.queues[0];
        let nowhere = GuestAddress(FakeGuest::MEMORY as u64);
        let last = GuestAddress(u64::MAX);
        let head = header(VIRTIO_BLK_T_IN, 0);
        let unknown = header(11, 0);
        let beyond = header(VIRTIO_BLK_T_IN, 127);
        let overflow = header(VIRTIO_BLK_T_IN, u64::MAX);

        // Parts; then the status and length that the driver sees, or only length 0.
        let cases: &[(&str, &[Part<'_>], Option<u8>)] = &[
            ("no status", &[Part::Readable(&head)], None),
            ("empty status", &[Part::Readable(&head), Part::Writable(0)], None),
            ("writable before readable", &[Part::Writable(513), Part::Readable(&head)], None),
            ("status nowhere", &[Part::Readable(&head), Part::Writable(512), Part::WritableAt(nowhere, 1)], None),
            ("no header", &[Part::Writable(513)], Some(IOERR)),
            ("short header", &[Part::Readable(&head[..15]), Part::Writable(513)], Some(IOERR)),
            ("header nowhere", &[Part::ReadableAt(nowhere, 16), Part::Writable(513)], Some(IOERR)),
            ("header wraps", &[Part::ReadableAt(last, 16), Part::Writable(513)], Some(IOERR)),
            ("data nowhere", &[Part::Readable(&head), Part::WritableAt(nowhere, 512), Part::Writable(1)], Some(IOERR)),
            ("data wraps", &[Part::Readable(&head), Part::WritableAt(last, 512), Part::Writable(1)], Some(IOERR)),
            (
                "data over the end of memory",
                &[Part::Readable(&head), Part::WritableAt(GuestAddress(nowhere.0 - 256), 512), Part::Writable(1)],
                Some(IOERR),
            ),
            ("no data", &[Part::Readable(&head), Part::Writable(1)], Some(IOERR)),
            ("odd length", &[Part::Readable(&head), Part::Writable(512)], Some(IOERR)),
            ("beyond the end", &[Part::Readable(&beyond), Part::Writable(1025)], Some(IOERR)),
            ("sector overflows", &[Part::Readable(&overflow), Part::Writable(513)], Some(IOERR)),
            (
                "2 GiB",
                &[Part::Readable(&head), Part::WritableAt(GuestAddress(0), 1 << 31), Part::Writable(1)],
                Some(IOERR),
            ),
            ("unknown type", &[Part::Readable(&unknown), Part::Writable(513)], Some(UNSUPP)),
        ];
        for (case, parts, expected) in cases {
            let done = queue.request_parts(parts);
            match expected {
                Some(expected) => assert_eq!((status(&done), done.len), (*expected, 1), "{name}: {case}"),
                None => assert_eq!(done.len, 0, "{name}: {case}"),
            }
        }
        // Chains that end in a loop, or in a descriptor that does not exist.
        let (loops, _) = queue.build(&[Part::Readable(&head), Part::Writable(512), Part::Writable(1)]);
        for next in [loops, queue.size, u16::MAX] {
            let status = (loops + 2) % queue.size;
            queue.set_descriptor(status, guest.allocate(1), 1, 3, next);
            queue.publish(loops);
            queue.kick();
            assert_eq!(queue.wait_used().len, 0, "{name}: next is {next}");
        }
        assert!(read(queue, 0, 512).unwrap() == data[..512], "{name} still serves");
        assert!(fs::read(&layer.path).unwrap() == data, "{name} left the file alone");
    }
}

#[test]
fn reset_ends_everything_and_the_device_can_start_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(64 << 10);
    let layer = layer(directory.path(), &data);
    let disk = layer_disks(&layer)[0].1.clone();
    let guest = FakeGuest::new();
    let mut device = Block::with_queues(disk.clone(), 3);
    let before = Arc::strong_count(&disk);
    for _ in 0..3 {
        let mut driver = guest.activate(&mut device);
        assert!(read(&mut driver.queues[1], 8, 512).unwrap() == data[4096..4608]);
        device.reset();
        assert_eq!(Arc::strong_count(&disk), before, "a handler is left on the loop");
    }
}

#[test]
fn many_requests_in_one_kick_are_all_answered() {
    let directory = tempfile::tempdir().unwrap();
    let data = pattern(1 << 20);
    let layer = layer(directory.path(), &data);
    let guest = FakeGuest::new();
    let mut device = Block::new(layer_disks(&layer)[0].1.clone());
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let requests: Vec<_> = (0..120_u64)
        .map(|n| {
            let buffer = guest.allocate(4097);
            let request = header(VIRTIO_BLK_T_IN, n * 8);
            queue.add_indirect(&[Part::Readable(&request), Part::WritableAt(buffer, 4097)]);
            (n as usize * 4096, buffer)
        })
        .collect();
    queue.kick();
    for _ in 0..requests.len() {
        assert_eq!(queue.wait_used().len, 4097);
    }
    for (start, buffer) in requests {
        assert!(guest.read(buffer, 4096) == data[start..start + 4096]);
    }
}

/// A disk whose calls signal that they have begun and then wait.
struct SlowDisk {
    begun: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl SlowDisk {
    fn wait(&self) -> io::Result<()> {
        self.begun.send(()).map_err(io::Error::other)?;
        self.go_on.lock().unwrap().recv().map_err(io::Error::other)
    }
}

impl Disk for SlowDisk {
    fn sectors(&self) -> u64 {
        64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn id(&self) -> DiskId {
        DiskId::default()
    }

    fn read_at(&self, _: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.wait()?;
        buffers.iter().for_each(|buffer| buffer.copy_from(&vec![7_u8; buffer.len()]));
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.wait()
    }

    fn flush(&self) -> io::Result<()> {
        self.wait()
    }
}

#[test]
fn a_slow_disk_delays_no_unplug_of_memory_that_it_does_not_touch() {
    const BLOCK: u64 = bellows_memory::BLOCK.get();
    let blocks = |first, count| bellows_memory::BlockRange::new(first, count).unwrap();
    let guest = FakeGuest::new();
    let fixture = Fixture::in_view(guest.view().clone(), ByteSize::mib(128));
    let partition = &fixture.partition;
    partition.set_target(ByteSize::mib(128)).unwrap();
    let ((begun, has_begun), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let mut device = Block::new(Arc::new(SlowDisk { begun, go_on: Mutex::new(go_on) }) as Arc<dyn Disk>);
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    let done = Handled::Answer(Answer::Done);
    // Discards take turns.
    let soon = |request| loop {
        match partition.handle(request) {
            Handled::Later => std::thread::yield_now(),
            answer => break answer,
        }
    };

    let data = GuestAddress(fixture.start() + BLOCK);
    let (read, write, flush) = (header(VIRTIO_BLK_T_IN, 0), header(VIRTIO_BLK_T_OUT, 0), header(VIRTIO_BLK_T_FLUSH, 0));
    let requests: [(&[Part<'_>], bool); 4] = [
        (&[Part::Readable(&flush), Part::Writable(1)], false),
        (&[Part::Readable(&read), Part::Writable(512), Part::Writable(1)], false),
        (&[Part::Readable(&read), Part::WritableAt(data, 512), Part::Writable(1)], true),
        (&[Part::Readable(&write), Part::ReadableAt(data, 512), Part::Writable(1)], true),
    ];
    for (request, touches) in requests {
        assert_eq!(soon(Request::Plug(blocks(0, 4))), done);
        queue.add(request);
        queue.kick();
        has_begun.recv_timeout(PATIENCE).unwrap();
        assert_eq!(soon(Request::Unplug(blocks(0, 1))), done, "{request:?}");
        assert_eq!(soon(Request::Unplug(blocks(2, 2))), done, "{request:?}");
        partition.wait_discarded(PATIENCE).unwrap();
        if touches {
            assert_eq!(partition.handle(Request::UnplugAll), Handled::Later, "{request:?}");
        } else {
            assert_eq!(soon(Request::UnplugAll), done, "{request:?}");
        }
        go.send(()).unwrap();
        queue.wait_used();
        assert_eq!(soon(Request::UnplugAll), done);
        assert_eq!(partition.wait_discarded(PATIENCE).unwrap().plugged, ByteSize::bytes(0));
    }
    // Memory that is unplugged before the disk begins is out of reach.
    let late = queue.request_parts(&[Part::Readable(&read), Part::WritableAt(data, 512), Part::Writable(1)]);
    assert_eq!(status(&late), IOERR);
}
