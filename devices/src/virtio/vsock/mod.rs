//! virtio-vsock, VIRTIO 1.2 section 5.10: streams between the guest and Unix sockets of the host.
//!
//! Host and guest find each other by Firecracker's convention. A host client connects to the device's socket, sends
//! `CONNECT <port>\n` and reads `OK <host port>\n` once a listener in the guest has accepted; a guest that connects to
//! port P of context 2 reaches whoever listens at the device's socket path with `_P` after it.
//!
//! From the inside out: [`packet`] and [`credit`] are the wire; [`connection`] is one stream and [`muxer`] all of them,
//! both plain data; `host` and `segments` are the host's sockets and the guest's buffers; `handler` joins them on the
//! event loop. [`exercise`] drives the plain part from any bytes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::handler::Handler;
use self::listener::HostListener;
use super::device::read_bytes;
use super::worker::OnLoop;
use super::{ActivateError, Activation, VirtioDevice};

pub mod backlog;
mod bound;
mod connect_line;
pub mod connection;
pub mod credit;
pub mod exercise;
mod handler;
mod host;
mod listener;
pub mod muxer;
pub mod packet;
mod segments;
mod socket;

pub use self::bound::BoundSocket;
pub use self::listener::ListenError;

/// Packets to the guest.
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// Notices that the device itself changed; there never are any.
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
    #[error("{0} is not a guest's context identifier: 3 is the lowest, {last} the highest", last = GUEST_CIDS.end - 1)]
    ReservedCid(u32),
    /// The host's socket could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No descriptor is left.
    #[error("cannot make the vsock device's eventfd")]
    Event(#[source] io::Error),
}

/// A vsock device.
pub struct Vsock {
    guest_cid: u32,
    listener: Arc<HostListener>,
    /// What the handler wakes itself with.
    again: Arc<EventFd>,
    active: Option<OnLoop>,
}

impl Vsock {
    /// A device for the guest with context identifier `guest_cid`, which listens at `uds_path` from now on. Clients that
    /// come before the guest's driver is ready wait. The socket's file is removed when the device is dropped.
    ///
    /// # Errors
    /// The identifier is reserved, or the path is in use, too long or can't be used; nothing is left behind.
    pub fn new(guest_cid: u32, uds_path: &Path) -> Result<Self, VsockError> {
        if !GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VsockError::Event)?;
        let listener = Arc::new(HostListener::bind(uds_path)?);
        Ok(Self { guest_cid, listener, again: Arc::new(again), active: None })
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
        read_bytes(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if activation.features & (FEATURE_STREAM | FEATURE_NO_IMPLIED_STREAM) == FEATURE_NO_IMPLIED_STREAM {
            return Err(ActivateError::MissingFeature("VIRTIO_VSOCK_F_STREAM"));
        }
        let mut take = |index: u16| activation.queues.get_mut(usize::from(index)).and_then(Option::take);
        let rx = take(RX).ok_or(ActivateError::MissingQueue(RX))?;
        let tx = take(TX).ok_or(ActivateError::MissingQueue(TX))?;
        let event = take(EVENT);
        let cid = u64::from(self.guest_cid);
        let (listener, again) = (self.listener.clone(), self.again.clone());
        let handler = Handler::new(cid, listener, again, activation.memory, activation.interrupt, rx, tx, event);
        self.active = Some(OnLoop::start(&activation.event_loop, Box::new(handler))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
