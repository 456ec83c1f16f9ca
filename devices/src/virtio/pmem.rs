//! virtio-pmem, VIRTIO 1.2 section 5.19: memory of the host at an address of the guest's, which the driver takes for
//! persistent.
//!
//! The device tells where the memory is, and answers flush requests; the memory itself is a slot of the hypervisor's. It is
//! read-only here, so there is nothing to flush.

use bellows_memory::limited;
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use vm_memory::{Bytes, GuestAddress};

use super::device::read_bytes;
use super::worker::{Chain, QueueHandler, QueueWorker};
use super::{ActivateError, Activation, VirtioDevice};

/// The only queue.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// Bytes of `struct virtio_pmem_config`.
const CONFIG_SIZE: usize = 16;
/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`
const FLUSH: u32 = 0;
/// What is answered to a request that was carried out, and to one that was not (section 5.19.6).
const DONE: i32 = 0;
const FAILED: i32 = -1;

/// A persistent memory device without anything to write to.
pub struct Pmem {
    start: GuestAddress,
    bytes: u64,
    worker: Option<QueueWorker>,
}

impl Pmem {
    /// A device for the memory that the guest has at `start`.
    #[must_use]
    pub fn new(start: GuestAddress, bytes: u64) -> Self {
        Self { start, bytes, worker: None }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_PMEM as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_SIZE];
        config[..8].copy_from_slice(&self.start.0.to_le_bytes());
        config[8..].copy_from_slice(&self.bytes.to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.worker = Some(QueueWorker::start(&mut activation, REQUESTS, Requests)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Requests;

impl QueueHandler for Requests {
    fn handle(&mut self, chain: Chain) -> u32 {
        let kind = chain.clone().readable().next().filter(|request| request.len() >= 4);
        let kind = kind.and_then(|request| chain.memory().read_obj::<u32>(request.addr()).ok()).map(u32::from_le);
        let answer = if kind == Some(FLUSH) { DONE } else { FAILED };
        if answer == FAILED {
            limited!(debug, ?kind, "a request to persistent memory makes no sense");
        }
        let room = chain.clone().writable().next().filter(|response| response.len() >= 4);
        match room.map(|response| chain.memory().write_obj(answer.to_le(), response.addr())) {
            Some(Ok(())) => 4,
            _ => 0,
        }
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
