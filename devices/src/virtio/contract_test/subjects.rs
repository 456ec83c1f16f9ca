//! The devices that take the contract's tests, with their needs on the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bellows_disk::{Disk, DiskId};
use bellows_memory::testing::Fixture;
use bellows_memory::{Backing, BaseMemory, ByteSize, Layout, LayoutSpec};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_DISCARD;
use vm_memory::{ByteValued as _, GuestAddress, VolatileSlice};

use super::Subject;
use crate::virtio::balloon::BalloonSettings;
use crate::virtio::blk::erase::VirtioBlkDiscardWriteZeroes;
use crate::virtio::blk::request::VirtioBlkReqHeader;
use crate::virtio::limits::{Rate, RateLimit};
use crate::virtio::mem::request::VirtioMemReq;
use crate::virtio::net::fake_link::{self, FakeHost, FakeLink};
use crate::virtio::net::wire::HEADER_BYTES;
use crate::virtio::net::{MacAddress, NetSettings, RateLimits};
use crate::virtio::testing::Completion;
use crate::virtio::vsock::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::virtio::{Balloon, Block, Mem, Net, Pmem, Rng, VirtioDevice, Vsock};

pub(super) struct RngSubject;

impl Subject for RngSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Rng::new())
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        (Vec::new(), vec![32])
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 32);
        assert_ne!(done.written[0], [0; 32]);
    }
}

/// A disk, and its rate limit if it has one.
pub(super) struct BlkSubject(pub(super) Option<RateLimit>);

/// So low that requests wait, and so high that the tests do not take long.
pub(super) fn low_limit() -> RateLimit {
    let rate = |per_second: u64| {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: 1.try_into().unwrap(), one_time_burst: 2 })
    };
    RateLimit { bandwidth: rate(8 << 20), operations: rate(10_000) }
}

/// A disk on which every byte is 7.
struct Sevens;

impl Disk for Sevens {
    fn sectors(&self) -> u64 {
        64
    }

    fn id(&self) -> DiskId {
        DiskId::new("sevens")
    }

    fn read_at(&self, _: u64, buffers: &[VolatileSlice<'_>]) -> std::io::Result<()> {
        buffers.iter().for_each(|buffer| buffer.copy_from(&vec![7_u8; buffer.len()]));
        Ok(())
    }
}

impl Subject for BlkSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        let sevens: Arc<dyn Disk> = Arc::new(Sevens);
        match self.0 {
            None => Box::new(Block::with_queues(sevens, 2)),
            Some(limit) => Box::new(Block::controlled(sevens, limit).unwrap()),
        }
    }

    fn queue(&self) -> usize {
        usize::from(self.0.is_none())
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        let header = VirtioBlkReqHeader { sector: 3.into(), ..Default::default() };
        (header.as_slice().to_vec(), vec![512, 1])
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 513);
        assert_eq!(done.written, [vec![7; 512], vec![0]]);
    }
}

/// A writable disk, and a driver that discards.
pub(super) struct DiscardSubject;

/// A disk that anything can be done with.
struct Patient;

impl Disk for Patient {
    fn sectors(&self) -> u64 {
        64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn id(&self) -> DiskId {
        DiskId::new("patient")
    }

    fn read_at(&self, _: u64, _: &[VolatileSlice<'_>]) -> std::io::Result<()> {
        Ok(())
    }

    fn discards(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        assert_eq!((offset, bytes), (8 * 512, 4 * 512));
        Ok(())
    }
}

impl Subject for DiscardSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Block::new(Arc::new(Patient) as Arc<dyn Disk>))
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        let header = VirtioBlkReqHeader { type_: VIRTIO_BLK_T_DISCARD.into(), ..Default::default() };
        let segment = VirtioBlkDiscardWriteZeroes { sector: 8.into(), num_sectors: 4.into(), ..Default::default() };
        ([header.as_slice(), segment.as_slice()].concat(), vec![1])
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 1);
        assert_eq!(done.written, [vec![0]]);
    }
}

pub(super) struct MemSubject(Fixture);

impl MemSubject {
    pub(super) fn new() -> Self {
        Self(Fixture::new(ByteSize::mib(128)))
    }
}

impl Subject for MemSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Mem::new(self.0.partition.clone()))
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        const UNPLUG_ALL: u16 = 2;
        let request = VirtioMemReq { type_: UNPLUG_ALL.into(), ..Default::default() };
        (request.as_slice().to_vec(), vec![10])
    }

    fn check(&self, done: &Completion) {
        const ACK: u8 = 0;
        assert_eq!(done.len, 10);
        assert_eq!(done.written[0][0], ACK);
    }
}

pub(super) struct PmemSubject;

impl Subject for PmemSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Pmem::new(GuestAddress(6 << 30), 2 << 20))
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        const FLUSH: u32 = 0;
        (FLUSH.to_le_bytes().to_vec(), vec![4])
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 4);
        assert_eq!(done.written, [[0; 4]]);
    }
}

