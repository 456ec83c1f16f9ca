//! All streams of a device: joins the muxer's connections with the host's sockets.
//!
//! Data is copied once each way: from the host socket straight to the guest's buffer, and from the guest's buffer
//! straight to the host socket. Only data that a slow host socket does not take is kept, in its connection's backlog.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bellows_memory::limited;
use event_manager::{EventOps, EventSet, Events};

use super::connection::Connection;
use super::host::{ClientProgress, HostSockets, Token};
use super::listener::HostListener;
use super::muxer::{Closing, ConnectionId, Event, Muxer, Outgoing};
use super::packet::HEADER_BYTES;
use super::packet_buffer::PacketBuffer;
use crate::socket;

/// Clients that are taken in one turn.
const ACCEPT_BUDGET: usize = 16;

/// The streams of a device, and the clients that ask for one.
pub struct Streams {
    listener: Arc<HostListener>,
    muxer: Muxer,
    host: HostSockets,
}

impl Streams {
    /// No streams yet.
    pub fn new(guest_cid: u64, listener: Arc<HostListener>) -> Self {
        Self { listener, muxer: Muxer::new(guest_cid), host: HostSockets::new() }
    }

    /// Listens to all of the host's sockets. Data that is already there raises an event.
    ///
    /// # Errors
    /// The listener cannot be watched.
    pub fn listen(&mut self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&*self.listener, Token::Listener.data(), EventSet::IN))?;
        for id in self.host.watch_all(ops) {
            self.muxer.host_failed(id);
        }
        Ok(())
    }

    /// Drops every connection and stops taking new ones.
    pub fn give_up(&mut self, ops: &mut EventOps) {
        self.muxer.clear();
        self.host.clear(ops);
        if let Err(error) = ops.remove(Events::empty(&*self.listener)) {
            limited!(warn, %error, "cannot stop watching the vsock listener");
        }
    }

    /// Takes clients that wait at the device's socket.
    pub fn accept_clients(&mut self, ops: &mut EventOps) {
        for _ in 0..ACCEPT_BUDGET {
            if !self.host.accept(&self.listener, ops) {
                break;
            }
        }
    }

    /// Handles bytes from client `index`.
    pub fn client_event(&mut self, index: u32, ops: &mut EventOps) {
        if let ClientProgress::Wants(socket, port) = self.host.read_client(index, ops) {
            self.connect_to_guest(socket, port, ops);
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

    /// Handles an event of the host socket of `id`.
    pub fn stream_event(&mut self, id: ConnectionId, set: EventSet, ops: &mut EventOps) {
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

    /// Takes a packet of the guest.
    pub fn receive(&mut self, packet: &PacketBuffer<'_>, ops: &mut EventOps) {
        let header = packet.read_header();
        match self.muxer.receive(&header, packet.payload_bytes()) {
            Event::None => {}
            Event::Connect { id, port } => match self.host.connect(id, port, &self.listener, ops) {
                Ok(()) => self.muxer.host_accepted(id),
                Err(error) => {
                    limited!(debug, port, %error, "the guest's connection was refused");
                    self.muxer.host_refused(id);
                }
            },
            Event::Established(id) => self.established(id, header.dst_port, ops),
            Event::Payload(id) => self.payload(id, header.len as usize, packet, ops),
            Event::Shutdown(id) => self.close_if_finished(id, ops),
            Event::Closed(id) => self.host.close(id, ops),
        }
    }

    /// Whether a packet for the guest is due.
    pub fn has_outgoing(&self) -> bool {
        self.muxer.has_outgoing()
    }

    /// Puts the next packet into the guest's buffer: bytes written, or `None` without a packet.
    pub fn fill(&mut self, buffer: &PacketBuffer<'_>, ops: &mut EventOps) -> Option<u32> {
        loop {
            let (id, limit) = match self.muxer.next_outgoing()? {
                Outgoing::Control(header) => {
                    buffer.write_header(&header);
                    return Some(HEADER_BYTES as u32);
                }
                Outgoing::Data { id, limit } => (id, limit),
            };
            let limit = buffer.payload_bytes().min(limit as usize);
            if limit == 0 {
                self.muxer.retry(id);
                return Some(0);
            }
            let Some(stream) = self.host.stream(id) else {
                self.muxer.host_failed(id);
                continue;
            };
            match buffer.receive_payload(&stream.socket, limit) {
                Ok(0) if stream.hung_up => self.host_closed(id, ops),
                Ok(0) => {
                    self.muxer.host_ended(id);
                    self.close_orphan(id, ops);
                }
                Ok(bytes) => {
                    // Within `limit`, which came as a u32.
                    let bytes = bytes as u32;
                    buffer.write_header(&self.muxer.host_sent(id, bytes)?);
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

    fn established(&mut self, id: ConnectionId, host_port: u32, ops: &mut EventOps) {
        let line = format!("OK {host_port}\n");
        let Some(stream) = self.host.stream(id) else { return };
        match socket::send(&stream.socket, line.as_bytes()) {
            Ok(sent) if sent == line.len() => self.muxer.host_readable(id),
            // This is the first write to this socket, so a line fits while the reader is there.
            Ok(_) | Err(_) => {
                self.host.close(id, ops);
                self.muxer.host_failed(id);
            }
        }
    }

    /// Hands `len` bytes of accepted payload to the host socket, or keeps them for it.
    fn payload(&mut self, id: ConnectionId, len: usize, packet: &PacketBuffer<'_>, ops: &mut EventOps) {
        let Some(stream) = self.host.stream(id) else { return };
        let mut done = 0;
        // Nothing overtakes the backlog: while there is one, the socket is not writable.
        while done < len && stream.writable {
            match packet.send_payload(&stream.socket, done, len - done) {
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
            packet.copy_payload(done, room);
        }
    }

    /// Writes the backlog to the host socket of `id`, as much as it takes.
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
        self.close_if_finished(id, ops);
    }

    fn host_deaf(&mut self, id: ConnectionId, ops: &mut EventOps) {
        self.muxer.host_deaf(id);
        self.close_if_finished(id, ops);
    }

    fn close_if_finished(&mut self, id: ConnectionId, ops: &mut EventOps) {
        match self.muxer.close_if_finished(id) {
            Closing::Closed => self.host.close(id, ops),
            Closing::NotYet(duty) => {
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

    fn host_closed(&mut self, id: ConnectionId, ops: &mut EventOps) {
        self.host.close(id, ops);
        self.muxer.host_closed(id);
    }
}
