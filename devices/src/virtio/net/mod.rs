//! virtio-net, VIRTIO 1.2 section 5.1: a network interface of the guest, whose other end is a TAP of the host or a stream socket.
//!
//! From the inside out: [`wire`], [`header`], [`mac`] and [`framing`] are plain data; [`pieces`] are lists of memory for one system
//! call, [`link`] the host's end in general, `tap` and `stream` the two that there are; `receive` and `transmit` are the two
//! directions, which share nothing but the link; `mmds` is a service that answers in the link's place; `handler` serves the queues with them on the event loop.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::{io, mem};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;

use self::handler::Handler;
use self::limits::Limiters;
use self::link::{Link, Offloads, is_gone};
use self::mmds::{Metadata, Mmds};
use self::receive::Waiting;
use self::shared::Shared;
use self::wire::{VirtioNetConfig, feature};
use super::device::read_bytes;
use super::state::{DeviceState, NetState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::OnLoop;
use crate::state::{RestoreError, Version, expect};

mod counters;
#[cfg(any(test, feature = "testing"))]
pub mod fake_link;
pub mod framing;
mod handler;
pub mod header;
mod limits;
pub mod link;
pub mod mac;
pub mod mmds;
pub mod pieces;
mod receive;
mod shared;
mod stream;
mod tap;
mod transmit;
pub mod wire;

pub use self::counters::{NetStatistics, Traffic};
pub use self::limits::RateLimits;
pub use self::mac::{MacAddress, ParseMacError};
pub use self::shared::NetHandle;
pub use self::stream::{StreamError, StreamLink};
pub use self::tap::{Tap, TapError};

/// Packets to the guest.
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];

/// Sizes of the largest packet that an interface may have (section 5.1.4.1 and the field's size).
pub const MTUS: std::ops::RangeInclusive<u16> = 68..=u16::MAX;

/// How to make a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetSettings {
    /// The hardware address.
    pub mac: MacAddress,
    /// Bytes of the largest packet without its link header, if the driver is to be told: in [`MTUS`].
    pub mtu: Option<u16>,
    /// Rate limits at first.
    pub limits: RateLimits,
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Such packets are too small.
    #[error("the largest packet of a network interface has {0} bytes: expected {least} to {most}", least = MTUS.start(), most = MTUS.end())]
    Mtu(u16),
    /// The system has no descriptor.
    #[error("cannot make the event of a network interface")]
    Event(#[source] io::Error),
    /// The system has no random bytes.
    #[error("cannot make the metadata service of a network interface")]
    Metadata(#[source] io::Error),
}

/// A network device with one pair of queues.
pub struct Net {
    link: Arc<dyn Link>,
    mtu: Option<u16>,
    shared: Arc<Shared>,
    active: Option<OnLoop<Handler>>,
    /// A packet of a device that is suspended, for which the guest had no room.
    waiting: Option<Waiting>,
    /// The limiters of a device that is not active.
    limiters: Limiters,
    mmds: Option<Arc<Mmds>>,
}

impl Net {
    /// A device whose packets go through `link`. It stops the event loop for no longer than a call that copies packets.
    ///
    /// # Errors
    /// The settings are invalid, or the system has no descriptor left.
    pub fn new(link: impl Link + 'static, settings: &NetSettings) -> Result<Self, NetError> {
        let NetSettings { mac, mtu, limits } = *settings;
        if let Some(mtu) = mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return Err(NetError::Mtu(mtu));
        }
        let shared = Arc::new(Shared::new(mac, limits).map_err(NetError::Event)?);
        let (link, limiters) = (Arc::new(link), Limiters::new(limits));
        Ok(Self { link, mtu, shared, active: None, waiting: None, limiters, mmds: None })
    }

    /// Has `metadata` at `address` on this interface, from the next activation on: what the guest sends there does not reach the link.
    /// Its connections are not part of the device's state.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn serve_metadata(&mut self, metadata: &Metadata, address: Ipv4Addr) -> Result<(), NetError> {
        let mmds = Mmds::new(metadata, address, self.mtu).map_err(NetError::Metadata)?;
        self.mmds = Some(Arc::new(mmds));
        Ok(())
    }

    /// The host's side of the device.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle { shared: self.shared.clone() }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.link.offloads() & feature::OFFLOADS
            | feature::MAC
            | feature::MRG_RXBUF
            | feature::STATUS
            | if self.mtu.is_some() { feature::MTU } else { 0 }
    }

    fn config_generation(&self) -> u8 {
        self.shared.generation()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = VirtioNetConfig {
            mac: self.shared.mac().bytes(),
            status: self.shared.status().into(),
            max_virtqueue_pairs: 1.into(),
            mtu: self.mtu.unwrap_or_default().into(),
        };
        read_bytes(config.as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = feature::effective(activation.features);
        let mut handler = Handler::new(&mut activation, &self.link, &self.shared, features, self.mtu)?;
        match self.link.set_offloads(Offloads::of(features)) {
            Ok(()) => {}
            // The handler finds out by itself.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(ActivateError::Host { what: "the offloads of the host's end", source }),
        }
        if let Some(waiting) = self.waiting.take() {
            handler.wait_again(waiting);
        }
        if let Some(mmds) = &self.mmds {
            handler.serve_metadata(mmds);
        }
        handler.set_limiters(mem::take(&mut self.limiters));
        self.active = Some(activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?);
        Ok(())
    }

    /// Packets wait on the host, as many as it keeps for a reader that is late.
    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let Some(handler) = self.active.take().and_then(OnLoop::take_back) else {
            return vec![None; QUEUE_SIZES.len()];
        };
        let (queues, waiting, limiters) = handler.into_parts();
        (self.waiting, self.limiters) = (waiting, limiters);
        queues
    }

    fn reset(&mut self) {
        let _ = self.suspend();
        self.waiting = None;
        if let Some(mmds) = &self.mmds {
            mmds.reset();
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            version: Version,
            features: self.features(),
            mac: self.shared.mac().bytes(),
            mtu: self.mtu,
            metadata: self.mmds.as_ref().map(|mmds| mmds.address()),
            limiters: self.limiters.save(self.shared.limits()),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut own = self.save();
        let (DeviceState::Net(own_net), DeviceState::Net(net)) = (&mut own, state) else {
            return expect("device state", state, &own);
        };
        own_net.limiters = net.limiters;
        expect("device state", state, &own)?;
        self.limiters = Limiters::restore(&net.limiters)?;
        *self.shared.limits.lock() = net.limiters.limits();
        Ok(())
    }
}

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
