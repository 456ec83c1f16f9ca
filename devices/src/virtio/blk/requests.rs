//! From a chain to an answer: a request of the driver, carried out on the disk.

use std::io;
use std::sync::Arc;

use bellows_disk::Disk;
use bellows_memory::view::Pinned;
use bellows_memory::{GuestMemory, GuestView, limited};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::{GuestAddressSpace, VolatileSlice};

use super::counters::Counters;
use super::erase::{self, Range};
use super::request::{
    self, Erasure, HEADER_SIZE, ID_SIZE, Limits, MAX_SEGMENTS, Request, SEGMENT_SIZE, VirtioBlkReqHeader,
};
use crate::virtio::chain::{Chain, Segment};
use crate::virtio::limits::Limiter;
use crate::virtio::queue::{Outcome, QueueHandler, Snapshot};

/// Serves the queues of a device, one after the other.
pub(super) struct Requests {
    disk: Arc<dyn Disk>,
    memory: GuestView,
    counters: Arc<Counters>,
    /// Feature bits that the driver has negotiated.
    features: u64,
    limits: Limits,
    pub(super) limiter: Limiter,
    /// The ranges of the last request that erases some.
    ranges: Vec<Range>,
}

impl Requests {
    pub(super) fn new(disk: Arc<dyn Disk>, memory: GuestView, features: u64, counters: Arc<Counters>) -> Self {
        let limits = limits(&*disk, features);
        let ranges = Vec::with_capacity(MAX_SEGMENTS);
        Self { disk, memory, counters, features, limits, limiter: Limiter::default(), ranges }
    }

    /// Serves `disk` from the next request on.
    pub(super) fn set_disk(&mut self, disk: Arc<dyn Disk>) {
        self.limits = limits(&*disk, self.features);
        self.disk = disk;
    }

    /// The request in `chain`, whose data for the device to write have `writable` bytes; and what the rate limit counts it as. Ranges to
    /// erase are read here, and only here.
    fn parse(&mut self, chain: &Chain, memory: &GuestMemory, writable: u64) -> Result<(Request, Cost), Failure> {
        let short = || Failure::Header(chain.readable.bytes());
        let header: VirtioBlkReqHeader = chain.readable.read_obj(memory).ok_or_else(short)?;
        let readable = chain.readable.bytes() - HEADER_SIZE;
        let request = Request::parse(&header, readable, writable, self.limits)?;
        let (bytes, operations) = match request {
            Request::Read { bytes, .. } | Request::Write { bytes, .. } => (bytes, 1),
            Request::Flush | Request::GetId => (0, 1),
            Request::Erase { erasure, segments } => {
                let bytes = self.read_ranges(erasure, segments, chain, memory)?;
                // A discard moves nothing; of zeros, it depends on the file system whether they are written one by one.
                (if erasure == Erasure::Discard { 0 } else { bytes }, segments as u64)
            }
        };
        Ok((request, Cost { bytes, operations }))
    }

    /// Reads and checks the ranges behind the header; returns their bytes.
    fn read_ranges(
        &mut self,
        erasure: Erasure,
        segments: usize,
        chain: &Chain,
        memory: &GuestMemory,
    ) -> Result<u64, Failure> {
        let mut data = [0; HEADER_SIZE as usize + MAX_SEGMENTS * SEGMENT_SIZE];
        let data = &mut data[..HEADER_SIZE as usize + segments * SEGMENT_SIZE];
        match chain.readable.read(memory, data) {
            read if read == data.len() => {
                Ok(erase::parse(erasure, &data[HEADER_SIZE as usize..], self.limits, &mut self.ranges)?)
            }
            read => Err(Failure::Ranges(read)),
        }
    }

    /// Whether the rate limit lets something of this cost pass now; then it has passed.
    fn pass(&mut self, cost: Cost) -> bool {
        let ready = if cost.bytes > 0 { self.limiter.is_ready() } else { self.limiter.is_ready_without_bytes() };
        if ready {
            self.limiter.passed_as(cost.operations, cost.bytes);
        }
        ready
    }

