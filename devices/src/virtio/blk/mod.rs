//! virtio-blk, VIRTIO 1.2 section 5.2: a [`Disk`] for the guest.

use std::io;
use std::sync::Arc;

use bellows_disk::Disk;
use bellows_memory::view::Pinned;
use bellows_memory::{GuestMemory, GuestView, limited};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryBackend as _, VolatileSlice};

use self::request::{HEADER_SIZE, ID_SIZE, Limits, Request, Segment, Segments};
use super::device::read_bytes;
use super::worker::{Chain, QueueHandler, QueueWorker};
use super::{ActivateError, Activation, VirtioDevice};

pub mod request;

const QUEUE_SIZE: u16 = 256;
/// A chain is no longer than its queue (VIRTIO 1.2, section 2.7.5.3.1); two of its descriptors hold header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of the configuration that are not zero at most: up to `num_queues`.
const CONFIG_SIZE: usize = 36;

/// Pieces of guest memory given to the disk at once.
const BATCH: usize = 64;

/// A block device. Each of its queues blocks the event loop while a request runs, so it wants a loop of its own.
pub struct Block {
    disk: Arc<dyn Disk>,
    queue_sizes: Vec<u16>,
    workers: Vec<QueueWorker>,
}

impl Block {
    /// A device with one queue.
    #[must_use]
    pub fn new(disk: impl Into<Arc<dyn Disk>>) -> Self {
        Self::with_queues(disk, 1)
    }

    /// A device with `queues` queues; a driver need not use more than the first.
    #[must_use]
    pub fn with_queues(disk: impl Into<Arc<dyn Disk>>, queues: u16) -> Self {
        Self { disk: disk.into(), queue_sizes: vec![QUEUE_SIZE; usize::from(queues.max(1))], workers: Vec::new() }
    }

    /// The configuration (VIRTIO 1.2, section 5.2.4). Blocks of 512 bytes may be addressed; 4 KiB are better.
    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        config[..8].copy_from_slice(&self.disk.sectors().to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        // Topology: a physical block is 2^3 logical ones, none of them misaligned; that is the least and best transfer.
        config[24] = 3;
        config[26..28].copy_from_slice(&8_u16.to_le_bytes());
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX);
        config[34..36].copy_from_slice(&queues.to_le_bytes());
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_BLOCK as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let writable = if self.disk.read_only() { VIRTIO_BLK_F_RO } else { VIRTIO_BLK_F_FLUSH };
        let queues = (self.queue_sizes.len() > 1).then_some(VIRTIO_BLK_F_MQ);
        [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, writable]
            .into_iter()
            .chain(queues)
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        // Without FLUSH the driver takes a completed write for durable (section 5.2.6.2).
        let write_through = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        let mut workers = Vec::with_capacity(self.queue_sizes.len());
        for (index, _) in (0..).zip(&self.queue_sizes) {
            let enabled = activation.queues.get(usize::from(index)).is_some_and(Option::is_some);
            if enabled || index == 0 {
                let handler = Requests::new(self.disk.clone(), activation.memory.clone(), write_through);
                workers.push(QueueWorker::start(&mut activation, index, handler)?);
            }
        }
        self.workers = workers;
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
    }
}

/// Serves one queue.
struct Requests {
    disk: Arc<dyn Disk>,
    memory: GuestView,
    limits: Limits,
    write_through: bool,
    readable: Segments,
    writable: Segments,
}

impl Requests {
    fn new(disk: Arc<dyn Disk>, memory: GuestView, write_through: bool) -> Self {
        let limits = Limits { sectors: disk.sectors(), read_only: disk.read_only() };
        let segments = usize::from(QUEUE_SIZE);
        Self {
            disk,
            memory,
            limits,
            write_through,
            readable: Segments::with_capacity(segments),
            writable: Segments::with_capacity(segments),
        }
    }

