//! The device on its event loop: moves packets between the queues, the muxer and the host's sockets.
//!
//! Data is copied once each way: from the host socket straight to the guest's buffer, and from the guest's buffer
//! straight to the host socket. Only what a slow host socket does not take is kept in its connection's backlog.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bellows_memory::{GuestMemory, GuestView, limited};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::connection::Connection;
use super::host::{ClientProgress, Host, Token};
use super::listener::HostListener;
use super::muxer::{ConnectionId, Event, Muxer, Outgoing, Settled};
use super::packet::{HEADER_BYTES, Header};
use super::segments::Segments;
use super::socket;
use super::{RX, TX};
use crate::interrupt::Interrupt;
use crate::virtio::ActiveQueue;
use crate::virtio::worker::next_chain_in;

/// Packets of each direction that are moved before the other handlers on the loop get their turn.
const BUDGET: usize = 64;

/// Clients that are taken in one turn.
const ACCEPT_BUDGET: usize = 16;

/// What an active device runs.
pub struct Handler {
    /// Guest memory.
    memory: GuestView,
    interrupt: Arc<dyn Interrupt>,
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// Holds the buffers for a notice that the guest moved to another host, which never comes.
    event: Option<ActiveQueue>,
    listener: Arc<HostListener>,
    muxer: Muxer,
    host: Host,
    /// Signalled by the handler itself when there was more to do than fits one turn.
    again: Arc<EventFd>,
    /// The driver may have made packets available.
    tx_pending: bool,
    /// The driver broke the rules; nothing happens until it resets the device.
    broken: bool,
}

impl Handler {
    /// A handler without connections, which wakes itself with `again`.
    #[expect(clippy::too_many_arguments, reason = "all that an activation brings")]
    pub fn new(
        guest_cid: u64,
        listener: Arc<HostListener>,
        again: Arc<EventFd>,
        memory: GuestView,
        interrupt: Arc<dyn Interrupt>,
        rx: ActiveQueue,
        tx: ActiveQueue,
        event: Option<ActiveQueue>,
    ) -> Self {
        Self {
            memory,
            interrupt,
            rx,
            tx,
            event,
            listener,
            muxer: Muxer::new(guest_cid),
            host: Host::new(),
            again,
            tx_pending: true,
            broken: false,
        }
    }

    fn dispatch(&mut self, token: Token, set: EventSet, ops: &mut EventOps) {
        match token {
            // Eventfds just signalled; nothing to be done if another read came first.
            Token::Kick(queue) => {
                let queue = match queue {
                    RX => Some(&self.rx),
                    TX => {
                        self.tx_pending = true;
                        Some(&self.tx)
                    }
                    _ => self.event.as_ref(),
                };
                if let Some(queue) = queue {
                    let _ = queue.kick.read();
                }
            }
            Token::Again => {
                let _ = self.again.read();
            }
            Token::Listener => {
                for _ in 0..ACCEPT_BUDGET {
                    if !self.host.accept(&self.listener, ops) {
                        break;
                    }
                }
            }
            Token::Client(index) => {
                if let ClientProgress::Wants(socket, port) = self.host.read_client(index, ops) {
                    self.connect_to_guest(socket, port, ops);
                }
            }
            Token::Stream(id) => self.stream_event(id, set, ops),
        }
    }

    fn connect_to_guest(&mut self, socket: UnixStream, port: u32, ops: &mut EventOps) {
        match self.muxer.connect(port) {
            Ok(id) => {
                if !self.host.adopt(id, socket, ops) {
                    self.muxer.host_failed(id);
                }
            }
            Err(error) => {
                limited!(warn, guest_port = port, %error, "a vsock client was turned away");
                // Off the loop before it is closed.
                let _ = ops.remove(Events::empty(&socket));
            }
        }
    }

    fn stream_event(&mut self, id: ConnectionId, set: EventSet, ops: &mut EventOps) {
        let Some(stream) = self.host.stream(id) else { return };
        stream.hung_up |= set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        stream.writable |= set.contains(EventSet::OUT);
        let hung_up = stream.hung_up;
        if hung_up && !self.muxer.get(id).is_some_and(Connection::wants_host_data) {
            self.host_closed(id, ops);
            return;
        }
        self.muxer.host_readable(id);
        self.flush(id, ops);
    }

    fn host_closed(&mut self, id: ConnectionId, ops: &mut EventOps) {
        self.host.close(id, ops);
        self.muxer.host_closed(id);
    }

