//! virtio-pmem, VIRTIO 1.2 section 5.19: memory of the host at an address of the guest's, which the driver treats as
//! persistent.
//!
//! The device gives the address of the memory, and answers flush requests; the memory itself is a slot of the hypervisor's.
//! It is read-only here, so a flush does nothing.

use bellows_memory::{limited, wire};
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_queue::QueueState;
use vm_memory::{ByteValued as _, GuestAddress, Le32, Le64};

use super::chain::Chain;
use super::device::read_bytes;
use super::queue::{Outcome, QueueHandler, Snapshot};
use super::state::{DeviceState, PmemState};
use super::worker::QueueWorker;
use super::{ActivateError, Activation, VirtioDevice};
use crate::state::Version;

/// The only queue.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// A read-only persistent memory device.
pub struct Pmem {
    start: GuestAddress,
    bytes: u64,
    worker: Option<QueueWorker<Requests>>,
}

wire! {
    /// `struct virtio_pmem_config`, section 5.19.4.
    struct VirtioPmemConfig {
        start: Le64,
        size: Le64,
    }

    /// `struct virtio_pmem_req`, section 5.19.6.
    struct VirtioPmemReq {
        type_: Le32,
    }

    /// `struct virtio_pmem_resp`, section 5.19.6.
    struct VirtioPmemResp {
        ret: Le32,
    }
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
        let config = VirtioPmemConfig { start: self.start.0.into(), size: self.bytes.into() };
        read_bytes(config.as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.worker = Some(QueueWorker::start(&mut activation, REQUESTS, Requests)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.worker.take().and_then(QueueWorker::stop)]
    }

    fn save(&self) -> DeviceState {
        DeviceState::Pmem(PmemState { version: Version, start: self.start.0, bytes: self.bytes })
    }
}

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`
const FLUSH: u32 = 0;
/// The answer to a request that succeeded,
const DONE: u32 = 0;
/// and to one that failed (-1, section 5.19.6).
const FAILED: u32 = u32::MAX;

struct Requests;

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let request: Option<VirtioPmemReq> = chain.readable.read_obj(&memory);
        let ret = if request.is_some_and(|request| request.type_ == FLUSH) { DONE } else { FAILED };
        if ret == FAILED {
            limited!(debug, ?request, "an unknown request to persistent memory");
        }
        let response = VirtioPmemResp { ret: ret.into() };
        let has_room = chain.writable.bytes() >= size_of::<VirtioPmemResp>() as u64;
        let written = if has_room { chain.writable.write(&memory, 0, response.as_slice()) } else { 0 };
        // No more than the response.
        Outcome::Used(written as u32)
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
