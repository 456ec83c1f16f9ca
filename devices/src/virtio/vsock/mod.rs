//! virtio-vsock, VIRTIO 1.2 section 5.10: streams between the guest and Unix sockets of the host.
//!
//! Host and guest find each other by Firecracker's convention. A host client connects to the device's socket, sends
//! `CONNECT <port>\n` and reads `OK <host port>\n` once a listener in the guest has accepted; a guest that connects to
//! port P of context 2 reaches the socket at the device's path with `_P` after it.
//!
//! From the inside out: [`packet`] and [`credit`] are the wire; [`connection`] is one stream and [`muxer`] all of them,
//! both plain data; `host` and `packet_buffer` are the host's sockets and the guest's buffers; `streams` joins muxer and
//! sockets; `handler` serves the queues with them on the event loop.

use std::path::Path;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;

use self::handler::Handler;
use self::listener::HostListener;
use self::packet::VirtioVsockConfig;
use self::streams::Streams;
use super::device::read_bytes;
use super::state::{DeviceState, VsockState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::OnLoop;
use crate::state::{RestoreError, Version, expect};

pub mod backlog;
mod bound;
mod connect_line;
pub mod connection;
pub mod credit;
#[cfg(any(test, feature = "testing"))]
pub mod exercise;
mod handler;
mod host;
mod listener;
pub mod muxer;
pub mod packet;
mod packet_buffer;
mod streams;

pub use self::bound::BoundSocket;
pub use self::listener::ListenError;

/// Packets to the guest.
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// Notices that the device itself changed.
const EVENT: u16 = 2;
const QUEUE_SIZES: &[u16] = &[256, 256, 64];

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1 << 0;
/// `VIRTIO_VSOCK_F_NO_IMPLIED_STREAM`: a driver that accepts it has streams only if it accepts them too.
const FEATURE_NO_IMPLIED_STREAM: u64 = 1 << 2;

/// Context identifiers that guests may have: the lower ones and the highest are reserved.
const GUEST_CIDS: std::ops::Range<u32> = 3..u32::MAX;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context identifier is reserved.
    #[error("{0} is not a guest's context identifier: expected 3 to {last}", last = GUEST_CIDS.end - 1)]
    ReservedCid(u32),
    /// The host's socket could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u32,
    listener: Arc<HostListener>,
    active: Option<OnLoop<Handler>>,
    /// The streams of a device that is suspended.
    suspended: Option<Streams>,
    /// Whether the guest must still be told that its connections are gone.
    transport_reset: bool,
}

impl Vsock {
    /// A device for the guest with context identifier `guest_cid`, which listens at `uds_path` from now on. Clients that
    /// come before the guest's driver is ready wait. The socket's file is removed when the device is dropped.
    ///
    /// # Errors
    /// The identifier is reserved, or the path is in use, too long or unusable; nothing is left behind.
    pub fn new(guest_cid: u32, uds_path: &Path) -> Result<Self, VsockError> {
        if !GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        let listener = Arc::new(HostListener::bind(uds_path)?);
        Ok(Self { guest_cid, listener, active: None, suspended: None, transport_reset: false })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_VSOCK as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM | FEATURE_NO_IMPLIED_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = VirtioVsockConfig { guest_cid: u64::from(self.guest_cid).into() };
        read_bytes(config.as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if activation.features & (FEATURE_STREAM | FEATURE_NO_IMPLIED_STREAM) == FEATURE_NO_IMPLIED_STREAM {
            return Err(ActivateError::MissingFeature("VIRTIO_VSOCK_F_STREAM"));
        }
        let new = || Streams::new(self.guest_cid.into(), self.listener.clone());
        let streams = self.suspended.take().unwrap_or_else(new);
        let handler = Handler::new(&mut activation, streams, self.transport_reset)?;
        self.active = Some(activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?);
        Ok(())
    }

    /// Streams stay, and their data waits in the host's sockets.
    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let Some(handler) = self.active.take().and_then(OnLoop::take_back) else {
            return vec![None; QUEUE_SIZES.len()];
        };
        let (streams, queues, transport_reset) = handler.into_parts();
        self.suspended = Some(streams);
        self.transport_reset = transport_reset;
        queues
    }

    fn reset(&mut self) {
        self.active = None;
        self.suspended = None;
        self.transport_reset = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { version: Version, guest_cid: self.guest_cid })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        expect("device state", state, &self.save())?;
        self.transport_reset = true;
        Ok(())
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
