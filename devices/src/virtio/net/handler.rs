//! The device on its event loop: it serves the queues on kicks of the driver and events of the link.
//!
//! The link is watched edge-triggered: that it can be read or written is remembered until a call says otherwise. So a driver that
//! leaves no buffers stops the reading, and costs nothing meanwhile but one event for each packet that the link still takes in. That
//! it can be written to again is of interest only while something waits for that.

use std::mem;
use std::sync::Arc;

use bellows_memory::limited;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vmm_sys_util::timerfd::TimerFd;

use super::limits::Limiters;
use super::link::Link;
use super::mmds::Mmds;
use super::receive::{Receiver, Waiting};
use super::shared::Shared;
use super::transmit::Transmitter;
use super::{QUEUE_SIZES, RX, TX};
use crate::interrupt::Interrupt;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::queue::group::GroupQueue;
use crate::virtio::{ActivateError, Activation};

/// Data of events other than kicks, which have the queue's number.
const LINK: u32 = 16;
const TIMER: u32 = 17;
const LIMITS: u32 = 18;

/// The handler of an active device.
pub(super) struct Handler {
    link: Arc<dyn Link>,
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
    rx: GroupQueue,
    tx: DeviceQueue,
    receiver: Receiver,
    transmitter: Transmitter,
    /// Expires when a packet need no longer wait for its limit, or the metadata service has something to do.
    timer: TimerFd,
    mmds: Option<Arc<Mmds>>,
    /// What of the link is watched, if it is on the loop.
    watched: Option<EventSet>,
}

impl Handler {
    /// Takes the queues out of `activation`.
    ///
    /// # Errors
    /// The driver did not enable a queue, or the system has no timer.
    pub(super) fn new(
        activation: &mut Activation,
        link: &Arc<dyn Link>,
        shared: &Arc<Shared>,
        features: u64,
        mtu: Option<u16>,
    ) -> Result<Self, ActivateError> {
        let (rx, tx) = (GroupQueue::take(activation, RX)?, DeviceQueue::take(activation, TX)?);
        let timer = TimerFd::new()
            .map_err(|error| ActivateError::Host { what: "the timer of its limits", source: error.into() })?;
        Ok(Self {
            link: link.clone(),
            shared: shared.clone(),
            interrupt: activation.interrupt.clone(),
            rx,
            tx,
            receiver: Receiver::new(link.clone(), shared.clone(), features, mtu),
            transmitter: Transmitter::new(link.clone(), shared.clone(), features),
            timer,
            mmds: None,
            watched: None,
        })
    }

    /// Goes on with a packet that waited for room.
    pub(super) fn wait_again(&mut self, waiting: Waiting) {
        self.receiver.wait_again(waiting);
    }

    /// Has the metadata service on the interface.
    pub(super) fn serve_metadata(&mut self, mmds: &Arc<Mmds>) {
        self.mmds = Some(mmds.clone());
        self.receiver.mmds = Some(mmds.clone());
        self.transmitter.mmds = Some(mmds.clone());
    }

    /// Goes on with these limiters.
    pub(super) fn set_limiters(&mut self, limiters: Limiters) {
        (self.receiver.limiter, self.transmitter.limiter) = (limiters.receive, limiters.transmit);
    }

    /// How far the queues were served, by number, a packet that waits for room in the guest's buffers, and the limiters.
    pub(super) fn into_parts(mut self) -> (Vec<Option<QueueState>>, Option<Waiting>, Limiters) {
        let mut queues = vec![None; QUEUE_SIZES.len()];
        queues[usize::from(RX)] = Some(self.rx.state());
        queues[usize::from(TX)] = Some(self.tx.state());
        let limiters = Limiters {
            receive: mem::take(&mut self.receiver.limiter),
            transmit: mem::take(&mut self.transmitter.limiter),
        };
        (queues, self.receiver.into_waiting(), limiters)
    }

