//! The common configuration structure, VIRTIO 1.2 section 4.1.4.3, and the rules of device initialisation, section 3.1.

use bellows_memory::{GuestMemory, wire};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued as _, GuestAddress, GuestMemoryBackend as _, Le16, Le32, Le64};

use crate::virtio::device::read_bytes;

mod state;

pub use self::state::{CommonConfigState, QueueConfigState};

wire! {
    /// `struct virtio_pci_common_cfg`, up to but without `queue_notify_data`, whose feature is not offered.
    struct VirtioPciCommonCfg {
        device_feature_select: Le32,
        device_feature: Le32,
        driver_feature_select: Le32,
        driver_feature: Le32,
        config_msix_vector: Le16,
        num_queues: Le16,
        device_status: u8,
        config_generation: u8,
        queue_select: Le16,
        queue_size: Le16,
        queue_msix_vector: Le16,
        queue_enable: Le16,
        queue_notify_off: Le16,
        queue_desc: Le64,
        queue_driver: Le64,
        queue_device: Le64,
    }
}

/// Bytes of the structure.
pub const BYTES: u64 = size_of::<VirtioPciCommonCfg>() as u64;

/// The vector number that means "no vector" (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

/// Offsets of the structure's fields.
pub mod field {
    #![expect(missing_docs, reason = "the names are the specification's")]
    use std::mem::offset_of;

    use super::VirtioPciCommonCfg;

    pub const DEVICE_FEATURE_SELECT: u64 = offset_of!(VirtioPciCommonCfg, device_feature_select) as u64;
    pub const DEVICE_FEATURE: u64 = offset_of!(VirtioPciCommonCfg, device_feature) as u64;
    pub const DRIVER_FEATURE_SELECT: u64 = offset_of!(VirtioPciCommonCfg, driver_feature_select) as u64;
    pub const DRIVER_FEATURE: u64 = offset_of!(VirtioPciCommonCfg, driver_feature) as u64;
    pub const CONFIG_MSIX_VECTOR: u64 = offset_of!(VirtioPciCommonCfg, config_msix_vector) as u64;
    pub const NUM_QUEUES: u64 = offset_of!(VirtioPciCommonCfg, num_queues) as u64;
    pub const DEVICE_STATUS: u64 = offset_of!(VirtioPciCommonCfg, device_status) as u64;
    pub const CONFIG_GENERATION: u64 = offset_of!(VirtioPciCommonCfg, config_generation) as u64;
    pub const QUEUE_SELECT: u64 = offset_of!(VirtioPciCommonCfg, queue_select) as u64;
    pub const QUEUE_SIZE: u64 = offset_of!(VirtioPciCommonCfg, queue_size) as u64;
    pub const QUEUE_MSIX_VECTOR: u64 = offset_of!(VirtioPciCommonCfg, queue_msix_vector) as u64;
    pub const QUEUE_ENABLE: u64 = offset_of!(VirtioPciCommonCfg, queue_enable) as u64;
    pub const QUEUE_NOTIFY_OFF: u64 = offset_of!(VirtioPciCommonCfg, queue_notify_off) as u64;
    pub const QUEUE_DESC: u64 = offset_of!(VirtioPciCommonCfg, queue_desc) as u64;
    pub const QUEUE_DRIVER: u64 = offset_of!(VirtioPciCommonCfg, queue_driver) as u64;
    pub const QUEUE_DEVICE: u64 = offset_of!(VirtioPciCommonCfg, queue_device) as u64;
}

/// Bits of `device_status`.
pub mod status {
    #![expect(missing_docs, reason = "the names are the specification's")]
    use super::*;
    pub const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    pub const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
    pub const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    pub const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
}

/// The effect of a driver's write beyond the registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// No effect.
    None,
    /// Reset the device, then call [`CommonConfig::reset`].
    Reset,
    /// The driver is ready: activate the device.
    Activate,
    /// This vector signals configuration changes.
    ConfigVector(u16),
    /// This vector signals used buffers of a queue.
    QueueVector {
        /// The queue.
        queue: u16,
        /// The vector, or [`NO_VECTOR`].
        vector: u16,
    },
}