    /// Sorts a chain's descriptors; `false` if it is malformed: too long, cut short, or readable after writable ones.
    fn collect(&mut self, chain: &mut Chain) -> bool {
        self.readable.clear();
        self.writable.clear();
        for descriptor in chain {
            let segment = Segment { address: descriptor.addr(), bytes: descriptor.len() };
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return false;
            }
            if self.readable.len() + self.writable.len() > usize::from(QUEUE_SIZE) {
                return false;
            }
            if !descriptor.has_next() {
                return true;
            }
        }
        false
    }

    /// The header, which the first readable bytes are.
    fn header(&self, memory: &GuestMemory) -> Result<[u8; HEADER_SIZE], Failure> {
        let mut header = [0; HEADER_SIZE];
        let mut filled = 0;
        for segment in self.readable.part(0, HEADER_SIZE as u64) {
            let end = filled + segment.bytes as usize;
            // Nearly always it is in one piece of memory, which is quicker to find.
            match memory.get_slice(segment.address, segment.bytes as usize) {
                Ok(slice) => drop(slice.copy_to(&mut header[filled..end])),
                Err(_) => memory.read_slice(&mut header[filled..end], segment.address)?,
            }
            filled = end;
        }
        if filled < HEADER_SIZE {
            return Err(Failure::Header(filled));
        }
        Ok(header)
    }

    /// Carries a request out; how many bytes of data it wrote to guest memory. The disk may take long: by then nothing is held of
    /// guest memory but what it reads or writes.
    fn serve(&self, chain: Chain, writable: u64) -> Result<u64, Failure> {
        let memory = chain.memory();
        let header = self.header(memory)?;
        let readable = self.readable.bytes() - HEADER_SIZE as u64;
        match Request::parse(&header, readable, writable, self.limits)? {
            Request::Read { offset, bytes } => {
                let data = self.pin(memory, self.writable.part(0, bytes))?;
                drop(chain);
                transfer(&data, offset, |offset, slices| self.disk.read_at(offset, slices))?;
                Ok(bytes)
            }
            Request::Write { offset, bytes } => {
                let data = self.pin(memory, self.readable.part(HEADER_SIZE as u64, bytes))?;
                drop(chain);
                transfer(&data, offset, |offset, slices| self.disk.write_at(offset, slices))?;
                drop(data);
                if self.write_through {
                    self.disk.flush()?;
                }
                Ok(0)
            }
            Request::Flush => {
                drop(chain);
                self.disk.flush()?;
                Ok(0)
            }
            Request::GetId => {
                let id = self.disk.id();
                let mut left = &id.as_bytes()[..];
                for segment in self.writable.part(0, ID_SIZE) {
                    let (piece, rest) = left.split_at(segment.bytes as usize);
                    memory.write_slice(piece, segment.address)?;
                    left = rest;
                }
                Ok(ID_SIZE)
            }
        }
    }

    fn pin(&self, memory: &GuestMemory, segments: impl Iterator<Item = Segment>) -> Result<Pinned, Failure> {
        let pieces = segments.map(|segment| (segment.address, segment.bytes as usize));
        Ok(self.memory.pin(memory, pieces)?)
    }
}

impl QueueHandler for Requests {
    fn handle(&mut self, mut chain: Chain) -> u32 {
        let head = chain.head_index();
        if !self.collect(&mut chain) {
            limited!(debug, head, "dropped a malformed descriptor chain");
            return 0;
        }
        // The status is the last writable byte; where there is none, the driver can't be told anything.
        let Some(writable) = self.writable.bytes().checked_sub(1) else {
            limited!(debug, head, "dropped a request without a status byte");
            return 0;
        };
        let (status, bytes) = match self.serve(chain, writable) {
            Ok(bytes) => (VIRTIO_BLK_S_OK as u8, bytes),
            Err(failure) => {
                limited!(debug, %failure, "a block request failed");
                (failure.status(), 0)
            }
        };
        let memory = self.memory.memory();
        let last = self.writable.part(writable, 1).next().and_then(|last| memory.get_slice(last.address, 1).ok());
        match last.map(|last| last.copy_from(&[status])) {
            Some(()) => u32::try_from(bytes + 1).unwrap_or(u32::MAX),
            _ => 0,
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its header has {0} bytes")]
    Header(usize),
    #[error(transparent)]
    Rejected(#[from] request::Rejection),
    #[error("it names memory that is not there: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("the disk failed: {0}")]
    Disk(#[from] io::Error),
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Rejected(rejection) => rejection.status(),
            Self::Header(_) | Self::Memory(_) | Self::Disk(_) => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

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

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
