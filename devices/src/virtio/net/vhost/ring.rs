//! A queue as vhost-net is told of it.

use std::sync::Arc;

use bellows_memory::GuestView;
use virtio_queue::{Queue, QueueState, QueueT as _};
use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::eventfd::EventFd;

use super::table::Table;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Chain;
use crate::virtio::queue::next_chain;

/// A queue that the kernel is to serve.
pub(super) struct Ring {
    state: QueueState,
    pub(super) kick: Arc<EventFd>,
}

impl Ring {
    pub(super) fn new(queue: ActiveQueue) -> Self {
        Self { state: queue.queue.state(), kick: queue.kick }
    }

    /// The number of descriptors.
    pub(super) const fn size(&self) -> u16 {
        self.state.size
    }

    /// The number of descriptors that it may have.
    pub(super) const fn max_size(&self) -> u16 {
        self.state.max_size
    }

    /// The next entry of the available ring.
    pub(super) const fn position(&self) -> u16 {
        self.state.next_avail
    }

    /// Guest-physical addresses of the descriptors, the available ring and the used ring.
    pub(super) const fn addresses(&self) -> [u64; 3] {
        [self.state.desc_table, self.state.avail_ring, self.state.used_ring]
    }

    /// Where these lie in this process: `None` if something of them is not in guest memory in one piece. Their sizes are those of VIRTIO
    /// 1.2, section 2.7, with the fields for suppressing events.
    pub(super) fn place(&self, table: &Table) -> Option<[u64; 3]> {
        let size = u64::from(self.size());
        let [descriptors, available, used] = self.addresses();
        Some([
            table.host_of(descriptors, 16 * size)?,
            table.host_of(available, 6 + 2 * size)?,
            table.host_of(used, 6 + 8 * size)?,
        ])
    }

    /// Gives the chain at `position` back to the driver, unused, if it cannot be used by anybody: it is malformed, or not in guest memory.
    /// The queue goes on behind it. Returns whether that is so.
    pub(super) fn skip(&mut self, position: u16, memory: &GuestView) -> bool {
        let skip = || {
            let mut queue = Queue::try_from(self.served_to(position)).ok()?;
            let mut chain = Chain::with_capacity(queue.max_size());
            chain.load(next_chain(&mut queue, memory.memory()).ok()??);
            let memory = memory.memory();
            let are_in = chain.readable.are_in(&memory) && chain.writable.are_in(&memory);
            if are_in && chain.defect().is_none() {
                return None;
            }
            queue.add_used(&*memory, chain.head(), 0).ok()?;
            Some(queue.state())
        };
        skip().map(|state| self.state = state).is_some()
    }

    /// What it is once it was served up to `position`. The kernel has used all that it took by then.
    pub(super) fn served_to(&self, position: u16) -> QueueState {
        QueueState { next_avail: position, next_used: position, ..self.state }
    }
}