/// Fields that change without the driver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Live {
    /// Counts changes of the device configuration.
    pub generation: u8,
    /// The device failed: `DEVICE_NEEDS_RESET`.
    pub needs_reset: bool,
}

/// A queue that the driver set up wrongly.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// An invalid size or alignment.
    #[error("queue {queue} is set up wrongly")]
    Setup {
        /// The queue.
        queue: u16,
        /// The cause.
        #[source]
        source: virtio_queue::Error,
    },
    /// Rings outside guest memory.
    #[error(
        "the rings of queue {queue} are not in memory: descriptors {descriptors:#x}, available {available:#x}, used {used:#x}"
    )]
    NotInMemory {
        /// The queue.
        queue: u16,
        /// Address of the descriptor table.
        descriptors: u64,
        /// Address of the available ring.
        available: u64,
        /// Address of the used ring.
        used: u64,
    },
}

#[derive(Clone, Debug)]
struct QueueConfig {
    max_size: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueConfig {
    const fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, vector: NO_VECTOR, enabled: false, descriptors: 0, available: 0, used: 0 }
    }
}

/// The structure's registers, and the rules for a driver's writes.
#[derive(Clone, Debug)]
pub struct CommonConfig {
    offered: u64,
    accepted: u64,
    vectors: u16,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    queue_select: u16,
    queues: Box<[QueueConfig]>,
}