pub(super) struct VsockSubject {
    directory: TempDir,
    devices: AtomicU32,
}

impl VsockSubject {
    pub(super) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), devices: AtomicU32::new(0) }
    }
}

impl Subject for VsockSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        let number = self.devices.fetch_add(1, Ordering::Relaxed);
        Box::new(Vsock::new(3, &self.directory.path().join(format!("{number}"))).unwrap())
    }

    fn queue(&self) -> usize {
        1
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: 2,
            kind: TYPE_STREAM,
            op: Op::Reset.number(),
            ..Header::default()
        };
        (header.to_bytes().to_vec(), Vec::new())
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 0);
    }
}

/// A balloon for base memory of its own, so that the guest's queues stay.
pub(super) struct BalloonSubject {
    base: BaseMemory,
    queue: usize,
}

impl BalloonSubject {
    pub(super) fn new(queue: usize) -> Self {
        let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::gib(1), vec![], 40)).unwrap();
        Self { base: BaseMemory::map(&layout, Backing::None).unwrap(), queue }
    }
}

impl Subject for BalloonSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        let settings = BalloonSettings {
            target: ByteSize::mib(1),
            deflate_on_oom: true,
            stats_polling_interval_s: 1,
            free_page_hinting: true,
            free_page_reporting: true,
        };
        Box::new(Balloon::new(&settings, self.base.discard().unwrap()).unwrap())
    }

    fn queue(&self) -> usize {
        self.queue
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        match self.queue {
            0 => ([3_u32, 5, 4].iter().flat_map(|page| page.to_le_bytes()).collect(), Vec::new()),
            3 => (2_u32.to_le_bytes().to_vec(), vec![4096]),
            _ => (Vec::new(), vec![4096, 8192]),
        }
    }

    fn check(&self, done: &Completion) {
        assert_eq!(done.len, 0);
    }
}

/// An interface whose driver sends packets, or receives them. All its devices have one link.
pub(super) struct NetSubject {
    link: FakeLink,
    host: FakeHost,
    queue: usize,
    limit: RateLimit,
}

impl NetSubject {
    const FRAME: [u8; 60] = [0x5a; 60];

    pub(super) fn new(queue: usize, limit: RateLimit) -> Self {
        let (link, host) = fake_link::pair();
        Self { link, host, queue, limit }
    }
}

impl Subject for NetSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let settings =
            NetSettings { mac, mtu: Some(1500), limits: RateLimits { receive: self.limit, transmit: self.limit } };
        Box::new(Net::new(self.link.again(), &settings).unwrap())
    }

    fn queue(&self) -> usize {
        self.queue
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        if self.queue == 0 {
            // Each buffer is for one packet.
            self.host.send_frame(&Self::FRAME);
            return (Vec::new(), vec![HEADER_BYTES as u32 + 30, 100]);
        }
        ([&[0; HEADER_BYTES][..], &Self::FRAME].concat(), Vec::new())
    }

    fn check(&self, done: &Completion) {
        if self.queue == 0 {
            assert_eq!(done.len as usize, HEADER_BYTES + Self::FRAME.len());
            assert_eq!(done.written[0][HEADER_BYTES..], Self::FRAME[..30]);
            assert_eq!(done.written[1][..30], Self::FRAME[30..]);
            return;
        }
        assert_eq!(done.len, 0);
        assert_eq!(self.host.receive().1, Self::FRAME);
    }
}

/// Two pairs of queues, and the queue of commands.
pub(super) struct PairsSubject {
    links: Vec<FakeLink>,
    first: NetSubject,
}

impl PairsSubject {
    pub(super) fn new(queue: usize) -> Self {
        let (links, mut hosts) = fake_link::queues(2);
        let first =
            NetSubject { link: links[0].again(), host: hosts.swap_remove(0), queue, limit: RateLimit::default() };
        Self { links, first }
    }

    const fn is_control(&self) -> bool {
        self.first.queue == 4
    }
}

impl Subject for PairsSubject {
    fn device(&self) -> Box<dyn VirtioDevice> {
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let settings = NetSettings { mac, mtu: Some(1500), limits: RateLimits::default() };
        Box::new(Net::with_queue_pairs(self.links.iter().map(FakeLink::again).collect(), &settings).unwrap())
    }

    fn queue(&self) -> usize {
        self.first.queue
    }

    fn request(&self) -> (Vec<u8>, Vec<u32>) {
        // Both pairs are to be used.
        if self.is_control() { (vec![4, 0, 2, 0], vec![1]) } else { self.first.request() }
    }

    fn check(&self, done: &Completion) {
        if self.is_control() {
            assert_eq!((done.len, done.written[0][0]), (1, 0));
        } else {
            self.first.check(done);
        }
    }
}
