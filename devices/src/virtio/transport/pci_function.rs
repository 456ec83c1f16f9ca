//! A virtio device as a PCI function.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bellows_memory::{GuestView, limited};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::common_config::{CommonConfig, Effect, Live, QueueError};
use super::interrupts::Interrupts;
use super::layout::{self, BAR, BAR_BYTES, Capabilities, MAX_QUEUES, NOTIFY, NOTIFY_MULTIPLIER, Region};
use super::notifier::Notifier;
use super::ring_position::RingPosition;
use crate::bus::Doorbells;
use crate::event_loop::EventLoopHandle;
use crate::interrupt::{Interrupt, MsiController};
use crate::pci::config_space::{ConfigSpace, LayoutError, touches};
use crate::pci::msix::{Delivery, MsixTable};
use crate::pci::{BarSize, CONVENTIONAL_BYTES, PciFunction};
use crate::virtio::{ActivateError, Activation, ActiveQueue, VirtioDevice};

/// Why a device could not become a PCI function.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Too few or too many queues, or sizes other than powers of two up to 32,768.
    #[error("a device cannot have queues of the sizes {0:?}: expected powers of two up to 32768")]
    Queues(Vec<u16>),
    /// A type number that has no PCI device ID.
    #[error("virtio device type {0} has no PCI device ID: expected 1 to 63")]
    DeviceType(u16),
    /// Configuration space is too small.
    #[error("cannot lay out configuration space")]
    Layout(#[from] LayoutError),
    /// No MSI vectors are left.
    #[error("cannot get {count} interrupt vectors")]
    Vectors {
        /// The number needed.
        count: u16,
        /// The controller's error.
        #[source]
        source: io::Error,
    },
    /// No descriptors are left for eventfds.
    #[error("cannot make the eventfds of {count} queues")]
    Events {
        /// How many were needed.
        count: u16,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A virtio device on PCI.
///
/// Locks: `space`, and `msix` or `state` within it. Device threads take none of them and use only the interrupts, so a
/// device may wait for its threads while the transport holds `state`.
pub struct VirtioPci {
    pub(super) capabilities: Capabilities,
    pub(super) space: Mutex<ConfigSpace>,
    pub(super) msix: Mutex<MsixTable>,
    pub(super) state: Mutex<State>,
    pub(super) interrupts: Arc<Interrupts>,
    memory: GuestView,
    doorbells: Arc<dyn Doorbells>,
    event_loop: EventLoopHandle,
}

pub(super) struct State {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) common: CommonConfig,
    /// One for each queue.
    notifiers: Vec<Notifier>,
    pub(super) run: Run,
    /// Whether the host has suspended the function.
    pub(super) suspended: bool,
    /// Whether the state was restored from another function.
    pub(super) restored: bool,
    /// The range in which the BAR is answered.
    bar: Option<u64>,
    /// Taken off the bus: accesses have no effect.
    removed: bool,
}

/// The state of the device between driver and host.
pub(super) enum Run {
    /// The driver has not started it, or it could not start.
    Idle,
    /// It serves its queues.
    Active,
    /// The driver has started it; when the host resumes it, it serves its queues from these positions on.
    Suspended(Vec<Option<RingPosition>>),
}

impl VirtioPci {
    /// Makes `device` a PCI function that is not on a bus yet. Its queues run on `event_loop`, see `memory`, wake
    /// through `doorbells` and interrupt through vectors of `msi`: one for each queue, and one for the configuration.
    ///
    /// # Errors
    /// The device is impossible, or no vectors or descriptors are left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestView,
        msi: &dyn MsiController,
        doorbells: Arc<dyn Doorbells>,
        event_loop: EventLoopHandle,
    ) -> Result<Arc<Self>, TransportError> {
        const MAX_TYPE: u16 = 0x3f;
        let sizes = device.queue_max_sizes();
        let valid = |size: &u16| size.is_power_of_two() && *size <= 1 << 15;
        if sizes.is_empty() || sizes.len() > MAX_QUEUES || !sizes.iter().all(valid) {
            return Err(TransportError::Queues(sizes.to_vec()));
        }
        let device_type = device.device_type();
        if device_type == 0 || device_type > MAX_TYPE {
            return Err(TransportError::DeviceType(device_type));
        }
        let queues = sizes.len() as u16;
        let vectors = queues + 1;
        let offered = device.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX;
        let common = CommonConfig::new(offered, sizes, vectors);
        let (space, capabilities) = layout::config_space(device_type, queues, vectors)?;
        let interrupts = Interrupts::new(msi, queues, vectors)
            .map_err(|source| TransportError::Vectors { count: vectors, source })?;
        let notifiers = (0..queues)
            .map(|_| Notifier::new())
            .collect::<Result<_, _>>()
            .map_err(|source| TransportError::Events { count: queues, source })?;
        Ok(Arc::new(Self {
            capabilities,
            space: Mutex::new(space),
            msix: Mutex::new(MsixTable::new(vectors)),
            state: Mutex::new(State {
                device,
                common,
                notifiers,
                run: Run::Idle,
                suspended: false,
                restored: false,
                bar: None,
                removed: false,
            }),
            interrupts: Arc::new(interrupts),
            memory,
            doorbells,
            event_loop,
        }))
    }

    fn read_region(&self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            Region::Common => {
                let state = lock(&self.state);
                let generation = state.device.config_generation();
                state.common.read(offset, data, Live { generation, needs_reset: self.interrupts.is_broken() });
            }
            Region::Device => {
                data.fill(0);
                lock(&self.state).device.read_config(offset, data);
            }
            Region::Isr => {
                data.fill(0);
                if let (0, Some(isr)) = (offset, data.first_mut()) {
                    *isr = self.interrupts.take_isr();
                }
            }
            Region::Notify => data.fill(0),
            Region::MsixTable => lock(&self.msix).read(offset, data),
            Region::MsixPending => self.interrupts.vectors.read_pending(offset, data),
        }
    }

    fn write_region(&self, region: Region, offset: u64, data: &[u8]) {
        match region {
            Region::Common => self.write_common(offset, data),
            Region::Device => {
                let mut state = lock(&self.state);
                if !state.removed {
                    state.device.write_config(offset, data);
                }
            }
            Region::Notify => {
                if offset.is_multiple_of(NOTIFY_MULTIPLIER) {
                    let state = lock(&self.state);
                    let queue = usize::try_from(offset / NOTIFY_MULTIPLIER).unwrap_or(usize::MAX);
                    state.notifiers.get(queue).filter(|_| state.is_started()).inspect(|notifier| notifier.notify());
                }
            }
            Region::MsixTable => {
                let mut table = lock(&self.msix);
                if let Some(vector) = table.write(offset, data) {
                    self.interrupts.vectors.set_delivery(vector, table.delivery(vector));
                }
            }
            Region::Isr | Region::MsixPending => {}
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        if state.removed {
            return;
        }
        match state.common.write(offset, data) {
            Effect::None => {}
            Effect::Reset => self.reset(&mut state),
            Effect::ConfigVector(vector) => self.interrupts.set_config_vector(vector),
            Effect::QueueVector { queue, vector } => self.interrupts.set_queue_vector(queue, vector),
            Effect::Activate => {
                let start =
                    state.common.queue_sizes().map(|(_, enabled)| enabled.then(RingPosition::default)).collect();
                state.run = Run::Suspended(start);
                self.go_on(&mut state);
            }
        }
    }

    /// Starts or resumes the device from the positions of its queues, unless the host has suspended it or the driver
    /// has not started it.
    fn go_on(&self, state: &mut State) {
        let Run::Suspended(positions) = &state.run else { return };
        if state.suspended {
            return;
        }
        let positions = positions.clone();
        if let Err(error) = self.activate(state, &positions) {
            let device_type = state.device.device_type();
            limited!(warn, device_type, error = &error as &dyn std::error::Error, "a device cannot start");
            self.stop(state);
            self.interrupts.needs_reset();
        }
    }

    fn activate(&self, state: &mut State, positions: &[Option<RingPosition>]) -> Result<(), StartError> {
        let mut queues = state.common.build_queues(&self.memory.memory())?;
        for (number, (queue, position)) in (0..).zip(queues.iter_mut().zip(positions)) {
            if let Some(queue) = queue {
                let position = position.ok_or(StartError::Lost(number))?;
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
        }
        let queues = queues
            .into_iter()
            .zip(&state.notifiers)
            .map(|(queue, notifier)| queue.map(|queue| ActiveQueue { queue, kick: notifier.kick() }))
            .collect();
        state.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupts.clone(),
            features: state.common.features(),
            event_loop: self.event_loop.clone(),
        })?;
        state.run = Run::Active;
        self.wire(state);
        Ok(())
    }

    /// Wires the doorbells of a started device to the current address of the BAR.
    fn wire(&self, state: &mut State) {
        let base = state.bar.filter(|_| state.is_started());
        for (queue, notifier) in (0..).zip(&mut state.notifiers) {
            // A BAR is below 4 GiB, so this does not overflow.
            let address = base.map(|base| base + NOTIFY + queue * NOTIFY_MULTIPLIER);
            notifier.wire(&*self.doorbells, address);
        }
    }

    /// Stops the device: when this returns, no part of it runs.
    fn stop(&self, state: &mut State) {
        for notifier in &mut state.notifiers {
            notifier.wire(&*self.doorbells, None);
        }
        state.device.reset();
        state.run = Run::Idle;
    }

    fn reset(&self, state: &mut State) {
        self.stop(state);
        state.restored = false;
        state.common.reset();
        self.interrupts.reset();
    }

    /// Lets the driver's control word of the MSI-X capability take effect.
    pub(super) fn update_msix(&self, control: u16) {
        let mut table = lock(&self.msix);
        table.set_control(control);
        for vector in 0..table.vectors() {
            self.interrupts.vectors.set_delivery(vector, table.delivery(vector));
        }
    }
}

