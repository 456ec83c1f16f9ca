//! A pair of queues, one for each direction, with the link that its packets go through.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::QueueState;

use super::control::InUse;
use super::limits::{Limited, Limiters};
use super::link::Link;
use super::receive::{Receiver, Waiting};
use super::shared::Shared;
use super::transmit::Transmitter;
use super::{RX, TX};
use crate::virtio::queue::DeviceQueue;
use crate::virtio::queue::group::GroupQueue;
use crate::virtio::{ActivateError, Activation};

/// Queues of a pair.
pub(super) const QUEUES: u16 = 2;

/// A pair of queues of an active device.
pub(super) struct Pair {
    link: Arc<dyn Link>,
    /// `None` where the driver did not enable the queue.
    rx: Option<GroupQueue>,
    tx: Option<DeviceQueue>,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    /// What of the link is watched, if it is on the loop.
    watched: Option<EventSet>,
}

impl Pair {
    /// Takes the queues of pair `index` out of `activation`. It is not used yet.
    ///
    /// # Errors
    /// It is the first, and the driver did not enable one of its queues.
    pub(super) fn take(
        activation: &mut Activation,
        index: u16,
        link: &Arc<dyn Link>,
        shared: &Arc<Shared>,
        (features, mtu): (u64, Option<u16>),
    ) -> Result<Self, ActivateError> {
        let (rx, tx) = (QUEUES * index + RX, QUEUES * index + TX);
        let is_there = |queue: u16| index == 0 || is_enabled(activation, queue);
        let (has_rx, has_tx) = (is_there(rx), is_there(tx));
        Ok(Self {
            link: link.clone(),
            rx: has_rx.then(|| GroupQueue::take(activation, rx)).transpose()?,
            tx: has_tx.then(|| DeviceQueue::take(activation, tx)).transpose()?,
            receiver: Receiver::new(link.clone(), shared.clone(), features, mtu),
            transmitter: Transmitter::new(link.clone(), shared.clone(), features),
            watched: None,
        })
    }

    /// Whether the driver uses it.
    pub(super) const fn is_used(&self) -> bool {
        self.receiver.used
    }

    /// Listens to the driver's kicks, which come as events with the queue's number.
    pub(super) fn listen(&self, index: u16, ops: &mut EventOps) {
        if let Some(rx) = &self.rx {
            rx.listen(u32::from(QUEUES * index + RX), ops);
        }
        if let Some(tx) = &self.tx {
            tx.listen(u32::from(QUEUES * index + TX), ops);
        }
    }

    /// Takes the kick of one of its queues, [`RX`] or [`TX`], and serves that.
    pub(super) fn kicked(&mut self, queue: u16, limiters: &mut Limiters) {
        if queue == RX {
            self.receiver.held = false;
            if let Some(rx) = &mut self.rx {
                rx.kicked(&mut Limited { way: &mut self.receiver, limiter: &mut limiters.receive });
            }
        } else {
            self.transmitter.held = false;
            if let Some(tx) = &mut self.tx {
                tx.kicked(&mut Limited { way: &mut self.transmitter, limiter: &mut limiters.transmit });
            }
        }
    }

    /// Serves the queue of packets to the guest.
    pub(super) fn serve_rx(&mut self, limiters: &mut Limiters) {
        self.receiver.held = false;
        if let Some(rx) = &mut self.rx {
            rx.serve(&mut Limited { way: &mut self.receiver, limiter: &mut limiters.receive });
        }
    }

    /// Serves the queue of packets from the guest.
    pub(super) fn serve_tx(&mut self, limiters: &mut Limiters) {
        self.transmitter.held = false;
        if let Some(tx) = &mut self.tx {
            tx.serve(&mut Limited { way: &mut self.transmitter, limiter: &mut limiters.transmit });
        }
    }

    /// Takes an event of the link.
    pub(super) fn link_event(&mut self, events: EventSet) {
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

    /// Whether a call has found the link gone.
    pub(super) const fn is_gone(&self) -> bool {
        self.receiver.gone || self.transmitter.gone
    }

    /// Stops its traffic for good. Returns what has said that the link is gone.
    pub(super) fn end(&mut self, ops: &mut EventOps) -> Option<io::Error> {
        self.receiver.gone = true;
        self.transmitter.gone = true;
        self.unwatch(ops);
        self.receiver.reason.take().or_else(|| self.transmitter.reason.take())
    }

    /// The events of the link to listen to.
    fn wanted(&self) -> EventSet {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if self.transmitter.writable { set } else { set | EventSet::OUT }
    }

    /// Listens to the link for what is wanted now: nothing, where it is not used. An event that has come already is not missed.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn watch(&mut self, data: u32, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        if !self.is_used() {
            self.unwatch(ops);
            return Ok(());
        }
        let wanted = self.wanted();
        if self.watched == Some(wanted) {
            return Ok(());
        }
        let events = self.link_events(data, wanted);
        if self.watched.is_some() { ops.modify(events) } else { ops.add(events) }?;
        self.watched = Some(wanted);
        Ok(())
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if let Some(set) = self.watched.take() {
            // If it fails, the descriptor is no longer there to be watched.
            let _ = ops.remove(self.link_events(0, set));
        }
    }

    fn link_events(&self, data: u32, set: EventSet) -> Events {
        Events::with_data_raw(self.link.descriptor().as_raw_fd(), data, set)
    }

    /// How far its queues were served, and a packet that waits for room in the guest's buffers.
    pub(super) fn into_parts(self) -> ([Option<QueueState>; QUEUES as usize], Option<Waiting>) {
        let states = [self.rx.as_ref().map(GroupQueue::state), self.tx.as_ref().map(DeviceQueue::state)];
        (states, self.receiver.into_waiting())
    }
}

impl InUse for Pair {
    fn is_enabled(&self) -> bool {
        self.rx.is_some() && self.tx.is_some()
    }

    /// [`Pair::watch`] is to follow.
    fn set_used(&mut self, used: bool) -> io::Result<()> {
        if !used {
            (self.receiver.used, self.transmitter.used) = (false, false);
            self.receiver.drop_waiting();
        }
        self.link.set_used(used)?;
        (self.receiver.used, self.transmitter.used) = (used, used);
        // What was known of the link is of the time before.
        (self.receiver.readable, self.transmitter.writable) = (used, used);
        Ok(())
    }
}

/// Whether the driver has enabled queue `index`, and nobody has taken it.
pub(super) fn is_enabled(activation: &Activation, index: u16) -> bool {
    activation.queues.get(usize::from(index)).is_some_and(Option::is_some)
}
