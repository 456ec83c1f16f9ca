//! A queue that needs only its kicks: a handler of its own on the event loop.
//!
//! A device starts a [`QueueWorker`] for each of its queues when it is activated, and stops them to be suspended. A device
//! whose queues share state, or that listens to more than kicks, writes its own event handler around
//! [`DeviceQueue`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::QueueState;

use super::queue::{DeviceQueue, QueueHandler};
use super::{ActivateError, Activation};
use crate::event_loop::OnLoop;

/// A queue that is being served. Dropping this stops it after the current request.
pub struct QueueWorker<H> {
    stop: Arc<AtomicBool>,
    on_loop: Option<OnLoop<Worker<H>>>,
}

impl<H: QueueHandler + Send + 'static> QueueWorker<H> {
    /// Takes queue `index` out of `activation` and serves it with `handler` from now on.
    ///
    /// # Errors
    /// The driver did not enable that queue, or the event loop has ended.
    pub fn start(activation: &mut Activation, index: u16, handler: H) -> Result<Self, ActivateError> {
        let queue = DeviceQueue::take(activation, index)?;
        let stop = queue.stop_flag();
        let on_loop = activation.event_loop.add(Worker { queue, handler }).map_err(ActivateError::EventLoop)?;
        Ok(Self { stop, on_loop: Some(on_loop) })
    }

    /// Stops serving after the current request. Returns the queue's position; `None` if the event loop has ended.
    #[must_use]
    pub fn stop(mut self) -> Option<QueueState> {
        self.stop.store(true, Ordering::Release);
        Some(self.on_loop.take()?.take_back()?.queue.state())
    }
}

impl<H> Drop for QueueWorker<H> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Worker<H> {
    queue: DeviceQueue,
    handler: H,
}

impl<H: QueueHandler> MutEventSubscriber for Worker<H> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.kicked(&mut self.handler);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.queue.listen(0, ops);
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
