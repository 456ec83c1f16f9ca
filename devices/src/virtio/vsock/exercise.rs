//! Drives a [`Muxer`] from arbitrary bytes, for fuzzing and property tests: a hostile guest and host, and a model of
//! every stream that checks the invariants.

use std::collections::HashMap;

use super::connection::Connection;
use super::muxer::{Closing, ConnectionId, Event, Load, MAX_BUFFERED, MAX_CONNECTIONS, MAX_WAITING, Muxer, Outgoing};
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, Shutdown, TYPE_STREAM};

/// The guest's context identifier in [`exercise`].
pub const GUEST_CID: u64 = 3;

/// Operations that guests mostly send, and invalid ones.
const OPERATIONS: [u16; 16] = [1, 2, 5, 5, 5, 5, 5, 5, 6, 6, 7, 4, 3, 0, 8, 2];

/// Takes `bytes` as a sequence of guest packets, host socket events and turns of the guest's receive queue.
///
/// # Panics
/// An invariant is broken: more sent than the guest's credit, more kept than was promised, bytes lost or out of order,
/// a valid packet of the guest refused, or a bound of the muxer exceeded.
pub fn exercise(bytes: &[u8]) {
    let mut world = World { muxer: Muxer::new(GUEST_CID), streams: HashMap::new(), input: bytes };
    while !world.input.is_empty() {
        match world.byte() % 8 {
            0..=2 => world.guest_packet(),
            3 => world.raw_packet(),
            4 => world.host_connects(),
            5 => world.host_event(),
            6 => world.flush(),
            _ => world.fill_guest_buffer(),
        }
        let Load { connections, buffered, waiting } = world.muxer.load();
        assert!(connections <= MAX_CONNECTIONS && buffered <= MAX_BUFFERED && waiting <= MAX_WAITING);
        assert_eq!(connections, world.streams.len(), "a connection is leaked or forgotten");
    }
}

/// The model of a connection, from outside.
#[derive(Default)]
struct Stream {
    host_port: u32,
    guest_port: u32,
    /// The guest's latest values.
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    sent_to_guest: u32,
    /// The latest values told to the guest.
    told_fwd_cnt: u32,
    sent_by_guest: u32,
    delivered: u32,
    established: bool,
    told_shutdown: Shutdown,
    guest_shut: Shutdown,
    host_deaf: bool,
}

struct World<'a> {
    muxer: Muxer,
    streams: HashMap<ConnectionId, Stream>,
    input: &'a [u8],
}