    fn link_event(&mut self, events: EventSet) {
        // A TAP says so when its interface is deleted. Without buffers of the driver, no call would find out.
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.receiver.gone = true;
        }
        if events.contains(EventSet::IN) {
            self.receiver.readable = true;
        }
        if events.contains(EventSet::OUT) {
            self.transmitter.flush();
        }
    }

    fn set_limits(&mut self) {
        let limits = self.shared.limits();
        self.receiver.limiter.set(limits.receive);
        self.transmitter.limiter.set(limits.transmit);
    }

    /// Has the timer expire when the first packet may pass that waits now, or the metadata service would go on by itself.
    fn arm(&mut self) {
        let metadata = self.mmds.as_ref().and_then(|mmds| mmds.wait());
        let waits = [self.receiver.limiter.wait(), self.transmitter.limiter.wait(), metadata];
        let Some(wait) = waits.into_iter().flatten().min() else { return };
        // Zero would turn it off.
        let wait = wait.max(std::time::Duration::from_nanos(1));
        if let Err(error) = self.timer.reset(wait, None) {
            limited!(error, %error, "packets wait for their rate limit until others come");
        }
    }

    /// Stops the traffic for good.
    fn link_is_gone(&mut self, ops: &mut EventOps) {
        self.receiver.gone = true;
        self.transmitter.gone = true;
        self.unwatch(ops);
        if self.shared.link_down() {
            let reason = self.receiver.reason.take().or_else(|| self.transmitter.reason.take());
            let reason = reason.map_or_else(|| "it has hung up".into(), |error| error.to_string());
            let mac = self.shared.mac();
            limited!(warn, %mac, %reason, "the host's end of a network interface is gone: the VM goes on without it");
            self.interrupt.config();
        }
        // What waits is dropped.
        self.tx.serve(&mut self.transmitter);
    }

    /// The events of the link to listen to.
    fn wanted(&self) -> EventSet {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if self.transmitter.writable { set } else { set | EventSet::OUT }
    }

    /// Listens to the link for what is wanted now. An event that has come already is not missed.
    fn watch(&mut self, ops: &mut EventOps) {
        let wanted = self.wanted();
        if self.watched == Some(wanted) {
            return;
        }
        let events = self.link_events(wanted);
        let done = if self.watched.is_some() { ops.modify(events) } else { ops.add(events) };
        match done {
            Ok(()) => self.watched = Some(wanted),
            Err(error) => {
                limited!(error, %error, "cannot listen to a network interface's end on the host");
                self.interrupt.needs_reset();
            }
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(set) = self.watched.take() {
            // If it fails, the descriptor is no longer there to be watched.
            let _ = ops.remove(self.link_events(set));
        }
    }

    fn link_events(&self, set: EventSet) -> Events {
        Events::with_data_raw(std::os::fd::AsRawFd::as_raw_fd(&self.link.descriptor()), LINK, set)
    }

    /// Stops the traffic if a call has found the link gone, and listens to it otherwise.
    fn follow_link(&mut self, ops: &mut EventOps) {
        if self.receiver.gone || self.transmitter.gone {
            self.link_is_gone(ops);
        } else {
            self.watch(ops);
        }
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            kick if kick == u32::from(RX) => self.rx.kicked(&mut self.receiver),
            kick if kick == u32::from(TX) => self.tx.kicked(&mut self.transmitter),
            LINK => {
                self.link_event(events.event_set());
                self.rx.serve(&mut self.receiver);
                self.tx.serve(&mut self.transmitter);
            }
            other => {
                if other == LIMITS {
                    let _ = self.shared.changed().read();
                    self.set_limits();
                } else {
                    let _ = self.timer.wait();
                    if let Some(mmds) = &self.mmds {
                        mmds.expire();
                    }
                }
                self.rx.serve(&mut self.receiver);
                self.tx.serve(&mut self.transmitter);
            }
        }
        if self.receiver.is_answered() {
            self.rx.serve(&mut self.receiver);
        }
        if self.watched.is_some() {
            self.follow_link(ops);
        }
        self.arm();
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.set_limits();
        self.rx.listen(RX.into(), ops);
        self.tx.listen(TX.into(), ops);
        let limits = ops.add(Events::with_data(self.shared.changed(), LIMITS, EventSet::IN));
        let timer = ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN));
        if limits.is_err() || timer.is_err() {
            limited!(error, ?limits, ?timer, "rate limits of a network interface do not work");
        }
        if self.receiver.gone {
            return;
        }
        // An earlier handler may have begun a packet.
        self.transmitter.flush();
        self.follow_link(ops);
    }
}
