//! The part that queue handlers have in common: waking, budget, completion, interrupt.
//!
//! A device starts a [`QueueWorker`] for each of its queues when it is activated and drops it on reset. A device whose
//! queues share state or that listens to more than kicks writes its own [`MutEventSubscriber`] and keeps it on the loop
//! with [`OnLoop`].

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bellows_memory::{GuestMemory, GuestView, limited};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address as _, GuestAddress, GuestAddressSpace, GuestMemoryBackend as _, GuestMemoryLoadGuard};
use vmm_sys_util::eventfd::EventFd;

use super::{ActivateError, Activation, ActiveQueue};
use crate::event_loop::{EventLoopHandle, Handler};
use crate::interrupt::Interrupt;

/// One request of the driver: descriptors and the snapshot of guest memory that they are to be looked up in. Iteration
/// ends by itself however the descriptors are linked; a chain that is malformed just ends early.
pub type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemory>>;

/// Where the entries of an available ring begin, and the bytes of one (VIRTIO 1.2, section 2.7.6).
const AVAIL_RING_ENTRIES: u64 = 4;
const AVAIL_RING_ENTRY: u64 = 2;

/// Requests that one queue may have served before the other handlers on the loop get their turn.
const BUDGET: u16 = 64;

/// The time after which the driver hears of completed requests though more are waiting: who waits for one must not wait for
/// those behind it where they take long.
const NOTICE_AFTER: Duration = Duration::from_micros(500);

/// Serves the requests of one queue, one after the other.
pub trait QueueHandler: Send + 'static {
    /// Serves one request and says how many bytes it wrote to the chain's device-writable descriptors, from their start
    /// on. The worker holds no snapshot of guest memory meanwhile.
    fn handle(&mut self, chain: Chain) -> u32;
}

/// A handler on an event loop; dropping this takes it off, after which it is not running and never will again.
///
/// Not to be dropped on the loop's own thread.
pub struct OnLoop {
    event_loop: EventLoopHandle,
    id: SubscriberId,
}

impl OnLoop {
    /// Puts `handler` on `event_loop`.
    ///
    /// # Errors
    /// The loop has ended.
    pub fn start(event_loop: &EventLoopHandle, handler: Handler) -> Result<Self, ActivateError> {
        let id = event_loop.add(handler).map_err(ActivateError::EventLoop)?;
        Ok(Self { event_loop: event_loop.clone(), id })
    }
}

impl Drop for OnLoop {
    fn drop(&mut self) {
        if let Err(error) = self.event_loop.remove(self.id) {
            // The loop has ended and dropped its handlers: ours is not running either.
            limited!(debug, %error, "the event loop was gone before the handler");
        }
    }
}

/// A queue that is being served; dropping this ends that, after the request that is being served.
pub struct QueueWorker {
    stop: Arc<AtomicBool>,
    _on_loop: OnLoop,
}

impl QueueWorker {
    /// Takes queue `index` out of `activation` and serves it with `handler` from now on.
    ///
    /// # Errors
    /// The driver did not enable that queue, or the event loop has ended.
    pub fn start(activation: &mut Activation, index: u16, handler: impl QueueHandler) -> Result<Self, ActivateError> {
        let queue = activation.queues.get_mut(usize::from(index)).and_then(Option::take);
        let ActiveQueue { queue, kick } = queue.ok_or(ActivateError::MissingQueue(index))?;
        let stop = Arc::new(AtomicBool::new(false));
        let subscriber = Subscriber {
            stop: stop.clone(),
            index,
            queue,
            kick,
            memory: activation.memory.clone(),
            interrupt: activation.interrupt.clone(),
            handler,
            broken: false,
        };
        Ok(Self { stop, _on_loop: OnLoop::start(&activation.event_loop, Box::new(subscriber))? })
    }
}

impl Drop for QueueWorker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Subscriber<H> {
    /// The worker is being dropped: no other request is begun.
    stop: Arc<AtomicBool>,
    index: u16,
    queue: Queue,
    kick: Arc<EventFd>,
    memory: GuestView,
    interrupt: Arc<dyn Interrupt>,
    handler: H,
    /// The driver broke the queue's rules; nothing more is served until it resets the device.
    broken: bool,
}

impl<H: QueueHandler> Subscriber<H> {
    /// Serves up to [`BUDGET`] requests; `true` if more may be waiting.
    fn serve(&mut self) -> Result<bool, virtio_queue::Error> {
        self.queue.disable_notification(&*self.memory.memory())?;
        let mut served = false;
        let mut more = true;
        let mut noticed = Instant::now();
        // Looking at the ring counts too: a driver can move its index back and forth.
        for _ in 0..BUDGET {
            if self.stop.load(Ordering::Acquire) {
                more = false;
                break;
            }
            if served && noticed.elapsed() >= NOTICE_AFTER {
                self.notify()?;
                (served, noticed) = (false, Instant::now());
            }
            let Some(chain) = next_chain(&mut self.queue, &self.memory)? else {
                if self.queue.enable_notification(&*self.memory.memory())? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            let written = self.handler.handle(chain);
            self.queue.add_used(&*self.memory.memory(), head, written)?;
            served = true;
        }
        if served {
            self.notify()?;
        }
        Ok(more)
    }

    /// Tells the driver of completed requests, if it wants to hear of them.
    fn notify(&mut self) -> Result<(), virtio_queue::Error> {
        if self.queue.needs_notification(&*self.memory.memory())? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }
}

impl<H: QueueHandler> MutEventSubscriber for Subscriber<H> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // The only error of a non-blocking eventfd is that it was not signalled after all.
        let _ = self.kick.read();
        if self.broken {
            return;
        }
        match self.serve() {
            Ok(false) => {}
            Ok(true) => {
                // Signalled already if this fails, which is all that's wanted.
                let _ = self.kick.write(1);
            }
            Err(error) => {
                limited!(warn, queue = self.index, %error, "the driver broke the queue; it has to reset the device");
                self.broken = true;
                self.interrupt.needs_reset();
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.kick, EventSet::IN)) {
            limited!(error, queue = self.index, %error, "cannot listen to the queue");
            self.interrupt.needs_reset();
        }
    }
}

/// The next request in `queue`, if there is one, with a snapshot of `memory` of its own.
///
/// # Errors
/// The driver broke the queue's rules, or its rings are in memory that is not there any more.
pub fn next_chain(queue: &mut Queue, memory: &GuestView) -> Result<Option<Chain>, virtio_queue::Error> {
    next_chain_in(queue, memory.memory())
}

/// Like [`next_chain`], in a snapshot of guest memory that the caller has.
///
/// # Errors
/// As for [`next_chain`].
pub fn next_chain_in<M>(queue: &mut Queue, memory: M) -> Result<Option<DescriptorChain<M>>, virtio_queue::Error>
where
    M: Clone + Deref<Target = GuestMemory>,
{
    // The library logs what it cannot read and heads that it is handed back though they are none, each time: a driver must
    // not get that far.
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
#[path = "worker_test.rs"]
mod tests;