    /// Carries a request out. Returns the bytes of data that it wrote to guest memory. The disk may take long: meanwhile only
    /// the memory that it reads or writes is held.
    fn serve(&self, request: Request, chain: &Chain, memory: Snapshot) -> Result<u64, Failure> {
        match request {
            Request::Read { offset, bytes } => {
                let data = self.pin(&memory, chain.writable.part(0, bytes))?;
                drop(memory);
                transfer(&data, offset, |offset, slices| self.disk.read_at(offset, slices))?;
                self.counters.read(bytes);
                Ok(bytes)
            }
            Request::Write { offset, bytes } => {
                let data = self.pin(&memory, chain.readable.part(HEADER_SIZE, bytes))?;
                drop(memory);
                transfer(&data, offset, |offset, slices| self.disk.write_at(offset, slices))?;
                drop(data);
                self.settle()?;
                self.counters.written(bytes);
                Ok(0)
            }
            Request::Erase { erasure, .. } => {
                drop(memory);
                for Range { offset, bytes, unmap } in self.ranges.iter().copied().filter(|range| range.bytes > 0) {
                    match erasure {
                        Erasure::Discard => self.disk.discard(offset, bytes)?,
                        Erasure::WriteZeroes => self.disk.write_zeroes(offset, bytes, unmap)?,
                    }
                    self.counters.erased(erasure, bytes);
                }
                self.settle()?;
                Ok(0)
            }
            Request::Flush => {
                drop(memory);
                self.disk.flush()?;
                self.counters.flushed();
                Ok(0)
            }
            Request::GetId => {
                let id = self.disk.id();
                match chain.writable.write(&memory, 0, &id.as_bytes()[..]) as u64 {
                    ID_SIZE => Ok(ID_SIZE),
                    written => Err(Failure::Id(written)),
                }
            }
        }
    }

    /// Makes what was written durable where the driver relies on that.
    fn settle(&self) -> io::Result<()> {
        // Without FLUSH it does so for each completed request (section 5.2.6.2).
        if self.features & (1 << VIRTIO_BLK_F_FLUSH) == 0 { self.disk.flush() } else { Ok(()) }
    }

    fn pin(&self, memory: &GuestMemory, segments: impl Iterator<Item = Segment>) -> Result<Pinned, Failure> {
        let pieces = segments.map(|segment| (segment.address, segment.bytes as usize));
        Ok(self.memory.pin(memory, pieces)?)
    }
}

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let head = chain.head();
        // The status is the last writable byte; without one the driver cannot get an answer.
        let writable = chain.writable.bytes().checked_sub(1).filter(|_| chain.defect().is_none());
        let request = writable.map(|writable| self.parse(chain, &memory, writable));
        let cost = request.as_ref().and_then(|request| request.as_ref().ok()).map_or(Cost::NONE, |(_, cost)| *cost);
        if !self.pass(cost) {
            return Outcome::NotYet;
        }
        let (Some(writable), Some(request)) = (writable, request) else {
            limited!(debug, head, defect = ?chain.defect(), "dropped a malformed chain, or one without a status byte");
            return Outcome::Used(0);
        };
        let (status, bytes) = match request.and_then(|(request, _)| self.serve(request, chain, memory)) {
            Ok(bytes) => (VIRTIO_BLK_S_OK as u8, bytes),
            Err(failure) => {
                limited!(debug, %failure, "a block request failed");
                self.counters.failed();
                (failure.status(), 0)
            }
        };
        match chain.writable.write(&self.memory.memory(), writable, &[status]) {
            0 => Outcome::Used(0),
            _ => Outcome::Used(u32::try_from(bytes + 1).unwrap_or(u32::MAX)),
        }
    }
}

/// What the rate limit counts a request as.
#[derive(Clone, Copy)]
struct Cost {
    operations: u64,
    bytes: u64,
}

impl Cost {
    /// Of something that the disk does not see.
    const NONE: Self = Self { operations: 1, bytes: 0 };
}

fn limits(disk: &dyn Disk, features: u64) -> Limits {
    let has = |bit: u32| features & (1 << bit) != 0;
    Limits {
        sectors: disk.sectors(),
        read_only: disk.read_only(),
        discard: has(VIRTIO_BLK_F_DISCARD),
        write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
    }
}

/// Pieces of guest memory given to the disk at once.
const BATCH: usize = 64;

/// Calls `transfer` with `data` and the position on the disk, batch by batch.
fn transfer(
    data: &Pinned,
    mut offset: u64,
    transfer: impl Fn(u64, &[VolatileSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut batch = [VolatileSlice::from(&mut [][..]); BATCH];
    let mut slices = data.slices();
    loop {
        let mut filled = 0;
        // Most requests are one piece.
        for (place, slice) in batch.iter_mut().zip(&mut slices) {
            *place = slice;
            filled += 1;
        }
        if filled == 0 {
            return Ok(());
        }
        transfer(offset, &batch[..filled])?;
        offset += batch[..filled].iter().map(|slice| slice.len() as u64).sum::<u64>();
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its header is not in memory, or not among its {0} readable bytes")]
    Header(u64),
    #[error("{0} bytes of its header and its ranges are in memory")]
    Ranges(usize),
    #[error("its buffer for the identifier has {0} bytes in memory")]
    Id(u64),
    #[error(transparent)]
    Rejected(#[from] request::Rejection),
    #[error("it names memory that does not exist: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("the disk failed: {0}")]
    Disk(#[from] io::Error),
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Rejected(rejection) => rejection.status(),
            // It was offered for another disk.
            Self::Disk(error) if error.kind() == io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
            Self::Header(_) | Self::Ranges(_) | Self::Id(_) | Self::Memory(_) | Self::Disk(_) => {
                VIRTIO_BLK_S_IOERR as u8
            }
        }
    }
}
