//! Guest memory and activation without a transport.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use bellows_memory::{GuestMemory, GuestView};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory as _, GuestMemoryLoadGuard, Permissions};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Bell, DriverQueue, FakeInterrupt};
use crate::event_loop::EventLoop;
use crate::virtio::{ActivateError, Activation, VirtioDevice};

/// A guest with memory and an event loop for the devices, but no CPU.
pub struct FakeGuest {
    view: GuestView,
    event_loop: EventLoop,
    next_free: AtomicU64,
}

/// A device's driver in a [`FakeGuest`].
pub struct FakeDriver {
    /// By queue number.
    pub queues: Vec<DriverQueue>,
    pub interrupt: Arc<FakeInterrupt>,
    /// Features accepted.
    pub features: u64,
}

impl FakeGuest {
    /// Bytes of memory of [`FakeGuest::new`], from address 0 on; the host backs only touched pages.
    pub const MEMORY: usize = 1 << 30;

    #[must_use]
    #[expect(clippy::new_without_default, reason = "it has a thread")]
    pub fn new() -> Self {
        Self::with_memory(&[(GuestAddress(0), Self::MEMORY)])
    }

    /// A guest with these ranges of memory; what the driver allocates comes from the first.
    #[must_use]
    pub fn with_memory(ranges: &[(GuestAddress, usize)]) -> Self {
        let guest = Self::in_view(GuestView::new(GuestMemory::from_ranges(ranges).unwrap()));
        guest.next_free.store(ranges[0].0.0 + 0x1000, Ordering::Relaxed);
        guest
    }

    /// A guest with the memory of `view`, which begins at address 0.
    #[must_use]
    pub fn in_view(view: GuestView) -> Self {
        Self {
            view,
            event_loop: EventLoop::spawn("devices", |error| panic!("{error}")).unwrap(),
            next_free: AtomicU64::new(0x1000),
        }
    }

    /// A guest with the same memory, as after a restore, and an event loop of its own.
    #[must_use]
    pub fn twin(&self) -> Self {
        Self {
            view: self.view.clone(),
            event_loop: EventLoop::spawn("devices", |error| panic!("{error}")).unwrap(),
            next_free: AtomicU64::new(self.next_free.load(Ordering::Relaxed)),
        }
    }

    #[must_use]
    pub fn view(&self) -> &GuestView {
        &self.view
    }

    #[must_use]
    pub fn memory(&self) -> GuestMemoryLoadGuard<GuestMemory> {
        self.view.memory()
    }

    #[must_use]
    pub fn event_loop(&self) -> &EventLoop {
        &self.event_loop
    }

    /// Waits until the event loop has served all earlier signals.
    pub fn drain(&self) {
        /// A signal that comes behind them: epoll reports signals in the order in which they have come.
        struct Last(EventFd, Sender<()>);
        impl MutEventSubscriber for Last {
            fn process(&mut self, _: Events, _: &mut EventOps) {
                let _ = self.0.read();
                // Nobody waits any more if it comes again.
                let _ = self.1.send(());
            }
            fn init(&mut self, ops: &mut EventOps) {
                ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
            }
        }
        let (served, wait) = channel();
        let signal = EventFd::new(EFD_NONBLOCK).unwrap();
        signal.write(1).unwrap();
        let last = self.event_loop.handle().add(Last(signal, served)).unwrap();
        wait.recv().unwrap();
        drop(last);
    }

    /// Fresh page-aligned memory; zeros.
    pub fn allocate(&self, bytes: usize) -> GuestAddress {
        let bytes = (bytes as u64).next_multiple_of(4096);
        let address = GuestAddress(self.next_free.fetch_add(bytes, Ordering::Relaxed));
        let memory = self.memory();
        assert!(memory.check_range(address, bytes as usize, Permissions::Write), "guest memory is used up");
        address
    }

    /// Memory that holds `data`.
    pub fn allocate_with(&self, data: &[u8]) -> GuestAddress {
        let address = self.allocate(data.len());
        self.memory().write_slice(data, address).unwrap();
        address
    }

    #[must_use]
    pub fn read(&self, address: GuestAddress, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory().read_slice(&mut data, address).unwrap();
        data
    }

    /// A queue in memory of its own, not yet known to any device.
    pub fn queue(&self, index: u16, size: u16, interrupt: Arc<FakeInterrupt>) -> DriverQueue {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
        DriverQueue::new(self, index, size, interrupt, Bell::Direct(kick))
    }

    /// Everything that the device and the transport offer.
    #[must_use]
    pub fn all_features(device: &dyn VirtioDevice) -> u64 {
        device.features() | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// Activates `device` with every feature, every queue at its largest size.
    pub fn activate(&self, device: &mut dyn VirtioDevice) -> FakeDriver {
        let features = Self::all_features(device);
        self.try_activate(device, features).unwrap()
    }

    /// Activates `device`, which was suspended, with the queues as it left them.
    pub fn resume(&self, device: &mut dyn VirtioDevice, driver: &FakeDriver, states: Vec<Option<QueueState>>) {
        let resumed = |(queue, state): (&DriverQueue, Option<QueueState>)| state.map(|state| queue.resumed_side(state));
        device
            .activate(Activation {
                memory: self.view.clone(),
                queues: driver.queues.iter().zip(states).map(resumed).collect(),
                interrupt: driver.interrupt.clone(),
                features: driver.features,
                event_loop: self.event_loop.handle(),
            })
            .unwrap();
    }

    /// Activates `device` with `features`, every queue at its largest size.
    ///
    /// # Errors
    /// The device's error.
    pub fn try_activate(&self, device: &mut dyn VirtioDevice, features: u64) -> Result<FakeDriver, ActivateError> {
        let interrupt = Arc::new(FakeInterrupt::new(device.queue_max_sizes().len()));
        let sizes = device.queue_max_sizes().to_vec();
        let queues: Vec<_> = (0..).zip(sizes).map(|(index, size)| self.queue(index, size, interrupt.clone())).collect();
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        device.activate(Activation {
            memory: self.view.clone(),
            queues: queues.iter().map(|queue| Some(queue.device_side(event_idx))).collect(),
            interrupt: interrupt.clone(),
            features,
            event_loop: self.event_loop.handle(),
        })?;
        Ok(FakeDriver { queues, interrupt, features })
    }
}
