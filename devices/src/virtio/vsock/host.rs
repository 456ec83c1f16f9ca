//! The host's sockets of one device: clients that have not sent their line yet, and one stream per connection.
//!
//! Every socket is watched edge-triggered, for reading and writing: its readiness is remembered here and in its
//! connection until the socket would block. A socket leaves the event loop before it is closed.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use bellows_memory::limited;
use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::connect_line::ConnectLine;
use super::connection::HostDuty;
use super::listener::HostListener;
use super::muxer::ConnectionId;
use crate::socket;

/// Most clients between `connect` and the end of their `CONNECT` line; a further one replaces the oldest.
const MAX_CLIENTS: usize = 64;

/// The subject of an event on the loop; travels with the event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Token {
    /// The driver kicked a queue.
    Kick(u16),
    /// A host client connects.
    Listener,
    /// A client without a connection.
    Client(u32),
    /// A connection's socket.
    Stream(ConnectionId),
}

impl Token {
    const FIRST_CLIENT: u32 = 16;
    const FIRST_STREAM: u32 = 1 << 10;

    /// The token as event data.
    #[must_use]
    pub const fn data(self) -> u32 {
        match self {
            Self::Kick(queue) => queue as u32,
            Self::Listener => 9,
            Self::Client(index) => Self::FIRST_CLIENT + index,
            Self::Stream(id) => Self::FIRST_STREAM + id.0,
        }
    }

    /// The token that event data stands for.
    #[must_use]
    pub const fn from_data(data: u32) -> Self {
        match data {
            9 => Self::Listener,
            Self::FIRST_STREAM.. => Self::Stream(ConnectionId(data - Self::FIRST_STREAM)),
            Self::FIRST_CLIENT.. => Self::Client(data - Self::FIRST_CLIENT),
            // The other values are queues.
            queue => Self::Kick(queue as u16),
        }
    }
}

/// The socket of one connection.
pub struct HostStream {
    /// The socket.
    pub socket: UnixStream,
    /// Whether the socket may take data.
    pub writable: bool,
    /// Whether the host closed its end.
    pub hung_up: bool,
}

struct Client {
    socket: UnixStream,
    line: ConnectLine,
    /// Its number in the order of arrival.
    age: u64,
}

/// The state of a client after it sent bytes.
#[derive(Debug)]
pub enum ClientProgress {
    /// Its line is not complete.
    Waiting,
    /// It asks for this guest port. Its socket is still on the loop.
    Wants(UnixStream, u32),
    /// It is gone.
    Gone,
}

/// The host's sockets of one device.
pub struct HostSockets {
    clients: Vec<Option<Client>>,
    streams: Vec<Option<HostStream>>,
    accepted: u64,
    /// Closed for a moment when descriptors run out, to accept and turn away a client, which would otherwise wake the
    /// loop forever.
    reserve: Option<EventFd>,
}

impl HostSockets {
    /// No sockets yet.
    #[must_use]
    pub fn new() -> Self {
        Self { clients: Vec::new(), streams: Vec::new(), accepted: 0, reserve: reserve() }
    }

    /// Watches all sockets again after a change of event loop. Closes those that cannot be watched, and returns the
    /// connections among them.
    pub fn watch_all(&mut self, ops: &mut EventOps) -> Vec<ConnectionId> {
        for (index, client) in (0..).zip(&mut self.clients) {
            client.take_if(|client| !watch(&client.socket, Token::Client(index), ops));
        }
        let closed = |(index, stream): (u32, &mut Option<HostStream>)| {
            let id = ConnectionId(index);
            stream.take_if(|stream| !watch(&stream.socket, Token::Stream(id), ops)).map(|_| id)
        };
        (0..).zip(&mut self.streams).filter_map(closed).collect()
    }

    /// Takes the next client of `listener`; `false` if none waits.
    pub fn accept(&mut self, listener: &HostListener, ops: &mut EventOps) -> bool {
        match listener.accept() {
            Ok(socket) => {
                self.add_client(socket, ops);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                limited!(warn, %error, "a vsock client was turned away");
                self.reserve = None;
                drop(listener.accept());
                self.reserve = reserve();
                false
            }
        }
    }

    fn add_client(&mut self, socket: UnixStream, ops: &mut EventOps) {
        let index = self.clients.iter().position(Option::is_none).unwrap_or_else(|| {
            if self.clients.len() < MAX_CLIENTS {
                self.clients.push(None);
                return self.clients.len() - 1;
            }
            let age = |index: &usize| self.clients[*index].as_ref().map(|client| client.age);
            (0..MAX_CLIENTS).min_by_key(age).unwrap_or(0)
        });
        self.drop_client(index, ops);
        // No more than MAX_CLIENTS.
        if watch(&socket, Token::Client(index as u32), ops) {
            self.accepted += 1;
            self.clients[index] = Some(Client { socket, line: ConnectLine::default(), age: self.accepted });
        }
    }

