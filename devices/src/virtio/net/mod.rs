//! virtio-net, VIRTIO 1.2 section 5.1: a network interface of the guest, whose other end is a TAP of the host or a stream socket.
//!
//! From the inside out: [`wire`], [`header`], [`mac`] and [`framing`] are plain data; [`pieces`] are lists of memory for one system
//! call, [`link`] the host's end in general, `tap` and `stream` the two that there are; `receive` and `transmit` are the two
//! directions, which share nothing but the link, and `pair` is both with their queues; `mmds` is a service that answers in the link's
//! place; `control` are the driver's commands; `handler` serves all of that on the event loop. With `vhost` the host's kernel does it,
//! and the event loop has the commands alone.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::{io, iter, mem};

use bellows_memory::limited;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;

use self::handler::{Handler, Parts};
use self::limits::Limiters;
use self::link::{Link, Offloads, is_gone};
use self::mmds::{Metadata, Mmds};
use self::receive::Waiting;
use self::shared::Shared;
use self::vhost::KernelHandler;
use self::wire::{VirtioNetConfig, feature};
use super::device::read_bytes;
use super::state::{DeviceState, NetState, QueuePairsState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::OnLoop;
use crate::state::{RestoreError, Version, expect};

mod control;
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
mod pair;
pub mod pieces;
mod receive;
mod shared;
mod stream;
mod tap;
mod transmit;
mod vhost;
pub mod wire;

pub use self::counters::{NetStatistics, Traffic};
pub use self::limits::RateLimits;
pub use self::mac::{MacAddress, ParseMacError};
pub use self::shared::NetHandle;
pub use self::stream::{StreamError, StreamLink};
pub use self::tap::{Tap, TapError};
pub use self::vhost::{TooManyPieces, Vhost, VhostError};

/// Packets to the guest.
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
const QUEUE_SIZE: u16 = 256;
/// Of the control queue: a driver sends one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Most pairs of queues of an interface.
pub const MAX_QUEUE_PAIRS: usize = 16;

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
    /// There are too few or too many ends on the host.
    #[error("a network interface has {0} pairs of queues: expected 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs(usize),
    /// Such packets are too small.
    #[error("the largest packet of a network interface has {0} bytes: expected {least} to {most}", least = MTUS.start(), most = MTUS.end())]
    Mtu(u16),
    /// There are more or fewer pairs of queues in the kernel.
    #[error("vhost-net is open for {0} pairs of queues: expected {1}, as the host's end has")]
    VhostPairs(usize, usize),
    /// The monitor sees no packet.
    #[error("a network interface that vhost-net serves has no {0}: the monitor does not see its packets")]
    Unseen(&'static str),
    /// The system has no descriptor.
    #[error("cannot make the event of a network interface")]
    Event(#[source] io::Error),
    /// The system has no random bytes.
    #[error("cannot make the metadata service of a network interface")]
    Metadata(#[source] io::Error),
}

/// A network device.
pub struct Net {
    /// One for each pair of queues.
    links: Vec<Arc<dyn Link>>,
    queue_sizes: Vec<u16>,
    mtu: Option<u16>,
    shared: Arc<Shared>,
    active: Option<Active>,
    /// What serves the queues in place of this process.
    vhost: Option<Vhost>,
    /// Packets of a device that is suspended, for which the guest had no room, by pair of queues.
    waiting: Vec<Option<Waiting>>,
    /// Pairs of queues that the driver of a device that is not active uses.
    used_pairs: u16,
    /// The limiters of a device that is not active.
    limiters: Limiters,
    mmds: Option<Arc<Mmds>>,
}

/// Who serves an active device.
enum Active {
    Monitor(OnLoop<Handler>),
    Kernel(OnLoop<KernelHandler>),
}

impl Net {
    /// A device with one pair of queues, whose packets go through `link`. It stops the event loop for no longer than a call that copies
    /// packets.
    ///
    /// # Errors
    /// The settings are invalid, or the system has no descriptor left.
    pub fn new(link: impl Link + 'static, settings: &NetSettings) -> Result<Self, NetError> {
        Self::with_queue_pairs(vec![link], settings)
    }

    /// A device with a pair of queues for each of `links`, which lead to the same interface of the host. Only the first is used until the
    /// driver says otherwise (VIRTIO 1.2, section 5.1.6.5.6). One event loop serves all, and the limits are for all together.
    ///
    /// # Errors
    /// There are too many, the settings are invalid, or the system has no descriptor left.
    pub fn with_queue_pairs(links: Vec<impl Link + 'static>, settings: &NetSettings) -> Result<Self, NetError> {
        let NetSettings { mac, mtu, limits } = *settings;
        if !(1..=MAX_QUEUE_PAIRS).contains(&links.len()) {
            return Err(NetError::QueuePairs(links.len()));
        }
        if let Some(mtu) = mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return Err(NetError::Mtu(mtu));
        }
        // One pair needs no commands.
        let control = (links.len() > 1).then_some(CONTROL_QUEUE_SIZE);
        let pairs = iter::repeat_n(QUEUE_SIZE, usize::from(pair::QUEUES) * links.len());
        Ok(Self {
            links: links.into_iter().map(|link| Arc::new(link) as Arc<dyn Link>).collect(),
            queue_sizes: pairs.chain(control).collect(),
            mtu,
            shared: Arc::new(Shared::new(mac, limits).map_err(NetError::Event)?),
            active: None,
            waiting: Vec::new(),
            used_pairs: 1,
            limiters: Limiters::new(limits),
            mmds: None,
            vhost: None,
        })
    }

    /// [`Net::with_queue_pairs`], with queues that the host's kernel serves. Nothing is counted.
    ///
    /// # Errors
    /// The settings are invalid or have rate limits, `vhost` has another number of pairs, or the system has no descriptor left.
    pub fn with_vhost(links: Vec<Tap>, settings: &NetSettings, vhost: Vhost) -> Result<Self, NetError> {
        Self::served_by(vhost, links, settings)
    }

    fn served_by(vhost: Vhost, links: Vec<impl Link + 'static>, settings: &NetSettings) -> Result<Self, NetError> {
        if settings.limits != RateLimits::default() {
            return Err(NetError::Unseen("rate limits"));
        }
        if links.len() != vhost.pairs() {
            return Err(NetError::VhostPairs(vhost.pairs(), links.len()));
        }
        Ok(Self { vhost: Some(vhost), ..Self::with_queue_pairs(links, settings)? })
    }

    /// Has `metadata` at `address` on this interface, from the next activation on: what the guest sends there does not reach the link.
    /// Its connections are not part of the device's state.
    ///
    /// # Errors
    /// The host's kernel serves the queues, or the system has no random bytes.
    pub fn serve_metadata(&mut self, metadata: &Metadata, address: Ipv4Addr) -> Result<(), NetError> {
        if self.vhost.is_some() {
            return Err(NetError::Unseen("metadata service"));
        }
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
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.links[0].offloads() & feature::OFFLOADS
            | feature::MAC
            | feature::MRG_RXBUF
            | feature::STATUS
            | if self.mtu.is_some() { feature::MTU } else { 0 }
            | if self.links.len() > 1 { feature::CTRL_VQ | feature::MQ } else { 0 }
    }

    fn config_generation(&self) -> u8 {
        self.shared.generation()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = VirtioNetConfig {
            mac: self.shared.mac().bytes(),
            status: self.shared.status().into(),
            max_virtqueue_pairs: (self.links.len() as u16).into(),
            mtu: self.mtu.unwrap_or_default().into(),
        };
        read_bytes(config.as_slice(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = feature::effective(activation.features);
        // They are the interface's, whichever of its queues they are set by.
        match self.links[0].set_offloads(Offloads::of(features)) {
            Ok(()) => {}
            // The handler finds out by itself.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(ActivateError::Host { what: "the offloads of the host's end", source }),
        }
        let (shared, pairs) = (&self.shared, self.used_pairs);
        if let Some(vhost) = &self.vhost {
            let handler = KernelHandler::new(&mut activation, vhost, &self.links, shared, (features, pairs))?;
            let on_loop = activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?;
            self.active = Some(Active::Kernel(on_loop));
            return Ok(());
        }
        let mut handler = Handler::new(&mut activation, &self.links, shared, (features, self.mtu), pairs)?;
        handler.wait_again(mem::take(&mut self.waiting));
        if let Some(mmds) = &self.mmds {
            handler.serve_metadata(mmds);
        }
        handler.set_limiters(mem::take(&mut self.limiters));
        let on_loop = activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?;
        self.active = Some(Active::Monitor(on_loop));
        Ok(())
    }

    /// Packets wait on the host, as many as it keeps for a reader that is late.
    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let count = self.queue_sizes.len();
        let stopped = match self.active.take() {
            None => None,
            Some(Active::Monitor(on_loop)) => on_loop.take_back().map(|handler| {
                let Parts { queues, waiting, used, limiters } = handler.into_parts(count);
                (self.waiting, self.limiters) = (waiting, limiters);
                (queues, used)
            }),
            Some(Active::Kernel(on_loop)) => on_loop.take_back().map(|handler| handler.into_parts(count)),
        };
        let Some((queues, used)) = stopped else { return vec![None; count] };
        self.used_pairs = used;
        queues
    }

    fn reset(&mut self) {
        let _ = self.suspend();
        self.waiting = Vec::new();
        self.used_pairs = 1;
        for link in &self.links[1..] {
            if let Err(error) = link.set_used(false) {
                // It is gone, which is found out when a driver starts the device.
                limited!(debug, %error, "the host's end keeps a queue that is not used");
            }
        }
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
            queue_pairs: QueuePairsState { most: self.links.len() as u16, used: self.used_pairs },
            limiters: self.limiters.save(self.shared.limits()),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut own = self.save();
        let (DeviceState::Net(own_net), DeviceState::Net(net)) = (&mut own, state) else {
            return expect("device state", state, &own);
        };
        // The kernel holds nothing back.
        if self.vhost.is_none() {
            own_net.limiters = net.limiters;
        }
        let QueuePairsState { most, used } = net.queue_pairs;
        if (1..=most).contains(&used) {
            own_net.queue_pairs.used = used;
        }
        expect("device state", state, &own)?;
        self.limiters = Limiters::restore(&net.limiters)?;
        self.used_pairs = used;
        *self.shared.limits.lock() = net.limiters.limits();
        Ok(())
    }
}

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "queue_pairs_test.rs"]
mod queue_pairs_tests;
#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
