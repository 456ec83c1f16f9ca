//! virtio-mem, VIRTIO 1.2 section 5.15: one partition for the guest to plug and unplug.
//!
//! The device is the guest's end of a [`PartitionMemory`], [`MemHandle`] the host's.

use std::sync::Arc;

use bellows_memory::partition::{Answer, Handled, PartitionMemory, Request};
use bellows_memory::{GuestView, limited};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::QueueState;
use vm_memory::{ByteValued as _, GuestAddressSpace};

use self::request::{F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE, VirtioMemReq, VirtioMemResp, config, encode, parse};
use super::chain::Chain;
use super::device::read_bytes;
use super::driver::Driver;
use super::queue::{Outcome, QueueHandler, Snapshot};
use super::state::{DeviceState, MemState};
use super::worker::QueueWorker;
use super::{ActivateError, Activation, VirtioDevice};
use crate::state::Version;

mod control;
pub mod request;

pub use self::control::{MemHandle, PlugError, Plugged, UnplugError};

/// The only queue: requests of the guest.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// A memory device for one partition.
pub struct Mem {
    memory: Arc<PartitionMemory>,
    driver: Arc<Driver>,
    worker: Option<QueueWorker<Requests>>,
}

impl Mem {
    /// A device for `memory`, not active yet.
    #[must_use]
    pub fn new(memory: Arc<PartitionMemory>) -> Self {
        Self { memory, driver: Arc::default(), worker: None }
    }

    /// The host's control of this device.
    #[must_use]
    pub fn handle(&self) -> MemHandle {
        MemHandle::new(self.memory.clone(), self.driver.clone())
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_MEM as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_ACPI_PXM | F_UNPLUGGED_INACCESSIBLE
    }

    fn config_generation(&self) -> u8 {
        // Only changes of it count.
        self.memory.generation() as u8
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(config(self.memory.window(), &self.memory.report()).as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        // Without it a driver may read memory that is not plugged (section 5.15.6.2), which does not exist here. A device may
        // refuse such a driver (section 5.15.5.2).
        if activation.features & F_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(ActivateError::MissingFeature("VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE"));
        }
        // A request that must wait comes again with the queue's next kick.
        let waker = activation.queues.first().and_then(Option::as_ref).map(|queue| queue.kick.clone());
        self.memory.set_waker(waker);
        let handler = Requests { memory: self.memory.clone(), view: activation.memory.clone() };
        self.worker = Some(QueueWorker::start(&mut activation, REQUESTS, handler)?);
        self.driver.set(Some(activation.interrupt));
        Ok(())
    }

    /// The host may set further targets: the driver is notified when it runs again.
    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.worker.take().and_then(QueueWorker::stop)]
    }

    /// Plugged memory stays plugged: a driver that binds again first asks to unplug all of it.
    fn reset(&mut self) {
        self.driver.set(None);
        self.worker = None;
        self.memory.set_waker(None);
    }

    fn save(&self) -> DeviceState {
        let window = self.memory.window();
        DeviceState::Mem(MemState {
            version: Version,
            node_id: window.id().get(),
            addr: window.range().start().0,
            region_size: window.range().bytes(),
        })
    }
}

/// Most descriptors of a chain. Drivers use two; they may frame a request as they like, within this bound.
const MAX_DESCRIPTORS: usize = 8;

struct Requests {
    memory: Arc<PartitionMemory>,
    view: GuestView,
}

impl Requests {
    /// The request in `chain`, if there is room for an answer: no request is carried out without one.
    fn read(&self, chain: &Chain, memory: &Snapshot) -> Option<Request> {
        let (head, descriptors, defect) = (chain.head(), chain.len(), chain.defect());
        let request: Option<VirtioMemReq> = chain.readable.read_obj(memory);
        let Some(request) = request.filter(|_| defect.is_none() && descriptors <= MAX_DESCRIPTORS && has_room(chain))
        else {
            limited!(debug, head, descriptors, ?defect, "a chain holds no memory request");
            return None;
        };
        parse(&request, self.memory.window())
            .inspect_err(|error| limited!(debug, head, %error, "an impossible memory request"))
            .ok()
    }
}

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let request = self.read(chain, &memory);
        // An unplug waits until all snapshots are dropped.
        drop(memory);
        let answer = match request.map(|request| self.memory.handle(request)) {
            Some(Handled::Answer(answer)) => answer,
            Some(Handled::Later) => return Outcome::NotYet,
            None => Answer::Error,
        };
        if !has_room(chain) {
            return Outcome::Used(0);
        }
        // The memory for the answer may be gone by now.
        let response = encode(answer);
        let written = chain.writable.write(&self.view.memory(), 0, response.as_slice());
        // No more than the response.
        Outcome::Used(written as u32)
    }
}

/// Whether the driver left room for an answer.
fn has_room(chain: &Chain) -> bool {
    chain.writable.bytes() >= size_of::<VirtioMemResp>() as u64
}

#[cfg(test)]
#[path = "mem_test.rs"]
mod tests;
