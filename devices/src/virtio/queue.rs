//! The loop that serves a virtqueue (VIRTIO 1.2, section 2.7): waking, budget, completion, interrupts, broken rings.
//!
//! Every device serves its queues with [`DeviceQueue::serve`] and brings a [`QueueHandler`], which sees one chain at a time.
//! Mostly the driver drives a queue: it makes a request available and kicks. Where the host drives it (a packet has arrived,
//! and the driver has left buffers), [`QueueHandler::is_ready`] tells whether the next chain can be filled, and the device
//! calls `serve` when that may be so.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bellows_memory::{GuestMemory, GuestView, limited};
use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address as _, GuestAddress, GuestAddressSpace, GuestMemoryBackend as _, GuestMemoryLoadGuard};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::{ActivateError, Activation, ActiveQueue};
use crate::interrupt::Interrupt;

pub mod group;

/// One snapshot of guest memory.
pub type Snapshot = GuestMemoryLoadGuard<GuestMemory>;

/// Serves the chains of one queue, one after the other.
pub trait QueueHandler {
    /// Whether a chain can be used now. `false` leaves all chains where they are.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// Serves one chain, which may be malformed. The snapshot of guest memory that it gets is the only one that the loop
    /// holds, so a slow handler drops it first.
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome;
}

/// The result of serving a chain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was used: this many bytes were written to its writable segments, from their start on.
    Used(u32),
    /// It stays the next one of its queue, and the queue is left alone until the driver kicks or the device calls
    /// [`DeviceQueue::serve`] again.
    NotYet,
}

/// Chains to look at before the other handlers on the loop get their turn,
const BUDGET: u16 = 64;
/// and the time after which they get it even earlier.
const BUDGET_TIME: Duration = Duration::from_millis(10);

/// The time after which the driver is notified of completed requests even if more are available: a thread that waits for one
/// request must not wait for slow ones behind it.
pub(super) const NOTICE_AFTER: Duration = Duration::from_micros(500);

/// A queue that is being served.
pub struct DeviceQueue {
    index: u16,
    queue: Queue,
    kick: Arc<EventFd>,
    memory: GuestView,
    interrupt: Arc<dyn Interrupt>,
    /// The chain that is being served; its allocation is used again for the next.
    chain: Chain,
    /// Whether to begin no further request.
    stop: Arc<AtomicBool>,
    /// The driver broke the queue's rules; nothing more is served until it resets the device.
    broken: bool,
}

impl DeviceQueue {
    /// Takes queue `index` out of `activation`, and looks at it once without a kick: the driver may have kicked while the
    /// device was suspended.
    ///
    /// # Errors
    /// The driver did not enable that queue.
    pub fn take(activation: &mut Activation, index: u16) -> Result<Self, ActivateError> {
        let queue = activation.queues.get_mut(usize::from(index)).and_then(Option::take);
        let ActiveQueue { queue, kick } = queue.ok_or(ActivateError::MissingQueue(index))?;
        let queue = Self {
            index,
            chain: Chain::with_capacity(queue.max_size()),
            queue,
            kick,
            memory: activation.memory.clone(),
            interrupt: activation.interrupt.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            broken: false,
        };
        queue.wake();
        Ok(queue)
    }

