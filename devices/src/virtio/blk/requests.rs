//! From a chain to an answer: a request of the driver, carried out on the disk.

use std::io;
use std::sync::Arc;

use bellows_disk::Disk;
use bellows_memory::view::Pinned;
use bellows_memory::{GuestMemory, GuestView, limited};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use vm_memory::{GuestAddressSpace, VolatileSlice};

use super::request::{self, HEADER_SIZE, ID_SIZE, Limits, Request, VirtioBlkReqHeader};
use crate::virtio::chain::{Chain, Segment};
use crate::virtio::limits::Limiter;
use crate::virtio::queue::{Outcome, QueueHandler, Snapshot};

/// Serves the queues of a device, one after the other.
pub(super) struct Requests {
    disk: Arc<dyn Disk>,
    memory: GuestView,
    limits: Limits,
    pub(super) limiter: Limiter,
    write_through: bool,
}

impl Requests {
    pub(super) fn new(disk: Arc<dyn Disk>, memory: GuestView, write_through: bool) -> Self {
        let limits = limits(&*disk);
        Self { disk, memory, limits, limiter: Limiter::default(), write_through }
    }

    /// Serves `disk` from the next request on.
    pub(super) fn set_disk(&mut self, disk: Arc<dyn Disk>) {
        self.limits = limits(&*disk);
        self.disk = disk;
    }

    /// The request in `chain`, whose data for the device to write have `writable` bytes.
    fn parse(&self, chain: &Chain, memory: &GuestMemory, writable: u64) -> Result<Request, Failure> {
        let short = Failure::Header(chain.readable.bytes());
        let header: VirtioBlkReqHeader = chain.readable.read_obj(memory).ok_or(short)?;
        let readable = chain.readable.bytes() - HEADER_SIZE;
        Ok(Request::parse(&header, readable, writable, self.limits)?)
    }

    /// Whether the rate limit lets something of `bytes` bytes pass now; then it has passed.
    fn pass(&mut self, bytes: u64) -> bool {
        let ready = if bytes > 0 { self.limiter.is_ready() } else { self.limiter.is_ready_without_bytes() };
        if ready {
            self.limiter.passed(bytes);
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
                Ok(bytes)
            }
            Request::Write { offset, bytes } => {
                let data = self.pin(&memory, chain.readable.part(HEADER_SIZE, bytes))?;
                drop(memory);
                transfer(&data, offset, |offset, slices| self.disk.write_at(offset, slices))?;
                drop(data);
                if self.write_through {
                    self.disk.flush()?;
                }
                Ok(0)
            }
            Request::Flush => {
                drop(memory);
                self.disk.flush()?;
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
        if !self.pass(request.as_ref().map_or(0, |request| request.as_ref().map_or(0, Request::bytes))) {
            return Outcome::NotYet;
        }
        let (Some(writable), Some(request)) = (writable, request) else {
            limited!(debug, head, defect = ?chain.defect(), "dropped a malformed chain, or one without a status byte");
            return Outcome::Used(0);
        };
        let (status, bytes) = match request.and_then(|request| self.serve(request, chain, memory)) {
            Ok(bytes) => (VIRTIO_BLK_S_OK as u8, bytes),
            Err(failure) => {
                limited!(debug, %failure, "a block request failed");
                (failure.status(), 0)
            }
        };
        match chain.writable.write(&self.memory.memory(), writable, &[status]) {
            0 => Outcome::Used(0),
            _ => Outcome::Used(u32::try_from(bytes + 1).unwrap_or(u32::MAX)),
        }
    }
}

fn limits(disk: &dyn Disk) -> Limits {
    Limits { sectors: disk.sectors(), read_only: disk.read_only() }
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
            Self::Header(_) | Self::Id(_) | Self::Memory(_) | Self::Disk(_) => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}