    /// Reads the bytes that client `index` has sent.
    pub fn read_client(&mut self, index: u32, ops: &mut EventOps) -> ClientProgress {
        let index = index as usize;
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return ClientProgress::Gone };
        match read_line(client) {
            Ok(None) => ClientProgress::Waiting,
            Ok(Some(port)) => match self.clients[index].take() {
                Some(client) => ClientProgress::Wants(client.socket, port),
                None => ClientProgress::Gone,
            },
            Err(error) => {
                limited!(debug, %error, "a vsock client did not ask for a connection");
                self.drop_client(index, ops);
                ClientProgress::Gone
            }
        }
    }

    fn drop_client(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(client) = self.clients.get_mut(index).and_then(Option::take) {
            unwatch(&client.socket, ops);
        }
    }

    /// Makes a client's socket, which is on the loop, the socket of connection `id`.
    pub fn adopt(&mut self, id: ConnectionId, socket: UnixStream, ops: &mut EventOps) -> bool {
        if let Err(error) = ops.modify(events(&socket, Token::Stream(id))) {
            limited!(warn, %error, "cannot watch a vsock client");
            unwatch(&socket, ops);
            return false;
        }
        self.insert(id, socket);
        true
    }

    /// Connects to the listener of host port `port`, for connection `id`.
    ///
    /// # Errors
    /// Nothing listens there, or descriptors ran out.
    pub fn connect(
        &mut self,
        id: ConnectionId,
        port: u32,
        listener: &HostListener,
        ops: &mut EventOps,
    ) -> io::Result<()> {
        let socket = socket::connect(&listener.port_path(port))?;
        if !watch(&socket, Token::Stream(id), ops) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.insert(id, socket);
        Ok(())
    }

    fn insert(&mut self, id: ConnectionId, socket: UnixStream) {
        let index = id.0 as usize;
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index] = Some(HostStream { socket, writable: true, hung_up: false });
    }

    /// The socket of `id`, unless it is closed.
    pub fn stream(&mut self, id: ConnectionId) -> Option<&mut HostStream> {
        self.streams.get_mut(id.0 as usize)?.as_mut()
    }

    /// Closes the socket of `id`, if it is open.
    pub fn close(&mut self, id: ConnectionId, ops: &mut EventOps) {
        if let Some(stream) = self.streams.get_mut(id.0 as usize).and_then(Option::take) {
            unwatch(&stream.socket, ops);
        }
    }

    /// Takes the actions on the socket of `id` that its connection asks for.
    pub fn perform(&mut self, id: ConnectionId, duty: HostDuty) {
        let Some(stream) = self.stream(id) else { return };
        for (due, how) in [(duty.shut_read, Shutdown::Read), (duty.shut_write, Shutdown::Write)] {
            if due && let Err(error) = stream.socket.shutdown(how) {
                // The host has closed its end; its own event reports that.
                limited!(debug, %error, "shutdown came too late");
            }
        }
    }

    /// Closes everything.
    pub fn clear(&mut self, ops: &mut EventOps) {
        for client in self.clients.drain(..).flatten() {
            unwatch(&client.socket, ops);
        }
        for stream in self.streams.drain(..).flatten() {
            unwatch(&stream.socket, ops);
        }
    }
}

/// A spare descriptor; `None` if descriptors have already run out.
fn reserve() -> Option<EventFd> {
    EventFd::new(EFD_CLOEXEC).ok()
}

/// Reads a client's line, and no byte after it.
fn read_line(client: &mut Client) -> io::Result<Option<u32>> {
    loop {
        let mut bytes = [0; super::connect_line::MAX_LINE];
        let bytes = &mut bytes[..client.line.room()];
        let come = match socket::peek(&client.socket, bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(come) => come,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let wanted = ConnectLine::wanted(&bytes[..come]);
        let got = socket::receive(&client.socket, &mut bytes[..wanted])?;
        let port = client.line.push(&bytes[..got]).map_err(io::Error::other)?;
        if port.is_some() {
            return Ok(port);
        }
    }
}

fn events(socket: &impl AsRawFd, token: Token) -> Events {
    let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    Events::with_data(socket, token.data(), set)
}

fn watch(socket: &impl AsRawFd, token: Token, ops: &mut EventOps) -> bool {
    let added = ops.add(events(socket, token));
    if let Err(error) = &added {
        limited!(warn, %error, "cannot watch a vsock socket");
    }
    added.is_ok()
}

fn unwatch(socket: &impl AsRawFd, ops: &mut EventOps) {
    if let Err(error) = ops.remove(Events::empty(socket)) {
        limited!(warn, %error, "cannot stop watching a vsock socket");
    }
}
