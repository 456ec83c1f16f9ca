//! The device on its event loop: it serves the queues on kicks of the driver and events of the host's sockets.

use std::sync::Arc;

use bellows_memory::limited;
use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;

use super::host::Token;
use super::packet::{EVENT_TRANSPORT_RESET, VirtioVsockEvent};
use super::packet_buffer::PacketBuffer;
use super::streams::Streams;
use super::{EVENT, RX, TX};
use crate::interrupt::Interrupt;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{DeviceQueue, Outcome, QueueHandler, Snapshot};
use crate::virtio::{ActivateError, Activation};

/// The handler of an active device.
pub struct Handler {
    interrupt: Arc<dyn Interrupt>,
    rx: DeviceQueue,
    tx: DeviceQueue,
    event: Option<DeviceQueue>,
    streams: Streams,
    /// Whether the guest must still be told that its connections are gone.
    transport_reset: bool,
    /// Whether the driver broke the rules; nothing happens until it resets the device.
    gave_up: bool,
}

impl Handler {
    /// Takes the queues out of `activation` and goes on with `streams`.
    ///
    /// # Errors
    /// The driver did not enable a queue that the device needs.
    pub fn new(activation: &mut Activation, streams: Streams, transport_reset: bool) -> Result<Self, ActivateError> {
        let (rx, tx) = (DeviceQueue::take(activation, RX)?, DeviceQueue::take(activation, TX)?);
        // A driver may leave this queue out.
        let event = DeviceQueue::take(activation, EVENT).ok();
        let interrupt = activation.interrupt.clone();
        Ok(Self { interrupt, rx, tx, event, streams, transport_reset, gave_up: false })
    }

    /// The streams, the positions of the queues, and whether the guest must still be told that its connections are gone.
    pub fn into_parts(self) -> (Streams, Vec<Option<QueueState>>, bool) {
        let queues = vec![Some(self.rx.state()), Some(self.tx.state()), self.event.as_ref().map(DeviceQueue::state)];
        (self.streams, queues, self.transport_reset)
    }

    /// Drops every connection and stops taking new ones.
    fn give_up(&mut self, ops: &mut EventOps) {
        self.rx.give_up();
        self.tx.give_up();
        self.streams.give_up(ops);
        self.gave_up = true;
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let token = Token::from_data(events.data());
        match token {
            Token::Kick(TX) => self.tx.kicked(&mut FromGuest { streams: &mut self.streams, ops }),
            Token::Kick(EVENT) => {
                if let Some(event) = &mut self.event {
                    event.kicked(&mut Notices { transport_reset: &mut self.transport_reset });
                }
            }
            Token::Kick(_) => {}
            Token::Listener => self.streams.accept_clients(ops),
            Token::Client(index) => self.streams.client_event(index, ops),
            Token::Stream(id) => self.streams.stream_event(id, events.event_set(), ops),
        }
        // Any event may have produced a packet for the guest.
        let mut to_guest = ToGuest { streams: &mut self.streams, ops };
        match token {
            Token::Kick(RX) => self.rx.kicked(&mut to_guest),
            _ => self.rx.serve(&mut to_guest),
        }
        if !self.gave_up && (self.rx.is_broken() || self.tx.is_broken()) {
            self.give_up(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.rx.listen(Token::Kick(RX).data(), ops);
        self.tx.listen(Token::Kick(TX).data(), ops);
        if let Some(event) = &self.event {
            event.listen(Token::Kick(EVENT).data(), ops);
        }
        if let Err(error) = self.streams.listen(ops) {
            limited!(error, %error, "cannot listen to the host's sockets");
            self.give_up(ops);
            self.interrupt.needs_reset();
        }
    }
}

/// Packets of the guest.
struct FromGuest<'a, 'b> {
    streams: &'a mut Streams,
    ops: &'a mut EventOps<'b>,
}

impl QueueHandler for FromGuest<'_, '_> {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        match PacketBuffer::to_read(chain, &memory) {
            Ok(packet) => self.streams.receive(&packet, self.ops),
            Err(malformed) => limited!(debug, %malformed, "a packet of the guest was dropped"),
        }
        Outcome::Used(0)
    }
}

/// Buffers for packets to the guest, used when a packet is due.
struct ToGuest<'a, 'b> {
    streams: &'a mut Streams,
    ops: &'a mut EventOps<'b>,
}

impl QueueHandler for ToGuest<'_, '_> {
    fn is_ready(&mut self) -> bool {
        self.streams.has_outgoing()
    }

    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        match PacketBuffer::to_write(chain, &memory) {
            Ok(buffer) => self.streams.fill(&buffer, self.ops).map_or(Outcome::NotYet, Outcome::Used),
            Err(malformed) => {
                limited!(debug, %malformed, "a buffer of the guest was given back unused");
                Outcome::Used(0)
            }
        }
    }
}

/// Buffers for notices that the device itself changed.
struct Notices<'a> {
    transport_reset: &'a mut bool,
}

impl QueueHandler for Notices<'_> {
    fn is_ready(&mut self) -> bool {
        *self.transport_reset
    }

    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let event = VirtioVsockEvent { id: EVENT_TRANSPORT_RESET.into() };
        let written = chain.writable.write(&memory, 0, event.as_slice());
        // A buffer without room for it is given back unused.
        *self.transport_reset = written < size_of::<VirtioVsockEvent>();
        Outcome::Used(written as u32)
    }
}