    /// Moves up to [`BUDGET`] packets from the guest; `true` if more may wait.
    fn serve_tx(&mut self, memory: &GuestMemory, ops: &mut EventOps) -> Result<bool, virtio_queue::Error> {
        let mut segments = Segments::default();
        let mut used = false;
        let mut more = true;
        for _ in 0..BUDGET {
            let Some(chain) = next_chain_in(&mut self.tx.queue, memory)? else {
                if self.tx.queue.enable_notification(memory)? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            match segments.gather(memory, chain, Permissions::Read) {
                Ok(()) => self.packet(&segments.read_header(), &segments, ops),
                Err(malformed) => limited!(debug, %malformed, "a packet of the guest was dropped"),
            }
            self.tx.queue.add_used(memory, head, 0)?;
            used = true;
        }
        if used && self.tx.queue.needs_notification(memory)? {
            self.interrupt.queue(TX);
        }
        Ok(more)
    }

    fn packet(&mut self, header: &Header, segments: &Segments<'_>, ops: &mut EventOps) {
        match self.muxer.receive(header, segments.payload_bytes()) {
            Event::None => {}
            Event::Connect { id, port } => match self.host.connect(id, port, &self.listener, ops) {
                Ok(()) => self.muxer.host_accepted(id),
                Err(error) => {
                    limited!(debug, port, %error, "the guest's connection was refused");
                    self.muxer.host_refused(id);
                }
            },
            Event::Established(id) => self.established(id, header.dst_port, ops),
            Event::Payload(id) => self.payload(id, header.len as usize, segments, ops),
            Event::Shutdown(id) => self.settle(id, ops),
            Event::Closed(id) => self.host.close(id, ops),
        }
    }

    fn established(&mut self, id: ConnectionId, host_port: u32, ops: &mut EventOps) {
        let line = format!("OK {host_port}\n");
        let Some(stream) = self.host.stream(id) else { return };
        match socket::send(&stream.socket, line.as_bytes()) {
            Ok(sent) if sent == line.len() => self.muxer.host_readable(id),
            // Nothing was written to this socket before, so there is room for a line while anybody reads.
            Ok(_) | Err(_) => {
                self.host.close(id, ops);
                self.muxer.host_failed(id);
            }
        }
    }

    /// Hands `len` bytes of accepted payload to the host socket, or keeps them for it.
    fn payload(&mut self, id: ConnectionId, len: usize, segments: &Segments<'_>, ops: &mut EventOps) {
        let Some(stream) = self.host.stream(id) else { return };
        let mut done = 0;
        // Nothing overtakes the backlog: while there is one, the socket is not writable.
        while done < len && stream.writable {
            match segments.send_payload(&stream.socket, done, len - done) {
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable = false,
                Err(_) => return self.host_deaf(id, ops),
            }
        }
        // Within `len`, which came as a u32.
        self.muxer.forwarded(id, done as u32);
        if done < len
            && let Some(room) = self.muxer.store(id, len - done)
        {
            segments.copy_payload(done, room);
        }
    }

    /// Writes what waits for the host socket of `id`, as far as it takes it.
    fn flush(&mut self, id: ConnectionId, ops: &mut EventOps) {
        let Some(stream) = self.host.stream(id) else { return };
        while stream.writable {
            let Some(connection) = self.muxer.get(id).filter(|connection| !connection.backlog().is_empty()) else {
                break;
            };
            match socket::send(&stream.socket, connection.backlog().front()) {
                Ok(sent) => self.muxer.flushed(id, sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable = false,
                Err(_) => return self.host_deaf(id, ops),
            }
        }
        self.settle(id, ops);
    }

    fn host_deaf(&mut self, id: ConnectionId, ops: &mut EventOps) {
        self.muxer.host_deaf(id);
        self.settle(id, ops);
    }

    fn settle(&mut self, id: ConnectionId, ops: &mut EventOps) {
        match self.muxer.settle(id) {
            Settled::Closed => self.host.close(id, ops),
            Settled::Open(duty) => {
                self.host.perform(id, duty);
                self.close_orphan(id, ops);
            }
        }
    }

    fn close_orphan(&mut self, id: ConnectionId, ops: &mut EventOps) {
        if self.muxer.get(id).is_some_and(Connection::is_orphaned) {
            self.host.close(id, ops);
        }
    }

    /// Moves up to [`BUDGET`] packets to the guest; `true` if more may wait.
    fn serve_rx(&mut self, memory: &GuestMemory, ops: &mut EventOps) -> Result<bool, virtio_queue::Error> {
        let mut segments = Segments::default();
        let mut used = false;
        let mut more = true;
        for _ in 0..BUDGET {
            if !self.muxer.has_outgoing() {
                more = false;
                break;
            }
            let Some(chain) = next_chain_in(&mut self.rx.queue, memory)? else {
                if self.rx.queue.enable_notification(memory)? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            let written = match segments.gather(memory, chain, Permissions::Write) {
                Ok(()) => match self.fill(&segments, ops) {
                    Some(written) => written,
                    None => {
                        self.rx.queue.go_to_previous_position();
                        more = false;
                        break;
                    }
                },
                Err(malformed) => {
                    limited!(debug, %malformed, "a buffer of the guest was given back unused");
                    0
                }
            };
            self.rx.queue.add_used(memory, head, written)?;
            used = true;
        }
        if used && self.rx.queue.needs_notification(memory)? {
            self.interrupt.queue(RX);
        }
        Ok(more)
    }

    /// Puts the next packet into the guest's buffer: bytes written, or nothing if there is no packet.
    fn fill(&mut self, segments: &Segments<'_>, ops: &mut EventOps) -> Option<u32> {
        loop {
            let (id, limit) = match self.muxer.next_outgoing()? {
                Outgoing::Control(header) => {
                    segments.write_header(&header);
                    return Some(HEADER_BYTES as u32);
                }
                Outgoing::Data { id, limit } => (id, limit),
            };
            let limit = segments.payload_bytes().min(limit as usize);
            if limit == 0 {
                self.muxer.retry(id);
                return Some(0);
            }
            let Some(stream) = self.host.stream(id) else {
                self.muxer.host_failed(id);
                continue;
            };
            match segments.receive_payload(&stream.socket, limit) {
                Ok(0) if stream.hung_up => self.host_closed(id, ops),
                Ok(0) => {
                    self.muxer.host_ended(id);
                    self.close_orphan(id, ops);
                }
                Ok(bytes) => {
                    // Within `limit`, which came as a u32.
                    let bytes = bytes as u32;
                    segments.write_header(&self.muxer.host_sent(id, bytes)?);
                    return Some(HEADER_BYTES as u32 + bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.muxer.host_blocked(id),
                Err(error) => {
                    limited!(debug, %error, "a host socket failed");
                    self.host.close(id, ops);
                    self.muxer.host_failed(id);
                }
            }
        }
    }

    /// Moves packets both ways, as far as this turn goes.
    fn pump(&mut self, ops: &mut EventOps) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        if self.tx_pending {
            self.tx_pending = self.serve_tx(&memory, ops)?;
        }
        let rx_pending = self.serve_rx(&memory, ops)?;
        if self.tx_pending || rx_pending {
            // Signalled already if this fails, which is all that's wanted.
            let _ = self.again.write(1);
        }
        Ok(())
    }

    /// Drops every connection and stops taking new ones.
    fn give_up(&mut self, ops: &mut EventOps) {
        self.broken = true;
        self.muxer.clear();
        self.host.clear(ops);
        if let Err(error) = ops.remove(Events::empty(&*self.listener)) {
            limited!(warn, %error, "cannot stop watching the vsock listener");
        }
        self.interrupt.needs_reset();
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.dispatch(Token::from_data(events.data()), events.event_set(), ops);
        if self.broken {
            return;
        }
        if let Err(error) = self.pump(ops) {
            limited!(warn, %error, "the driver broke a vsock queue; it has to reset the device");
            self.give_up(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut kicks = vec![(0, &self.rx), (TX, &self.tx)];
        kicks.extend(self.event.as_ref().map(|event| (super::EVENT, event)));
        let added = kicks
            .into_iter()
            .try_for_each(|(index, queue)| {
                ops.add(Events::with_data(&queue.kick, Token::Kick(index).data(), EventSet::IN))
            })
            .and_then(|()| ops.add(Events::with_data(&self.again, Token::Again.data(), EventSet::IN)))
            .and_then(|()| ops.add(Events::with_data(&*self.listener, Token::Listener.data(), EventSet::IN)));
        if let Err(error) = added {
            limited!(error, %error, "cannot listen to the vsock queues");
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }
}