impl World<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.input.split_first() else { return 0 };
        self.input = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A packet that is mostly valid.
    fn guest_packet(&mut self) {
        let ids = self.ids();
        let choice = self.byte();
        let (src_port, dst_port) = match ids.get(usize::from(choice) % (ids.len() + 1)) {
            Some(id) => (self.streams[id].guest_port, self.streams[id].host_port),
            None => (u32::from(self.byte() % 8), u32::from(self.byte() % 8)),
        };
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port,
            dst_port,
            kind: TYPE_STREAM,
            op: OPERATIONS[usize::from(self.byte()) % OPERATIONS.len()],
            flags: u32::from(self.byte() % 4),
            len: self.payload_len(ids.get(usize::from(choice) % (ids.len() + 1))),
            buf_alloc: self.number() % (64 << 10),
            fwd_cnt: match (self.byte() % 8, ids.get(usize::from(choice) % (ids.len() + 1))) {
                (0, _) => self.number(),
                (1..=3, Some(id)) => self.streams[id].sent_to_guest,
                (_, Some(id)) => self.streams[id].guest_fwd_cnt,
                (_, None) => 0,
            },
        };
        self.receive(header);
    }

    /// Any length, or one near the connection's room: the true room, or the room known to the guest.
    fn payload_len(&mut self, id: Option<&ConnectionId>) -> u32 {
        let choice = self.byte() % 8;
        let known = id.and_then(|id| Some((self.muxer.get(*id)?, &self.streams[id])));
        match known {
            Some((connection, stream)) if choice < 2 => {
                let in_flight = stream.sent_by_guest.wrapping_sub(stream.told_fwd_cnt);
                connection.buf_alloc().saturating_sub(in_flight) + u32::from(choice)
            }
            Some((connection, _)) if choice < 4 => {
                connection.buf_alloc() - connection.backlog().len() as u32 + u32::from(choice - 2)
            }
            _ => self.number() % (300 << 10),
        }
    }

    fn raw_packet(&mut self) {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|_| self.byte());
        self.receive(Header::from_bytes(&bytes));
    }

    fn receive(&mut self, header: Header) {
        let present = self.number() as usize % (320 << 10);
        let owner = self.streams.iter().find(|(id, stream)| {
            (stream.host_port, stream.guest_port) == (header.dst_port, header.src_port)
                && self.muxer.get(**id).is_some_and(|connection| !connection.is_lingering())
        });
        let owner = owner.map(|(id, _)| *id);
        let genuine = header.src_cid == GUEST_CID && header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        let well_behaved = owner.is_some_and(|id| self.may_send(id, &header, present));
        if let Some(stream) = owner.filter(|_| genuine).and_then(|id| self.streams.get_mut(&id)) {
            (stream.guest_buf_alloc, stream.guest_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        }
        let event = self.muxer.receive(&header, present);
        assert!(genuine || event == Event::None, "{event:?} for a packet that is not the guest's");
        match event {
            Event::None => {
                let data = owner.filter(|_| genuine && header.op == Op::ReadWrite.number());
                if let Some(stream) = data.and_then(|id| self.streams.get_mut(&id)) {
                    assert!(stream.host_deaf, "data that the host could have had was dropped: {header:?}");
                    stream.sent_by_guest = stream.sent_by_guest.wrapping_add(header.len);
                }
            }
            Event::Connect { id, port } => self.guest_connects(id, port, header),
            Event::Established(id) => {
                self.stream(id).established = true;
                self.muxer.host_readable(id);
            }
            Event::Payload(id) => {
                assert_eq!(Some(id), owner);
                self.payload(id, header.len);
            }
            Event::Shutdown(id) => {
                self.stream(id).guest_shut.add(Shutdown::from_flags(header.flags));
                self.close_if_finished(id);
            }
            Event::Closed(id) => {
                assert_eq!(Some(id), owner);
                assert!(!(genuine && well_behaved), "a packet within the rules ended its connection: {header:?}");
                self.streams.remove(&id);
            }
        }
        // New connections silently replace orphans.
        self.streams.retain(|id, _| self.muxer.get(*id).is_some());
    }

    /// Whether the guest, by the values told to it, may send this data.
    fn may_send(&self, id: ConnectionId, header: &Header, present: usize) -> bool {
        let stream = &self.streams[&id];
        let buf_alloc = self.muxer.get(id).map_or(0, Connection::buf_alloc);
        let in_flight = stream.sent_by_guest.wrapping_sub(stream.told_fwd_cnt);
        header.op == Op::ReadWrite.number()
            && stream.established
            && !stream.guest_shut.send
            && header.len as usize <= present
            && u64::from(in_flight) + u64::from(header.len) <= u64::from(buf_alloc)
    }

    fn guest_connects(&mut self, id: ConnectionId, port: u32, header: Header) {
        assert_eq!(port, header.dst_port);
        if self.byte().is_multiple_of(4) {
            self.muxer.host_refused(id);
            return;
        }
        self.muxer.host_accepted(id);
        self.streams.insert(
            id,
            Stream {
                host_port: port,
                guest_port: header.src_port,
                guest_buf_alloc: header.buf_alloc,
                guest_fwd_cnt: header.fwd_cnt,
                established: true,
                ..Stream::default()
            },
        );
    }

    /// Writes some of the payload at once and stores the rest; bytes are numbered, so that order can be checked.
    fn payload(&mut self, id: ConnectionId, len: u32) {
        let empty = self.muxer.get(id).is_some_and(|connection| connection.backlog().is_empty());
        let direct = if empty { self.number() % (len + 1) } else { 0 };
        let stream = self.stream(id);
        stream.delivered = stream.delivered.wrapping_add(direct);
        let first = stream.sent_by_guest.wrapping_add(direct);
        stream.sent_by_guest = stream.sent_by_guest.wrapping_add(len);
        self.muxer.forwarded(id, direct);
        let rest = (len - direct) as usize;
        let room = self.muxer.store(id, rest);
        assert!(room.is_some(), "no room for {rest} bytes that were accepted");
        for (number, byte) in (0..).zip(room.into_iter().flatten()) {
            *byte = first.wrapping_add(number) as u8;
        }
        let connection = self.muxer.get(id);
        assert!(connection.is_some_and(|it| it.backlog().len() <= it.buf_alloc() as usize));
    }

    fn host_connects(&mut self) {
        let guest_port = u32::from(self.byte() % 8);
        if let Ok(id) = self.muxer.connect(guest_port) {
            let host_port = self.muxer.get(id).map_or(0, |connection| connection.ports().host);
            self.streams.retain(|old, _| *old != id);
            self.streams.insert(id, Stream { host_port, guest_port, ..Stream::default() });
        }
    }

    fn host_event(&mut self) {
        let Some(id) = self.any() else { return };
        match self.byte() % 8 {
            0..=3 => self.muxer.host_readable(id),
            4 => self.muxer.host_blocked(id),
            5 if self.stream(id).established => {
                self.stream(id).host_deaf = true;
                self.muxer.host_deaf(id);
                self.close_if_finished(id);
            }
            6 => {
                self.stream(id).host_deaf = true;
                if self.muxer.host_closed(id) {
                    self.streams.remove(&id);
                }
            }
            7 => {
                self.muxer.host_failed(id);
                self.streams.remove(&id);
            }
            _ => {}
        }
    }

    fn flush(&mut self) {
        let Some(id) = self.any() else { return };
        let count = self.number() as usize;
        let Some(connection) = self.muxer.get(id) else { return };
        let front = connection.backlog().front();
        let count = count % (front.len() + 1);
        let delivered = self.streams[&id].delivered;
        for (number, byte) in (0..).zip(&front[..count]) {
            assert_eq!(*byte, delivered.wrapping_add(number) as u8, "bytes were lost or out of order");
        }
        self.stream(id).delivered = delivered.wrapping_add(count as u32);
        self.muxer.flushed(id, count);
        self.close_if_finished(id);
    }

    fn fill_guest_buffer(&mut self) {
        match self.muxer.next_outgoing() {
            None => {}
            Some(Outgoing::Control(header)) => self.check_outgoing(&header),
            Some(Outgoing::Data { id, limit }) => {
                assert!(limit > 0);
                match self.byte() % 8 {
                    0 => self.muxer.host_blocked(id),
                    1 => self.muxer.host_ended(id),
                    2 => self.muxer.retry(id),
                    _ => {
                        let bytes = self.number().clamp(1, limit);
                        let header = self.muxer.host_sent(id, bytes).unwrap_or_default();
                        self.check_outgoing(&header);
                    }
                }
            }
        }
    }

    fn check_outgoing(&mut self, header: &Header) {
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.dst_cid, GUEST_CID);
        if header.op == Op::Reset.number() {
            assert_eq!(header.len, 0);
            return;
        }
        let stream = self.streams.iter_mut().find(|(id, stream)| {
            (stream.host_port, stream.guest_port) == (header.src_port, header.dst_port)
                && self.muxer.get(**id).is_some_and(|connection| !connection.is_lingering())
        });
        let Some((id, stream)) = stream else { panic!("a packet of a connection that is gone: {header:?}") };
        assert_eq!(Some(header.buf_alloc), self.muxer.get(*id).map(Connection::buf_alloc));
        stream.told_fwd_cnt = header.fwd_cnt;
        if header.op == Op::ReadWrite.number() {
            assert!(header.len > 0 && stream.established && !stream.told_shutdown.send && !stream.guest_shut.receive);
            stream.sent_to_guest = stream.sent_to_guest.wrapping_add(header.len);
            let in_flight = stream.sent_to_guest.wrapping_sub(stream.guest_fwd_cnt);
            assert!(in_flight <= stream.guest_buf_alloc, "{in_flight} bytes in flight: {header:?}");
        } else {
            assert_eq!(header.len, 0);
        }
        if header.op == Op::Shutdown.number() {
            stream.told_shutdown.add(Shutdown::from_flags(header.flags));
        }
    }

    fn close_if_finished(&mut self, id: ConnectionId) {
        if self.muxer.close_if_finished(id) == Closing::Closed {
            self.streams.remove(&id);
        }
    }

    fn stream(&mut self, id: ConnectionId) -> &mut Stream {
        self.streams.entry(id).or_default()
    }

    fn ids(&self) -> Vec<ConnectionId> {
        let mut ids: Vec<_> = self.streams.keys().copied().collect();
        ids.sort_by_key(|id| id.0);
        ids
    }

    fn any(&mut self) -> Option<ConnectionId> {
        let ids = self.ids();
        let choice = usize::from(self.byte());
        if ids.is_empty() { None } else { Some(ids[choice % ids.len()]) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn holds_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            exercise(&bytes);
        }
    }
}
