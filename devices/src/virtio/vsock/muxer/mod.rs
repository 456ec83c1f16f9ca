//! Every connection of a device and all packets that wait for the guest, as plain data: no descriptor, no guest memory.
//!
//! The owner of the host sockets tells the muxer about packets and about sockets, and asks it for the next packet to
//! send. All memory is bounded: connections by number, each connection's buffer by the credit of the guest (out of one
//! budget for the device), resets by a queue that forgets the oldest, everything else by a flag in its connection.

use std::collections::{HashMap, VecDeque};

use bellows_memory::limited;

use super::connection::{Connection, Effect, Ports, Violation};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};

mod event;

pub use self::event::{Closing, Event, Load, Outgoing, Refused, TooManyConnections};

/// Connections that one device may have at the same time.
pub const MAX_CONNECTIONS: usize = 1024;

/// Resets that may wait for the guest. A guest that provokes more without making room for them loses the oldest.
const MAX_RESETS: usize = 1024;

/// Buffer that every connection gets for data that its host socket does not take yet.
const MIN_BUFFER: u32 = 4 << 10;

/// Buffer that a connection gets while there are few.
const MAX_BUFFER: u32 = 256 << 10;

/// Bytes that all connections together may promise on top of [`MIN_BUFFER`] each.
const SHARED_BUFFER: u32 = 12 << 20;

/// Bytes that all connections together may hold.
pub const MAX_BUFFERED: usize = SHARED_BUFFER as usize + MAX_CONNECTIONS * MIN_BUFFER as usize;

/// Entries that all queues for the guest together may have.
pub const MAX_WAITING: usize = MAX_CONNECTIONS + MAX_RESETS;

/// Ports that the host's ends of connections to the guest get.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// A connection of the muxer; given anew once the connection is closed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ConnectionId(pub u32);

struct Slot {
    connection: Connection,
    /// Whether it is in the muxer's queue of connections with a packet for the guest.
    queued: bool,
}

struct Reset {
    ports: Ports,
    kind: u16,
}

/// The connections of one device.
pub struct Muxer {
    guest_cid: u64,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, ConnectionId>,
    /// Connections with a packet for the guest, next first; each at most once.
    ready: VecDeque<ConnectionId>,
    resets: VecDeque<Reset>,
    shared_buffer: u32,
    next_host_port: u32,
    refused: Refused,
}

