//! virtio-blk, VIRTIO 1.2 section 5.2: a [`Disk`] for the guest.

use std::io;
use std::sync::Arc;

use bellows_disk::{Disk, SECTOR_SIZE};
use bellows_memory::view::Pinned;
use bellows_memory::{GuestMemory, GuestView, limited, wire};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vm_memory::{ByteValued as _, GuestAddressSpace, Le16, Le32, Le64, VolatileSlice};

use self::request::{HEADER_SIZE, ID_SIZE, Limits, Request, VirtioBlkReqHeader};
use super::chain::{Chain, Segment};
use super::device::read_bytes;
use super::queue::{Outcome, QueueHandler, Snapshot};
use super::state::{BlockState, DeviceState};
use super::worker::QueueWorker;
use super::{ActivateError, Activation, VirtioDevice};
use crate::state::Version;

pub mod request;

const QUEUE_SIZE: u16 = 256;
/// A chain is no longer than its queue (VIRTIO 1.2, section 2.7.5.3.1); two of its descriptors hold header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// A block device. Each of its queues blocks the event loop while a request runs, so it needs a loop of its own.
pub struct Block {
    disk: Arc<dyn Disk>,
    queue_sizes: Vec<u16>,
    /// By queue number; `None` if the driver did not enable the queue.
    workers: Vec<Option<QueueWorker<Requests>>>,
}

wire! {
    /// `struct virtio_blk_config`, section 5.2.4.
    struct VirtioBlkConfig {
        capacity: Le64,
        size_max: Le32,
        seg_max: Le32,
        geometry: VirtioBlkGeometry,
        blk_size: Le32,
        topology: VirtioBlkTopology,
        writeback: u8,
        unused0: u8,
        num_queues: Le16,
        max_discard_sectors: Le32,
        max_discard_seg: Le32,
        discard_sector_alignment: Le32,
        max_write_zeroes_sectors: Le32,
        max_write_zeroes_seg: Le32,
        write_zeroes_may_unmap: u8,
        unused1: [u8; 3],
        max_secure_erase_sectors: Le32,
        max_secure_erase_seg: Le32,
        secure_erase_sector_alignment: Le32,
    }

    struct VirtioBlkGeometry {
        cylinders: Le16,
        heads: u8,
        sectors: u8,
    }

    struct VirtioBlkTopology {
        /// Logical blocks of a physical one, as a power of two.
        physical_block_exp: u8,
        alignment_offset: u8,
        /// In logical blocks.
        min_io_size: Le16,
        /// In logical blocks.
        opt_io_size: Le32,
    }
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

    /// The configuration. Logical blocks have 512 bytes; the preferred size is 4 KiB.
    fn config(&self) -> VirtioBlkConfig {
        VirtioBlkConfig {
            capacity: self.disk.sectors().into(),
            seg_max: SEG_MAX.into(),
            blk_size: (SECTOR_SIZE as u32).into(),
            topology: VirtioBlkTopology { physical_block_exp: 3, min_io_size: 8.into(), ..Default::default() },
            num_queues: u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX).into(),
            ..Default::default()
        }
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
        read_bytes(self.config().as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        // Without FLUSH the driver relies on completed writes being durable (section 5.2.6.2).
        let write_through = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        let mut workers = Vec::with_capacity(self.queue_sizes.len());
        for (index, _) in (0..).zip(&self.queue_sizes) {
            let enabled = activation.queues.get(usize::from(index)).is_some_and(Option::is_some);
            let worker = (enabled || index == 0).then(|| {
                let handler = Requests::new(self.disk.clone(), activation.memory.clone(), write_through);
                QueueWorker::start(&mut activation, index, handler)
            });
            workers.push(worker.transpose()?);
        }
        self.workers = workers;
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let mut queues: Vec<_> = self.workers.drain(..).map(|worker| worker.and_then(QueueWorker::stop)).collect();
        queues.resize(self.queue_sizes.len(), None);
        queues
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            version: Version,
            sectors: self.disk.sectors(),
            read_only: self.disk.read_only(),
            id: String::from_utf8_lossy(self.disk.id().as_bytes()).trim_end_matches('\0').to_owned(),
        })
    }
}

/// Serves one queue.
struct Requests {
    disk: Arc<dyn Disk>,
    memory: GuestView,
    limits: Limits,
    write_through: bool,
}

impl Requests {
    fn new(disk: Arc<dyn Disk>, memory: GuestView, write_through: bool) -> Self {
        let limits = Limits { sectors: disk.sectors(), read_only: disk.read_only() };
        Self { disk, memory, limits, write_through }
    }

    /// Carries a request out. Returns the bytes of data that it wrote to guest memory. The disk may take long: meanwhile only
    /// the memory that it reads or writes is held.
    fn serve(&self, chain: &Chain, memory: Snapshot, writable: u64) -> Result<u64, Failure> {
        let short = Failure::Header(chain.readable.bytes());
        let header: VirtioBlkReqHeader = chain.readable.read_obj(&memory).ok_or(short)?;
        let readable = chain.readable.bytes() - HEADER_SIZE;
        match Request::parse(&header, readable, writable, self.limits)? {
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
        if let Some(defect) = chain.defect() {
            limited!(debug, head, %defect, "dropped a malformed descriptor chain");
            return Outcome::Used(0);
        }
        // The status is the last writable byte; without one the driver cannot get an answer.
        let Some(writable) = chain.writable.bytes().checked_sub(1) else {
            limited!(debug, head, "dropped a request without a status byte");
            return Outcome::Used(0);
        };
        let (status, bytes) = match self.serve(chain, memory, writable) {
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

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
