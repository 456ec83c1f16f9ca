//! Messages from the muxer to the owner of the host sockets.

use super::{ConnectionId, MAX_CONNECTIONS};
use crate::virtio::vsock::connection::HostDuty;
use crate::virtio::vsock::packet::Header;

/// The device has the most connections that it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the device already has {MAX_CONNECTIONS} connections, the most it may have")]
pub struct TooManyConnections;

/// The action that a packet from the guest requires of the owner of the host sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// Nothing.
    None,
    /// Connect to host port `port`, then call [`Muxer::host_accepted`](super::Muxer::host_accepted) or [`Muxer::host_refused`](super::Muxer::host_refused).
    Connect {
        /// The new connection.
        id: ConnectionId,
        /// The host port that the guest asks for.
        port: u32,
    },
    /// The guest accepted: tell the host.
    Established(ConnectionId),
    /// The packet's payload is for the host: write it, call [`Muxer::forwarded`](super::Muxer::forwarded) for what was taken and put the rest in
    /// [`Muxer::store`](super::Muxer::store).
    Payload(ConnectionId),
    /// A direction ended: call [`Muxer::close_if_finished`](super::Muxer::close_if_finished).
    Shutdown(ConnectionId),
    /// The connection is gone: close its host socket.
    Closed(ConnectionId),
}

/// The content of the next buffer that the guest offers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outgoing {
    /// A packet without payload.
    Control(Header),
    /// Up to `limit` bytes from the host socket of `id`. Exactly one call follows, by what reading gave:
    /// [`Muxer::host_sent`](super::Muxer::host_sent), [`Muxer::host_blocked`](super::Muxer::host_blocked),
    /// [`Muxer::host_ended`](super::Muxer::host_ended), [`Muxer::host_closed`](super::Muxer::host_closed),
    /// [`Muxer::host_failed`](super::Muxer::host_failed) or, if the guest's buffer has no room,
    /// [`Muxer::retry`](super::Muxer::retry).
    Data {
        /// The connection.
        id: ConnectionId,
        /// Bytes that the guest has room for; not zero.
        limit: u32,
    },
}

/// The action that [`Muxer::close_if_finished`](super::Muxer::close_if_finished) requires of the owner of the host socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closing {
    /// The connection goes on after this.
    NotYet(HostDuty),
    /// The connection is gone: close its host socket.
    Closed,
}

/// Counts of refused packets and connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refused {
    /// Packets with a context that is not the guest's or the host's.
    pub spoofed: u64,
    /// Connections reset because the guest broke the protocol.
    pub violations: u64,
    /// Resets dropped because the guest made no room for them.
    pub lost_resets: u64,
}

/// The sizes of the muxer at a moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Open connections; never more than [`MAX_CONNECTIONS`].
    pub connections: usize,
    /// Bytes that connections hold for host sockets that would block; never more than [`MAX_BUFFERED`](super::MAX_BUFFERED).
    pub buffered: usize,
    /// Packets and connections that wait for buffers of the guest; never more than [`MAX_WAITING`](super::MAX_WAITING).
    pub waiting: usize,
}
