//! Reads of cached data through virtio-blk, without a VM: compares the cost of a request with a disk that only calls
//! `pread`, with a simple device on the same queue, and with copying alone. `cargo xtask bench blk` runs it and writes a
//! report.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong is to end the benchmark")]

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use bellows_block::{Digest, LayerDisk, StoredFile};
use bellows_devices::virtio::blk::request::VirtioBlkReqHeader;
use bellows_devices::virtio::chain::Chain;
use bellows_devices::virtio::queue::{Outcome, QueueHandler, Snapshot};
use bellows_devices::virtio::testing::{DriverQueue, FakeGuest, Part};
use bellows_devices::virtio::worker::QueueWorker;
use bellows_devices::virtio::{ActivateError, Activation, Block, VirtioDevice};
use bellows_disk::{Disk, DiskId, SECTOR_SIZE};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, VolatileSlice};

/// Size of the layer: larger than a processor's caches, and small enough for the page cache.
const LAYER_BYTES: usize = 128 << 20;
/// Requests in flight: as many as fit in a queue of 256 descriptors and in one turn of a device.
const DEPTH: usize = 64;
const QUEUE_SIZES: [u16; 1] = [256];
const HEADER_BYTES: usize = 16;
const PAGE: usize = 4096;

/// The simplest disk: a `pread` for each piece of memory.
struct PreadDisk(File);

impl Disk for PreadDisk {
    fn sectors(&self) -> u64 {
        LAYER_BYTES as u64 / SECTOR_SIZE
    }

    fn id(&self) -> DiskId {
        DiskId::default()
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut offset = offset;
        for buffer in buffers {
            pread(&self.0, offset, buffer);
            offset += buffer.len() as u64;
        }
        Ok(())
    }
}

/// Fills `to` from a file that is long enough.
fn pread(file: &File, offset: u64, to: &VolatileSlice<'_>) {
    let guard = to.ptr_guard_mut();
    // SAFETY: the kernel writes to guest memory, which the slice keeps mapped, no more than its length.
    let count = unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), to.len(), offset as i64) };
    assert_eq!(usize::try_from(count), Ok(to.len()));
}

/// The simplest device: a `pread` for each descriptor, and no checks.
struct Plain {
    file: File,
    worker: Option<QueueWorker<PlainRequests>>,
}

struct PlainRequests(File);

impl VirtioDevice for Plain {
    fn device_type(&self) -> u16 {
        2
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let handler = PlainRequests(self.file.try_clone().unwrap());
        self.worker = Some(QueueWorker::start(&mut activation, 0, handler)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.worker.take().and_then(QueueWorker::stop)]
    }
}

impl QueueHandler for PlainRequests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let header: VirtioBlkReqHeader = chain.readable.read_obj(&memory).unwrap();
        let mut position = header.sector.to_native() * SECTOR_SIZE;
        let bytes = chain.writable.bytes() - 1;
        for slice in chain.writable.slices(&memory, 0, bytes) {
            pread(&self.0, position, &slice);
            position += slice.len() as u64;
        }
        chain.writable.write(&memory, bytes, &[0]);
        Outcome::Used(bytes as u32 + 1)
    }
}

/// A driver that builds its requests once and repeats them, each time for other sectors.
struct Driver {
    guest: FakeGuest,
    queue: DriverQueue,
    requests: Vec<(u16, GuestAddress)>,
    bytes: usize,
    next: usize,
    _device: Box<dyn VirtioDevice>,
}

impl Driver {
    fn new(mut device: Box<dyn VirtioDevice>, bytes: usize) -> Self {
        let guest = FakeGuest::new();
        // As a VM's memory is by default.
        for region in guest.memory().iter() {
            huge_pages(region.as_ptr(), region.len() as usize);
        }
        let mut queue = guest.activate(&mut *device).queues.remove(0);
        let requests = (0..DEPTH).map(|_| {
            let (header, data) = (guest.allocate(HEADER_BYTES), guest.allocate(bytes));
            let parts = [
                Part::ReadableAt(header, HEADER_BYTES as u32),
                Part::WritableAt(data, bytes as u32),
                Part::Writable(1),
            ];
            (queue.build(&parts).0, header)
        });
        let requests = requests.collect();
        Self { guest, queue, requests, bytes, next: 0, _device: device }
    }

