//! The device on its event loop: it serves the queues on kicks of the driver, and takes over what the host changes.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bellows_memory::limited;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vmm_sys_util::timerfd::TimerFd;

use super::control::{Changes, Shared};
use super::requests::Requests;
use crate::interrupt::Interrupt;
use crate::virtio::limits::Limiter;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::{ActivateError, Activation};

/// Data of events other than kicks, which have the queue's number.
const CHANGED: u32 = 1 << 16;
const TIMER: u32 = CHANGED + 1;

/// The handler of an active device.
pub(super) struct Handler {
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
    /// By number; `None` where the driver did not enable the queue.
    queues: Vec<Option<DeviceQueue>>,
    requests: Requests,
    /// Expires when a request need no longer wait for the limit; `None` for a device that the host does not control.
    timer: Option<TimerFd>,
}

/// Ends the turn of each queue after the request that is being served, when it is dropped.
pub(super) struct Stop(Vec<Arc<AtomicBool>>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::Release));
    }
}

impl Handler {
    /// Takes `queues` queues out of `activation`.
    ///
    /// # Errors
    /// The driver did not enable the first, or the system has no timer.
    pub(super) fn new(activation: &mut Activation, queues: u16, shared: &Arc<Shared>) -> Result<Self, ActivateError> {
        let queues = (0..queues)
            .map(|index| {
                let enabled = activation.queues.get(usize::from(index)).is_some_and(Option::is_some);
                (enabled || index == 0).then(|| DeviceQueue::take(activation, index)).transpose()
            })
            .collect::<Result<_, _>>()?;
        let timer = shared.changed().map(|_| TimerFd::new()).transpose();
        let timer =
            timer.map_err(|error| ActivateError::Host { what: "the timer of its limit", source: error.into() })?;
        let counters = shared.counters.clone();
        let requests = Requests::new(shared.disk(), activation.memory.clone(), activation.features, counters);
        Ok(Self { shared: shared.clone(), interrupt: activation.interrupt.clone(), queues, requests, timer })
    }

    /// Goes on with this limiter.
    pub(super) fn set_limiter(&mut self, limiter: Limiter) {
        self.requests.limiter = limiter;
    }

    /// What ends a turn early.
    pub(super) fn stop(&self) -> Stop {
        Stop(self.queues.iter().flatten().map(DeviceQueue::stop_flag).collect())
    }

    /// How far the queues were served, by number, and the limiter.
    pub(super) fn into_parts(mut self) -> (Vec<Option<QueueState>>, Limiter) {
        let limiter = mem::take(&mut self.requests.limiter);
        (self.queues.iter().map(|queue| queue.as_ref().map(DeviceQueue::state)).collect(), limiter)
    }

    fn serve(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            queue.serve(&mut self.requests);
        }
    }

    /// Takes over the limit and the disk that are wanted now.
    fn take_changes(&mut self) {
        let Changes { disk, limit, exchanges, news } = self.shared.take();
        self.requests.limiter.set(limit);
        self.requests.set_disk(disk);
        self.shared.taken(Some(exchanges));
        if news {
            self.interrupt.config();
        }
    }

    /// Has the timer expire when the first request may pass that waits now.
    fn arm(&mut self) {
        let (Some(timer), Some(wait)) = (&mut self.timer, self.requests.limiter.wait()) else { return };
        // Zero would turn it off.
        let wait = wait.max(std::time::Duration::from_nanos(1));
        if let Err(error) = timer.reset(wait, None) {
            limited!(error, %error, "requests wait for their rate limit until others come");
        }
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            CHANGED => {
                let _ = self.shared.changed().map(|changed| changed.read());
                self.take_changes();
                self.serve();
            }
            TIMER => {
                let _ = self.timer.as_mut().map(TimerFd::wait);
                self.serve();
            }
            index => {
                if let Some(Some(queue)) = self.queues.get_mut(index as usize) {
                    queue.kicked(&mut self.requests);
                }
            }
        }
        self.arm();
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.take_changes();
        for (index, queue) in (0..).zip(&self.queues) {
            if let Some(queue) = queue {
                queue.listen(index, ops);
            }
        }
        if let (Some(changed), Some(timer)) = (self.shared.changed(), &self.timer) {
            let changed = ops.add(Events::with_data(changed, CHANGED, EventSet::IN));
            let timer = ops.add(Events::with_data(timer, TIMER, EventSet::IN));
            if changed.is_err() || timer.is_err() {
                limited!(error, ?changed, ?timer, "the rate limit of a disk does not work");
            }
        }
    }
}