    /// Listens to the driver's kicks, which come as events with `data`.
    pub fn listen(&self, data: u32, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::with_data(&*self.kick, data, EventSet::IN)) {
            limited!(error, queue = self.index, %error, "cannot listen to the queue");
            self.interrupt.needs_reset();
        }
    }

    /// Takes the driver's kick and serves the queue: call it for the event of [`DeviceQueue::listen`].
    pub fn kicked(&mut self, handler: &mut impl QueueHandler) {
        // The only error of a non-blocking eventfd is that it was not signalled.
        let _ = self.kick.read();
        self.serve(handler);
    }

    /// Serves chains until there are no more, `handler` is not ready, or its turn ends; after a turn it kicks itself to
    /// continue. Does nothing once the driver has broken the queue.
    pub fn serve(&mut self, handler: &mut impl QueueHandler) {
        if self.broken {
            return;
        }
        match self.serve_turn(handler) {
            Ok(Turn::Done) => {}
            Ok(Turn::Unfinished) => self.wake(),
            Err(error) => {
                limited!(warn, queue = self.index, %error, "the driver broke the queue: it must reset the device");
                self.broken = true;
                self.interrupt.needs_reset();
            }
        }
    }

    /// Whether the driver has broken the queue's rules and must reset the device.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Leaves the queue alone from now on, as if the driver had broken it.
    pub const fn give_up(&mut self) {
        self.broken = true;
    }

    /// Setting this ends a turn after the request that is being served.
    #[must_use]
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// How far the queue was served.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn serve_turn(&mut self, handler: &mut impl QueueHandler) -> Result<Turn, virtio_queue::Error> {
        if !handler.is_ready() {
            return Ok(Turn::Done);
        }
        self.queue.disable_notification(&*self.memory.memory())?;
        let begin = Instant::now();
        // When the driver was last told, and whether anything was completed since.
        let (mut told, mut completed) = (begin, false);
        let mut turn = Turn::Unfinished;
        // Each look at the ring counts too: a driver can move its index back and forth.
        for _ in 0..BUDGET {
            if self.stop.load(Ordering::Acquire) {
                turn = Turn::Done;
                break;
            }
            if completed {
                let now = Instant::now();
                if now - told >= NOTICE_AFTER {
                    self.notify()?;
                    (told, completed) = (now, false);
                }
                if now - begin >= BUDGET_TIME {
                    break;
                }
            }
            if !handler.is_ready() {
                turn = Turn::Done;
                break;
            }
            let memory = self.memory.memory();
            let Some(descriptors) = next_chain(&mut self.queue, &*memory)? else {
                if self.queue.enable_notification(&*memory)? {
                    continue;
                }
                turn = Turn::Done;
                break;
            };
            self.chain.load(descriptors);
            match handler.handle(&self.chain, memory) {
                Outcome::Used(bytes) => {
                    self.queue.add_used(&*self.memory.memory(), self.chain.head(), bytes)?;
                    completed = true;
                }
                Outcome::NotYet => {
                    self.queue.go_to_previous_position();
                    turn = Turn::Done;
                    break;
                }
            }
        }
        if completed {
            self.notify()?;
        }
        Ok(turn)
    }

    /// Interrupts the driver for completed requests, if it asked for that.
    fn notify(&mut self) -> Result<(), virtio_queue::Error> {
        if self.queue.needs_notification(&*self.memory.memory())? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Kicks the queue in the driver's place.
    fn wake(&self) {
        // If this fails, the eventfd is signalled already.
        let _ = self.kick.write(1);
    }
}

/// How a turn ended.
enum Turn {
    /// The queue is left alone until it is kicked or served again.
    Done,
    /// There may be more to do.
    Unfinished,
}

/// Offset of the entries of an available ring, and the size of one (VIRTIO 1.2, section 2.7.6).
const AVAIL_RING_ENTRIES: u64 = 4;
const AVAIL_RING_ENTRY: u64 = 2;

/// The next chain of `queue`, if there is one.
///
/// # Errors
/// The driver broke the queue's rules, or the memory of its rings is gone.
pub(super) fn next_chain<M>(queue: &mut Queue, memory: M) -> Result<Option<DescriptorChain<M>>, virtio_queue::Error>
where
    M: Clone + Deref<Target = GuestMemory>,
{
    // The library logs each entry that it cannot read, and each head that does not exist, so these are checked before it sees
    // them.
    let entry = AVAIL_RING_ENTRIES + AVAIL_RING_ENTRY * u64::from(queue.next_avail() % queue.size().max(1));
    let entry = GuestAddress(queue.avail_ring()).checked_add(entry).ok_or(virtio_queue::Error::AddressOverflow)?;
    if !memory.check_range(entry, AVAIL_RING_ENTRY as usize) {
        return Err(virtio_queue::Error::InvalidChain);
    }
    match queue.iter(memory)?.next() {
        Some(chain) if chain.head_index() >= queue.size() => Err(virtio_queue::Error::InvalidDescriptorIndex),
        chain => Ok(chain),
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
