//! One connection of the service: requests in, answers out, one after the other.

use std::collections::VecDeque;
use std::time::Instant;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::http::{MAX_REQUEST, Service};

/// Where clients connect to.
pub(super) const PORT: u16 = 80;
/// Bytes of each of a connection's two buffers.
const BUFFER: usize = 8 << 10;

/// A connection, or room for one.
pub(super) struct Connection {
    handle: SocketHandle,
    /// Whether it waited for a client when it was last looked at.
    waited: bool,
    /// What of a request is here.
    request: Vec<u8>,
    /// What of an answer is left to be sent.
    answer: VecDeque<u8>,
    /// No further request is taken.
    last: bool,
    /// When it did something the last time.
    pub(super) used: u64,
}

impl Connection {
    /// Room for a connection, with a socket in `sockets`.
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let handle = sockets.add(socket);
        Self { handle, waited: false, request: Vec::new(), answer: VecDeque::new(), last: false, used: 0 }
    }

    /// Whether it waits for a client.
    pub(super) fn waits(&self, sockets: &SocketSet<'_>) -> bool {
        sockets.get::<Socket<'_>>(self.handle).is_listening()
    }

    /// Whether there is no connection.
    pub(super) fn is_free(&self, sockets: &SocketSet<'_>) -> bool {
        !sockets.get::<Socket<'_>>(self.handle).is_open()
    }

    /// Waits for a client.
    pub(super) fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        self.begin_anew(sockets);
        self.waited = true;
    }

    /// Ends the connection. The client is told as soon as there is room for that.
    pub(super) fn abort(&self, sockets: &mut SocketSet<'static>) {
        sockets.get_mut::<Socket<'_>>(self.handle).abort();
    }

    /// Ends the connection; the client is not told.
    pub(super) fn forget(&mut self, sockets: &mut SocketSet<'static>) {
        self.begin_anew(sockets).close();
        self.waited = false;
    }

    fn begin_anew<'a>(&mut self, sockets: &'a mut SocketSet<'static>) -> &'a mut Socket<'static> {
        self.request.clear();
        self.answer.clear();
        self.last = false;
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        socket.abort();
        // It is closed, and the port is not 0.
        let _ = socket.listen(PORT);
        socket
    }

    /// Moves what can move. Returns whether something did.
    pub(super) fn serve(&mut self, sockets: &mut SocketSet<'static>, service: &mut Service, now: Instant) -> bool {
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        let mut is_busy = self.waited && !socket.is_listening();
        if is_busy {
            self.waited = false;
        }
        if self.answer.is_empty() && !self.last {
            is_busy |= self.receive(socket);
            if !self.request.is_empty()
                && let Some(answer) = service.answer(&self.request, now)
            {
                self.request.drain(..answer.taken);
                self.answer = answer.bytes.into();
                self.last = answer.last;
                is_busy = true;
            }
        }
        if socket.can_send() && !self.answer.is_empty() {
            let sent = socket.send_slice(self.answer.as_slices().0).unwrap_or(0);
            self.answer.drain(..sent);
            is_busy |= sent > 0;
        }
        let client_is_done = socket.state() == State::CloseWait && !socket.can_recv();
        if self.answer.is_empty() && (self.last || client_is_done) && socket.may_send() {
            socket.close();
            is_busy = true;
        }
        is_busy
    }

    /// Takes in what fits of a request. Returns whether there was something.
    fn receive(&mut self, socket: &mut Socket<'_>) -> bool {
        let room = MAX_REQUEST - self.request.len();
        let received = socket.recv(|bytes| {
            let taken = bytes.len().min(room);
            self.request.extend_from_slice(&bytes[..taken]);
            (taken, taken)
        });
        received.is_ok_and(|taken| taken > 0)
    }
}