impl State {
    pub(super) const fn is_removed(&self) -> bool {
        self.removed
    }

    const fn is_started(&self) -> bool {
        !matches!(self.run, Run::Idle)
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the position of queue {0} was lost with its event loop")]
    Lost(u16),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Device(#[from] ActivateError),
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let window_data = &self.capabilities.pci_cfg_data;
        if touches(offset, data.len(), window_data) {
            let window = layout::window(&lock(&self.space), self.capabilities.pci_cfg);
            if let Some(window) = window {
                let mut value = [0; 4];
                self.read_bar(BAR, window.offset, &mut value[..window.len]);
                lock(&self.space).set(window_data.start, &value);
            }
        }
        lock(&self.space).read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut space = lock(&self.space);
        space.write(offset, data);
        let message_control = &self.capabilities.message_control;
        if touches(offset, data.len(), message_control) {
            // Held until it has taken effect, so that what two CPUs write doesn't take effect in another order.
            self.update_msix(space.u16_at(message_control.start));
        }
        let window_data = &self.capabilities.pci_cfg_data;
        if touches(offset, data.len(), window_data)
            && let Some(window) = layout::window(&space, self.capabilities.pci_cfg)
        {
            let value = space.u32_at(window_data.start).to_le_bytes();
            drop(space);
            self.write_bar(BAR, window.offset, &value[..window.len]);
        }
    }

    /// Plain, until the driver points the window of the capability for access by configuration space at the BAR.
    fn registers(&self) -> Option<[u8; CONVENTIONAL_BYTES]> {
        let space = lock(&self.space);
        layout::window(&space, self.capabilities.pci_cfg).is_none().then(|| space.registers())
    }

    fn bars(&self) -> Vec<BarSize> {
        vec![BarSize { index: BAR, bytes: u64::from(BAR_BYTES) }]
    }

    fn place_bar(&self, index: u8, address: u64) {
        if let Ok(address) = u32::try_from(address) {
            lock(&self.space).place_bar(index, address);
        }
    }

    fn bar_address(&self, index: u8) -> Option<u64> {
        lock(&self.space).bar_address(index).map(u64::from)
    }

    fn bar_mapped(&self, _index: u8, address: Option<u64>) {
        let mut state = lock(&self.state);
        state.bar = address;
        self.wire(&mut state);
    }

    fn read_bar(&self, _index: u8, offset: u64, data: &mut [u8]) {
        match Region::at(offset) {
            Some((region, offset)) => self.read_region(region, offset, data),
            None => data.fill(0),
        }
    }

    fn write_bar(&self, _index: u8, offset: u64, data: &[u8]) {
        if let Some((region, offset)) = Region::at(offset) {
            self.write_region(region, offset, data);
        }
    }

    fn suspend(&self) {
        let mut state = lock(&self.state);
        state.suspended = true;
        if matches!(state.run, Run::Active) {
            let queues = state.device.suspend();
            state.run = Run::Suspended(queues.into_iter().map(|queue| queue.map(RingPosition::from)).collect());
        }
    }

    fn resume(&self) {
        let mut state = lock(&self.state);
        state.suspended = false;
        self.go_on(&mut state);
        // An interrupt of the saved function may not have reached the guest's CPUs. A spurious one is harmless.
        if std::mem::take(&mut state.restored) && state.is_started() {
            self.interrupts.raise_all();
        }
    }

    fn removed(&self) {
        let mut state = lock(&self.state);
        state.removed = true;
        self.reset(&mut state);
        drop(state);
        let mut table = lock(&self.msix);
        *table = MsixTable::new(0);
        for vector in 0..=MAX_QUEUES as u16 {
            self.interrupts.vectors.set_delivery(vector, Delivery::Off);
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        // A function that never was on a bus, or is dropped together with its bus.
        self.removed();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Registers are plain values, valid in any combination; a device that panicked is reset like any other.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "pci_function_test.rs"]
mod tests;