impl CommonConfig {
    /// A device that offers `offered`, has queues of these largest sizes and `vectors` MSI-X vectors.
    #[must_use]
    pub fn new(offered: u64, queue_max_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered,
            accepted: 0,
            vectors,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: queue_max_sizes.iter().map(|&max_size| QueueConfig::new(max_size)).collect(),
        }
    }

    /// Resets everything that the driver set up.
    pub fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes, self.vectors);
    }

    /// Whether the driver has set `DRIVER_OK`.
    #[must_use]
    pub const fn driver_ok(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// The features both sides agreed on.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.accepted
    }

    /// The vector for changes of the configuration, and that of each queue.
    pub fn vectors(&self) -> (u16, impl Iterator<Item = u16>) {
        (self.config_vector, self.queues.iter().map(|queue| queue.vector))
    }

    /// Size of each queue, and whether the driver enabled it.
    pub fn queue_sizes(&self) -> impl Iterator<Item = (u16, bool)> {
        self.queues.iter().map(|queue| (queue.size, queue.enabled))
    }

    /// The queues as the driver set them up; `None` where it did not enable one.
    ///
    /// # Errors
    /// One of them is set up wrongly.
    pub fn build_queues(&self, memory: &GuestMemory) -> Result<Vec<Option<Queue>>, QueueError> {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        (0..)
            .zip(&self.queues)
            .map(|(index, config)| config.enabled.then(|| config.build(index, event_idx, memory)).transpose())
            .collect()
    }

    /// Reads at `offset`, at any width. Bytes behind the structure read as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8], live: Live) {
        read_bytes(self.image(live).as_slice(), offset, data);
    }

    fn image(&self, live: Live) -> VirtioPciCommonCfg {
        let common = VirtioPciCommonCfg {
            device_feature_select: self.device_feature_select.into(),
            device_feature: word(self.offered, self.device_feature_select).into(),
            driver_feature_select: self.driver_feature_select.into(),
            driver_feature: word(self.accepted, self.driver_feature_select).into(),
            config_msix_vector: self.config_vector.into(),
            // No more than a `u16` can select.
            num_queues: (self.queues.len() as u16).into(),
            device_status: self.status(live),
            config_generation: live.generation,
            queue_select: self.queue_select.into(),
            queue_msix_vector: NO_VECTOR.into(),
            ..Default::default()
        };
        // A queue that does not exist has size 0.
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else { return common };
        VirtioPciCommonCfg {
            queue_size: queue.size.into(),
            queue_msix_vector: queue.vector.into(),
            queue_enable: u16::from(queue.enabled).into(),
            queue_notify_off: self.queue_select.into(),
            queue_desc: queue.descriptors.into(),
            queue_driver: queue.available.into(),
            queue_device: queue.used.into(),
            ..common
        }
    }

    const fn status(&self, live: Live) -> u8 {
        if live.needs_reset { self.status | status::NEEDS_RESET } else { self.status }
    }

    /// A driver's write. Fields are written whole, 64-bit ones also by halves (section 4.1.3.1); any other access is dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match *data {
            [value] if offset == field::DEVICE_STATUS => return self.write_status(value),
            [a, b] => return self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if is_address(offset) && offset.is_multiple_of(8) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // Bits are only ever added; NEEDS_RESET is the device's.
        let mut added = value & !self.status & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 && !self.accepts_features() {
            added &= !status::FEATURES_OK;
        }
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    const fn accepts_features(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn write_u16(&mut self, offset: u64, value: u16) -> Effect {
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            field::CONFIG_MSIX_VECTOR => {
                self.config_vector = vector;
                return Effect::ConfigVector(vector);
            }
            field::QUEUE_SELECT => self.queue_select = value,
            field::QUEUE_MSIX_VECTOR => {
                let queue = self.queue_select;
                if let Some(config) = self.queues.get_mut(usize::from(queue)) {
                    config.vector = vector;
                    return Effect::QueueVector { queue, vector };
                }
            }
            field::QUEUE_SIZE => {
                if let Some(queue) = self.configurable()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            field::QUEUE_ENABLE => {
                if let Some(queue) = self.configurable()
                    && value == 1
                {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
        Effect::None
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            field::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            field::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            field::DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => match self.driver_feature_select {
                0 => replace_half(&mut self.accepted, 0, value),
                1 => replace_half(&mut self.accepted, 4, value),
                _ => {}
            },
            _ if is_address(offset) => {
                let Some(queue) = self.configurable() else { return };
                let half = offset % 8;
                match offset - half {
                    field::QUEUE_DESC => replace_half(&mut queue.descriptors, half, value),
                    field::QUEUE_DRIVER => replace_half(&mut queue.available, half, value),
                    field::QUEUE_DEVICE => replace_half(&mut queue.used, half, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The selected queue while it may still be set up.
    fn configurable(&mut self) -> Option<&mut QueueConfig> {
        if self.driver_ok() {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
    }
}

impl QueueConfig {
    fn build(&self, index: u16, event_idx: bool, memory: &GuestMemory) -> Result<Queue, QueueError> {
        let build = || {
            let mut queue = Queue::new(self.max_size)?;
            queue.try_set_size(self.size)?;
            queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(self.available))?;
            queue.try_set_used_ring_address(GuestAddress(self.used))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok(queue)
        };
        let queue = build().map_err(|source| QueueError::Setup { queue: index, source })?;
        // For the queue, an available ring at address 0 means that it was never set up.
        if self.available == 0 || !self.is_in_memory(memory) {
            return Err(QueueError::NotInMemory {
                queue: index,
                descriptors: self.descriptors,
                available: self.available,
                used: self.used,
            });
        }
        Ok(queue)
    }

    /// Whether table and rings (VIRTIO 1.2, section 2.7) are in memory. The queue checks too, but it logs every failure,
    /// so a driver could fill the log.
    fn is_in_memory(&self, memory: &GuestMemory) -> bool {
        let size = usize::from(self.size);
        [(self.descriptors, 16 * size), (self.available, 6 + 2 * size), (self.used, 6 + 8 * size)]
            .into_iter()
            .all(|(address, bytes)| memory.check_range(GuestAddress(address), bytes))
    }
}

const fn is_address(offset: u64) -> bool {
    offset >= field::QUEUE_DESC && offset < BYTES && offset.is_multiple_of(4)
}

/// 32 of the 64 feature bits; further ones are zero.
const fn word(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

/// Writes the half of `value` that begins at byte `half` (0 or 4).
const fn replace_half(value: &mut u64, half: u64, with: u32) {
    let shift = if half == 0 { 0 } else { 32 };
    *value = *value & !(0xffff_ffff << shift) | (with as u64) << shift;
}

#[cfg(test)]
#[path = "common_config_test.rs"]
mod tests;