    /// Makes all requests and waits until all are answered.
    fn round(&mut self) {
        let memory = self.guest.memory();
        for (head, header) in &self.requests {
            memory.write_obj((self.next as u64 / SECTOR_SIZE).to_le(), GuestAddress(header.0 + 8)).unwrap();
            self.next = (self.next + self.bytes) % LAYER_BYTES;
            self.queue.publish(*head);
        }
        self.queue.kick();
        for _ in &self.requests {
            assert_eq!(self.queue.wait_used().len as usize, self.bytes + 1);
        }
    }
}

/// Copying alone, from memory with the layout of the layer to buffers like the driver's.
struct Copier {
    source: Vec<u8>,
    target: Vec<u8>,
    bytes: usize,
    next: usize,
}

impl Copier {
    fn new(bytes: usize) -> Self {
        let (mut source, mut target) = (Vec::with_capacity(LAYER_BYTES), Vec::with_capacity(DEPTH * bytes));
        for memory in [&mut source, &mut target] {
            huge_pages(memory.as_mut_ptr(), memory.capacity());
        }
        source.extend(pattern());
        target.resize(DEPTH * bytes, 1);
        Self { source, target, bytes, next: 0 }
    }

    fn round(&mut self) {
        let bytes = self.bytes;
        for buffer in self.target.chunks_exact_mut(bytes) {
            buffer.copy_from_slice(&self.source[self.next..self.next + bytes]);
            black_box(&buffer[0]);
            self.next = (self.next + bytes) % LAYER_BYTES;
        }
    }
}

/// Asks for huge pages under memory that is about to be touched.
fn huge_pages(start: *mut u8, bytes: usize) {
    let inset = start.align_offset(PAGE);
    // SAFETY: advice on whole pages of memory that the caller owns does not change what is in it.
    unsafe { libc::madvise(start.wrapping_add(inset).cast(), bytes.saturating_sub(inset), libc::MADV_HUGEPAGE) };
}

fn pattern() -> impl Iterator<Item = u8> {
    (0..LAYER_BYTES).map(|n| (n % 251) as u8)
}

/// A layer in the page cache.
fn layer(directory: &Path) -> StoredFile {
    let path = directory.join("layer");
    File::create(&path).unwrap().write_all(&pattern().collect::<Vec<_>>()).unwrap();
    StoredFile { digest: Digest::of(b"layer"), path, bytes: LAYER_BYTES as u64 }
}

fn reads(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path());
    for (name, bytes) in [("4k", 4 << 10), ("128k", 128 << 10)] {
        let mut group = criterion.benchmark_group(format!("blk-{name}"));
        group.throughput(Throughput::ElementsAndBytes { elements: DEPTH as u64, bytes: (DEPTH * bytes) as u64 });
        // Each of them twice, to compare it with itself.
        for turn in 1..=2 {
            group.bench_function(format!("bellows-{turn}"), |bencher| {
                // As the program does.
                bellows_memory::host::catch_faults().unwrap();
                let disk: Arc<dyn Disk> = Arc::new(LayerDisk::open(&layer).unwrap());
                let mut driver = Driver::new(Box::new(Block::new(disk)), bytes);
                bencher.iter(|| driver.round());
            });
            group.bench_function(format!("pread-{turn}"), |bencher| {
                let disk: Arc<dyn Disk> = Arc::new(PreadDisk(File::open(&layer.path).unwrap()));
                let mut driver = Driver::new(Box::new(Block::new(disk)), bytes);
                bencher.iter(|| driver.round());
            });
            group.bench_function(format!("plain-{turn}"), |bencher| {
                let device = Plain { file: File::open(&layer.path).unwrap(), worker: None };
                let mut driver = Driver::new(Box::new(device), bytes);
                bencher.iter(|| driver.round());
            });
            group.bench_function(format!("memcpy-{turn}"), |bencher| {
                let mut copier = Copier::new(bytes);
                bencher.iter(|| copier.round());
            });
        }
    }
}

criterion_group!(benches, reads);
criterion_main!(benches);