impl Muxer {
    /// A muxer for the guest with context identifier `guest_cid`, without connections.
    #[must_use]
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            shared_buffer: SHARED_BUFFER,
            next_host_port: HOST_PORTS.start,
            refused: Refused::default(),
        }
    }

    /// Forgets every connection and everything that waits for the guest.
    pub fn clear(&mut self) {
        *self = Self { refused: self.refused, ..Self::new(self.guest_cid) };
    }

    /// The connection `id`, if it is open.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.slots.get(id.0 as usize)?.as_ref().map(|slot| &slot.connection)
    }

    /// Open connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no connection is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packets and connections refused so far.
    #[must_use]
    pub const fn refused(&self) -> Refused {
        self.refused
    }

    /// The current sizes.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            connections: self.len(),
            buffered: self.slots.iter().flatten().map(|slot| slot.connection.backlog().capacity()).sum(),
            waiting: self.resets.len() + self.ready.len(),
        }
    }

    /// Takes a packet from the guest, of which `present` bytes of payload are there.
    pub fn receive(&mut self, header: &Header, present: usize) -> Event {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            self.refused.spoofed += 1;
            return Event::None;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let is_reset = header.op == Op::Reset.number();
        if header.kind != TYPE_STREAM {
            if !is_reset {
                self.push_reset(ports, header.kind);
            }
            return Event::None;
        }
        let Some(&id) = self.by_ports.get(&ports) else {
            if header.op == Op::Request.number() {
                return self.accept(ports, header);
            }
            if !is_reset {
                self.push_reset(ports, TYPE_STREAM);
            }
            return Event::None;
        };
        let Some(slot) = self.slot_mut(id) else { return Event::None };
        slot.connection.guest_credit(header.buf_alloc, header.fwd_cnt);
        match slot.connection.receive(header.op, header.len, header.flags, present) {
            Ok(effect) => self.carry_out(id, ports, effect),
            Err(violation) => {
                self.reset_violator(id, ports, violation);
                Event::Closed(id)
            }
        }
    }

    /// Opens a connection to the guest's port `guest_port`, on behalf of a host socket.
    ///
    /// # Errors
    /// There are too many connections already.
    pub fn connect(&mut self, guest_port: u32) -> Result<ConnectionId, TooManyConnections> {
        self.make_room()?;
        let mut ports = Ports { host: self.next_host_port, guest: guest_port };
        // There are more ports than connections, so this ends.
        while self.by_ports.contains_key(&ports) {
            ports.host = next_port(ports.host);
        }
        self.next_host_port = next_port(ports.host);
        let buf_alloc = self.promise_buffer();
        let id = self.insert(Connection::to_guest(ports, buf_alloc));
        self.schedule(id);
        Ok(id)
    }

    /// Records that the host socket that the guest asked for is connected.
    pub fn host_accepted(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_accepted);
    }

    /// Records that the host port that the guest asked for has no listener.
    pub fn host_refused(&mut self, id: ConnectionId) {
        self.abort(id);
    }

    /// Records that the host socket of `id` may have data to read.
    pub fn host_readable(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_readable);
    }

    /// Records that the host socket of `id` has no more data for now.
    pub fn host_blocked(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_blocked);
    }

    /// `bytes` bytes, no more than the limit given, were read from the host socket of `id`: the header that they need.
    pub fn host_sent(&mut self, id: ConnectionId, bytes: u32) -> Option<Header> {
        let guest_cid = self.guest_cid;
        let connection = &mut self.slot_mut(id)?.connection;
        connection.sent(bytes);
        let header = header(guest_cid, connection, Op::ReadWrite, 0, bytes);
        self.schedule(id);
        Some(header)
    }

    /// Records that the host socket of `id` is at its end of file. It may be closed if the connection is
    /// [orphaned](Connection::is_orphaned) by that; so it is with [`Self::host_deaf`] and [`Self::host_closed`].
    pub fn host_ended(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_ended);
    }

    /// Records that the host socket of `id` takes no more data.
    pub fn host_deaf(&mut self, id: ConnectionId) {
        self.change(id, Connection::host_deaf);
    }

    /// Records that the host closed the socket of `id` and all was read from it. `true` if the connection is gone with
    /// it; otherwise it stays until the guest ends it.
    pub fn host_closed(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.get(id) else { return true };
        if !connection.is_established() {
            self.abort(id);
            return true;
        }
        self.change(id, |connection| {
            connection.host_ended();
            connection.host_deaf();
        });
        self.close_if_finished(id) == Closing::Closed
    }

    /// Records that the host socket of `id` failed: the connection is gone.
    pub fn host_failed(&mut self, id: ConnectionId) {
        self.abort(id);
    }

    /// Gives `id` another turn after an [`Outgoing::Data`] that sent nothing.
    pub fn retry(&mut self, id: ConnectionId) {
        self.schedule(id);
    }

    /// Counts `bytes` bytes of the payload just accepted as written straight to the host socket.
    pub fn forwarded(&mut self, id: ConnectionId, bytes: u32) {
        self.change(id, |connection| connection.forwarded(bytes));
    }

    /// Room for `count` bytes of the payload just accepted that the host socket did not take.
    pub fn store(&mut self, id: ConnectionId, count: usize) -> Option<&mut [u8]> {
        self.slot_mut(id)?.connection.store(count)
    }

    /// Counts the oldest `count` bytes of the backlog of `id` as written to the host socket.
    pub fn flushed(&mut self, id: ConnectionId, count: usize) {
        self.change(id, |connection| connection.flushed(count));
    }

    /// Ends the connection if nothing is left to do for it, and returns the action that its host socket needs. Call it
    /// after [`Event::Shutdown`] and after every write to the host socket.
    pub fn close_if_finished(&mut self, id: ConnectionId) -> Closing {
        let Some(slot) = self.slot_mut(id) else { return Closing::Closed };
        if !slot.connection.is_finished() {
            return Closing::NotYet(slot.connection.host_duty());
        }
        if slot.connection.is_lingering() {
            self.remove(id);
        } else {
            self.abort(id);
        }
        Closing::Closed
    }

    /// Whether a packet for the guest is due.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The content of the next buffer that the guest offers. Connections take turns.
    pub fn next_outgoing(&mut self) -> Option<Outgoing> {
        if let Some(Reset { ports, kind }) = self.resets.pop_front() {
            return Some(Outgoing::Control(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind,
                op: Op::Reset.number(),
                ..Header::default()
            }));
        }
        let guest_cid = self.guest_cid;
        while let Some(id) = self.ready.pop_front() {
            let Some(slot) = self.slot_mut(id) else { continue };
            slot.queued = false;
            if let Some((op, flags)) = slot.connection.take_control() {
                let header = header(guest_cid, &mut slot.connection, op, flags, 0);
                self.schedule(id);
                return Some(Outgoing::Control(header));
            }
            match slot.connection.sendable() {
                0 => {}
                limit => return Some(Outgoing::Data { id, limit }),
            }
        }
        None
    }

    fn carry_out(&mut self, id: ConnectionId, ports: Ports, effect: Effect) -> Event {
        match effect {
            Effect::Reset => {
                if self.get(id).is_some_and(Connection::is_lingering) {
                    // The guest may use the ports for a new connection right away.
                    self.by_ports.remove(&ports);
                    self.unschedule(id);
                    return Event::None;
                }
                self.remove(id);
                return Event::Closed(id);
            }
            Effect::None | Effect::Established | Effect::Payload | Effect::Shutdown => self.schedule(id),
        }
        match effect {
            Effect::Established => Event::Established(id),
            Effect::Payload => Event::Payload(id),
            Effect::Shutdown => Event::Shutdown(id),
            Effect::None | Effect::Reset => Event::None,
        }
    }

    fn accept(&mut self, ports: Ports, header: &Header) -> Event {
        if self.make_room().is_err() {
            self.push_reset(ports, TYPE_STREAM);
            return Event::None;
        }
        let buf_alloc = self.promise_buffer();
        let mut connection = Connection::from_guest(ports, buf_alloc);
        connection.guest_credit(header.buf_alloc, header.fwd_cnt);
        let id = self.insert(connection);
        Event::Connect { id, port: ports.host }
    }

    fn reset_violator(&mut self, id: ConnectionId, ports: Ports, violation: Violation) {
        limited!(debug, host_port = ports.host, guest_port = ports.guest, %violation, "connection reset");
        self.refused.violations += 1;
        self.abort(id);
    }

    /// Makes room for a connection, if need be by removing one whose host is gone (so it has no socket to close) and
    /// whose guest never answered.
    fn make_room(&mut self) -> Result<(), TooManyConnections> {
        if self.len() < MAX_CONNECTIONS {
            return Ok(());
        }
        let orphan = (0..self.slots.len() as u32)
            .map(ConnectionId)
            .find(|id| self.get(*id).is_some_and(Connection::is_orphaned))
            .ok_or(TooManyConnections)?;
        self.abort(orphan);
        Ok(())
    }

    fn promise_buffer(&mut self) -> u32 {
        let extra = (self.shared_buffer / 8).min(MAX_BUFFER - MIN_BUFFER);
        self.shared_buffer -= extra;
        MIN_BUFFER + extra
    }

    fn insert(&mut self, connection: Connection) -> ConnectionId {
        let ports = connection.ports();
        let slot = Some(Slot { connection, queued: false });
        let id = match self.free.pop() {
            Some(free) => {
                self.slots[free as usize] = slot;
                ConnectionId(free)
            }
            None => {
                self.slots.push(slot);
                // At most MAX_CONNECTIONS.
                ConnectionId(self.slots.len() as u32 - 1)
            }
        };
        self.by_ports.insert(ports, id);
        id
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Ports> {
        self.unschedule(id);
        let slot = self.slots.get_mut(id.0 as usize)?.take()?;
        let ports = slot.connection.ports();
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        self.shared_buffer += slot.connection.buf_alloc() - MIN_BUFFER;
        self.free.push(id.0);
        Some(ports)
    }

    /// Removes the connection and tells the guest, unless the guest has forgotten it already.
    fn abort(&mut self, id: ConnectionId) {
        let lingering = self.get(id).is_some_and(Connection::is_lingering);
        if let Some(ports) = self.remove(id)
            && !lingering
        {
            self.push_reset(ports, TYPE_STREAM);
        }
    }

    fn push_reset(&mut self, ports: Ports, kind: u16) {
        if self.resets.len() == MAX_RESETS {
            self.resets.pop_front();
            self.refused.lost_resets += 1;
        }
        self.resets.push_back(Reset { ports, kind });
    }

    fn slot_mut(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    fn change(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        if let Some(slot) = self.slot_mut(id) {
            change(&mut slot.connection);
            self.schedule(id);
        }
    }

    /// Gives `id` a turn if it has a packet for the guest.
    fn schedule(&mut self, id: ConnectionId) {
        let Some(slot) = self.slot_mut(id) else { return };
        if !slot.queued && slot.connection.has_outgoing() {
            slot.queued = true;
            self.ready.push_back(id);
        }
    }

    fn unschedule(&mut self, id: ConnectionId) {
        let Some(slot) = self.slot_mut(id) else { return };
        if std::mem::take(&mut slot.queued) {
            self.ready.retain(|ready| *ready != id);
        }
    }
}

fn next_port(port: u32) -> u32 {
    if port + 1 == HOST_PORTS.end { HOST_PORTS.start } else { port + 1 }
}

fn header(guest_cid: u64, connection: &mut Connection, op: Op, flags: u32, len: u32) -> Header {
    let ports = connection.ports();
    let (buf_alloc, fwd_cnt) = connection.advertise();
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: ports.host,
        dst_port: ports.guest,
        len,
        kind: TYPE_STREAM,
        op: op.number(),
        flags,
        buf_alloc,
        fwd_cnt,
    }
}

#[cfg(test)]
#[path = "muxer_test.rs"]
mod tests;
