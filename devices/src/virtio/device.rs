//! The interface between every virtio device and the transport.

use std::io;
use std::sync::Arc;

use bellows_memory::GuestView;
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use super::state::DeviceState;
use crate::event_loop::EventLoopHandle;
use crate::interrupt::Interrupt;
use crate::state::{RestoreError, expect};

/// A virtio device, VIRTIO 1.2 section 2, without its transport.
///
/// The transport owns status, feature negotiation, queue set-up and interrupts; the device owns its configuration space
/// and the work on its queues. All calls come under the transport's lock, one at a time.
///
/// A device is idle, active or suspended: [`VirtioDevice::activate`] makes it active, [`VirtioDevice::suspend`] stops it and
/// keeps the data it needs to go on, [`VirtioDevice::reset`] makes it idle.
pub trait VirtioDevice: Send {
    /// Device type number (`VIRTIO_ID_*`).
    fn device_type(&self) -> u16;

    /// Largest size of each queue; its length is the number of queues. Powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Feature bits offered. The transport adds `VIRTIO_F_VERSION_1`, `RING_INDIRECT_DESC` and `RING_EVENT_IDX`.
    fn features(&self) -> u64;

    /// A number that changes whenever the host changes what [`VirtioDevice::read_config`] reads, at the same moment. A driver
    /// thus sees whether fields that it read one after the other belong together.
    fn config_generation(&self) -> u8 {
        0
    }

    /// Reads device configuration at `offset`; bytes beyond it read as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; on most devices it is read-only.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts the device, or resumes it after [`VirtioDevice::suspend`]: it serves its queues from where they are, on
    /// [`Activation::event_loop`], and looks at each of them once without waiting for a kick. Returns at once.
    ///
    /// # Errors
    /// The device cannot start; the transport sets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops an active device: when this returns no request is in progress and the device no longer touches guest memory. A
    /// request that was being served is completed or still available. Returns how far each queue was served, by number: `None`
    /// for one that was not enabled, and for all of a device that is not active.
    ///
    /// Requests of the host to the device are kept meanwhile, and the interrupts of the activation stay usable.
    fn suspend(&mut self) -> Vec<Option<QueueState>>;

    /// Suspends the device and discards all that the driver has set.
    fn reset(&mut self) {
        let _ = self.suspend();
    }

    /// The state beside its queues; the device is not active.
    fn save(&self) -> DeviceState {
        DeviceState::Stateless
    }

    /// Makes a new device go on from `state`, saved from a device with the same configuration. The next call is
    /// [`VirtioDevice::activate`], if the driver had started the device.
    ///
    /// # Errors
    /// The state is that of another device; nothing changed.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        expect("device state", state, &self.save())
    }
}

/// The resources of a device from the moment that the driver is ready.
pub struct Activation {
    /// Guest memory as devices may see it.
    pub memory: GuestView,
    /// Every queue of the device, in order; `None` where the driver did not enable it.
    pub queues: Vec<Option<ActiveQueue>>,
    /// Interrupts to the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Feature bits the driver accepted, all of them offered.
    pub features: u64,
    /// The loop that serves the device's queues.
    pub event_loop: EventLoopHandle,
}

/// A queue that the driver set up and enabled, checked against guest memory.
pub struct ActiveQueue {
    /// The queue; addresses and size are fixed until reset.
    pub queue: Queue,
    /// Signalled when the driver has made buffers available.
    pub kick: Arc<EventFd>,
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device needs.
    #[error("the driver did not enable queue {0}")]
    MissingQueue(u16),
    /// The driver did not accept a feature that the device needs.
    #[error("the driver did not accept {0}")]
    MissingFeature(&'static str),
    /// The host's end of the device refused what the driver accepted.
    #[error("cannot set {what} for the features that the driver accepted")]
    Host {
        /// What was to be set.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The host's kernel does not serve the queues.
    #[error("the host's kernel does not serve the queues")]
    Kernel(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The event loop did not take the handler.
    #[error("the event loop did not take the device's queues")]
    EventLoop(#[source] event_manager::Error),
}

/// Fills `data` from `config` at `offset`, as [`VirtioDevice::read_config`] must: bytes beyond it read as zeros.
pub(super) fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let config = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let known = config.len().min(data.len());
    data[..known].copy_from_slice(&config[..known]);
    data[known..].fill(0);
}
