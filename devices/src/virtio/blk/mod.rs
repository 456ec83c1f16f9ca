//! virtio-blk, VIRTIO 1.2 section 5.2: a [`Disk`] for the guest.

use std::sync::Arc;
use std::{io, mem};

use bellows_disk::{Disk, SECTOR_SIZE};
use bellows_memory::wire;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vm_memory::{ByteValued as _, Le16, Le32, Le64};

use self::control::Shared;
use self::handler::{Handler, Stop};
use self::request::Erasure;
use super::device::read_bytes;
use super::limits::{Limiter, RateLimit};
use super::state::{BlockState, DeviceState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::OnLoop;
use crate::state::{RestoreError, Version, expect};

mod control;
mod counters;
pub mod erase;
mod handler;
pub mod request;
mod requests;

pub use self::control::{BlockHandle, ReplaceError};
pub use self::counters::BlockStatistics;

const QUEUE_SIZE: u16 = 256;
/// A chain is no longer than its queue (VIRTIO 1.2, section 2.7.5.3.1); two of its descriptors hold header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// A block device. Its queues block the event loop while a request runs, so it needs a loop of its own.
pub struct Block {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    /// Whether discards are offered: those of the first disk.
    discards: bool,
    active: Option<Active>,
    /// The limiter of a device that is not active.
    limiter: Limiter,
}

struct Active {
    /// Before the handler, which is waited for.
    stop: Stop,
    handler: OnLoop<Handler>,
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
        Self::made(Shared::new(disk.into(), RateLimit::default(), None), queues)
    }

    /// A device with one queue, whose disk and rate limit the host may change: its [`Block::handle`] does something.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn controlled(disk: impl Into<Arc<dyn Disk>>, limit: RateLimit) -> io::Result<Self> {
        Ok(Self::made(Shared::new(disk.into(), limit, Some(Shared::event()?)), 1))
    }

    fn made(shared: Shared, queues: u16) -> Self {
        let limiter = Limiter::new(shared.limit());
        let queue_sizes = vec![QUEUE_SIZE; usize::from(queues.max(1))];
        let disk = shared.disk();
        let discards = !disk.read_only() && disk.discards();
        Self { shared: Arc::new(shared), queue_sizes, discards, active: None, limiter }
    }

    /// The host's side of the device.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle { shared: self.shared.clone() }
    }

    /// The configuration. Logical blocks have 512 bytes; the preferred size is 4 KiB.
    fn config(&self) -> VirtioBlkConfig {
        let disk = self.shared.disk();
        let limits = |offered: bool, erasure: Erasure| match offered {
            true => (erasure.max_sectors().into(), (erasure.max_segments() as u32).into()),
            false => Default::default(),
        };
        let (max_discard_sectors, max_discard_seg) = limits(self.discards, Erasure::Discard);
        let (max_write_zeroes_sectors, max_write_zeroes_seg) = limits(!disk.read_only(), Erasure::WriteZeroes);
        VirtioBlkConfig {
            capacity: disk.sectors().into(),
            seg_max: SEG_MAX.into(),
            blk_size: (SECTOR_SIZE as u32).into(),
            topology: VirtioBlkTopology { physical_block_exp: 3, min_io_size: 8.into(), ..Default::default() },
            num_queues: u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX).into(),
            max_discard_sectors,
            max_discard_seg,
            // The blocks of the host's file systems.
            discard_sector_alignment: if self.discards { 8.into() } else { Default::default() },
            max_write_zeroes_sectors,
            max_write_zeroes_seg,
            write_zeroes_may_unmap: self.discards.into(),
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
        let writable: &[u32] = match self.shared.disk().read_only() {
            true => &[VIRTIO_BLK_F_RO],
            false => &[VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES],
        };
        let queues = (self.queue_sizes.len() > 1).then_some(VIRTIO_BLK_F_MQ);
        let discards = self.discards.then_some(VIRTIO_BLK_F_DISCARD);
        [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY]
            .into_iter()
            .chain(writable.iter().copied())
            .chain(queues)
            .chain(discards)
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn config_generation(&self) -> u8 {
        self.shared.generation()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(self.config().as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX);
        let mut handler = Handler::new(&mut activation, queues, &self.shared)?;
        handler.set_limiter(mem::take(&mut self.limiter));
        let stop = handler.stop();
        let handler = activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?;
        self.active = Some(Active { stop, handler });
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let handler = self.active.take().and_then(|Active { stop, handler }| {
            drop(stop);
            handler.take_back()
        });
        self.shared.taken(None);
        let Some(handler) = handler else { return vec![None; self.queue_sizes.len()] };
        let (queues, limiter) = handler.into_parts();
        self.limiter = limiter;
        queues
    }

    fn reset(&mut self) {
        let _ = self.suspend();
        // A driver that begins reads the configuration.
        self.shared.forget_news();
    }

    fn save(&self) -> DeviceState {
        let disk = self.shared.disk();
        DeviceState::Block(BlockState {
            version: Version,
            sectors: disk.sectors(),
            read_only: disk.read_only(),
            discards: self.discards,
            id: String::from_utf8_lossy(disk.id().as_bytes()).trim_end_matches('\0').to_owned(),
            limiter: self.limiter.save(self.shared.limit()),
            news: self.shared.has_news(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut own = self.save();
        let (DeviceState::Block(own_block), DeviceState::Block(block)) = (&mut own, state) else {
            return expect("device state", state, &own);
        };
        (own_block.limiter, own_block.news) = (block.limiter, block.news);
        expect("device state", state, &own)?;
        self.limiter = Limiter::restore(&block.limiter)?;
        self.shared.set_limit(block.limiter.limit());
        if block.news && !self.shared.has_news() {
            self.shared.set_news();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod control_tests;
#[cfg(test)]
#[path = "erasing_test.rs"]
mod erasing_tests;
#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
