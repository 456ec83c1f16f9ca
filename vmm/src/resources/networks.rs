//! The network interfaces of a VM: those of its configuration, and those that come and go while it runs.

use std::net::Ipv4Addr;
use std::time::Duration;

use bellows_devices::event_loop::EventLoop;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::net::link::Link;
use bellows_devices::virtio::net::mmds::Metadata;
use bellows_devices::virtio::net::{
    MacAddress, NetError, NetSettings, NetStatistics, RateLimits, StreamError, StreamLink, Tap as Device, TapError,
    Vhost, VhostError,
};
use bellows_devices::virtio::{Net, NetHandle};
use bellows_protocol::network::InterfaceSetup;
use serde::Serialize;

use super::table::{Change, Hotplug};
use crate::config::{ConfigError, GuestNetwork, HostEnd, NetConfig, StreamSocket, Tap};
use crate::deadline::Deadline;
use crate::descriptors::{self, TooFewDescriptors};
use crate::guest::agent::{AgentClient, AgentError};
use crate::guest::error::NotRunning;
use crate::guest::session::Session;
use crate::kind::ErrorKind;
use crate::virtio_bus::{DeviceError, VirtioBus};

/// All network interfaces of a VM, by name.
pub(crate) struct Networks {
    table: Hotplug<String, Interface>,
    vcpus: u8,
    /// Pieces of guest memory that there may come to be, if partitions are plugged from their start on.
    pieces: usize,
}

type NetworkChange<'a> = Change<'a, String, Interface>;

struct Interface {
    id: String,
    host: String,
    mac: MacAddress,
    mtu: Option<u16>,
    queue_pairs: usize,
    vhost: bool,
    address: PciAddress,
    handle: NetHandle,
    guest: Option<GuestNetwork>,
    /// A flood of packets stalls no other device.
    _event_loop: EventLoop,
}

/// A network interface of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct NetworkInfo {
    /// Its name on the host.
    pub id: String,
    /// The host's end: the TAP's name when it was opened, or the stream socket's path or descriptor.
    pub host: String,
    /// The guest's hardware address.
    pub mac: MacAddress,
    /// Bytes of the largest packet that the guest was told.
    pub mtu: Option<u16>,
    /// Pairs of queues that it has; the guest's driver may use fewer.
    pub queue_pairs: usize,
    /// Whether the host's kernel carries the packets: then none is counted.
    pub vhost: bool,
    /// Where it is on the guest's bus.
    #[serde(serialize_with = "as_text")]
    pub address: PciAddress,
    /// Whether the host's end is there. Once gone, it does not come back, and all packets are dropped.
    pub up: bool,
    /// Its rate limits.
    pub limits: RateLimits,
    /// Its traffic.
    pub statistics: NetStatistics,
}

fn as_text<S: serde::Serializer>(address: &PciAddress, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

/// Why a network interface could not be made, or found.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Its TAP cannot be used.
    #[error("cannot use the TAP of the network interface `{id}`")]
    Tap {
        /// The interface.
        id: String,
        /// The cause.
        #[source]
        source: TapError,
    },
    /// Its stream socket cannot be used.
    #[error("cannot use the stream socket of the network interface `{id}`")]
    Stream {
        /// The interface.
        id: String,
        /// The cause.
        #[source]
        source: StreamError,
    },
    /// The host's kernel does not serve it.
    #[error("cannot have the network interface `{id}` served by vhost-net")]
    Vhost {
        /// The interface.
        id: String,
        /// The cause.
        #[source]
        source: VhostError,
    },
    /// The monitor does not see its packets.
    #[error("the network interface `{0}` has no rate limits: vhost-net serves it")]
    Unlimited(String),
    /// The device could not be made.
    #[error("cannot make the network interface `{id}`")]
    Net {
        /// The interface.
        id: String,
        /// The cause.
        #[source]
        source: NetError,
    },
    /// Two interfaces would have the same hardware address.
    #[error("the network interface `{id}` has the hardware address {mac} of `{other}`: expected another (`mac`)")]
    DuplicateMac {
        /// The interface.
        id: String,
        /// The address.
        mac: MacAddress,
        /// The interface that has it.
        other: String,
    },
    /// It could not be put on the bus.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is none with that name.
    #[error("the VM has no network interface `{0}`")]
    NotFound(String),
    /// There is one with that name.
    #[error("the VM has a network interface `{0}` already: expected another `id`")]
    Duplicate(String),
    /// Its configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process may not open as many files.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The guest cannot be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// No driver of the guest took it.
    #[error("no driver of the guest runs the network interface `{id}` at {address}")]
    NotBound {
        /// The interface.
        id: String,
        /// Where it was on the bus.
        address: PciAddress,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// The guest did not set it up.
    #[error("the guest's agent cannot set up the network interface `{id}`")]
    NotSetUp {
        /// The interface.
        id: String,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// The guest does not let go of it.
    #[error("the guest does not let go of the network interface `{id}` at {address}")]
    NotReleased {
        /// The interface.
        id: String,
        /// Where it is on the bus.
        address: PciAddress,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
}

impl NetworkError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tap { source: TapError::Name(_), .. } => ErrorKind::Invalid,
            Self::Tap { source: TapError::Flags { .. } | TapError::NotTap { .. }, .. } => ErrorKind::Invalid,
            Self::Tap { source: TapError::Descriptor { .. }, .. } => ErrorKind::Invalid,
            Self::Tap { source: TapError::Another { .. } | TapError::Twice(_), .. } => ErrorKind::Invalid,
            Self::Stream { source: StreamError::Descriptor { .. } | StreamError::NotStream { .. }, .. } => {
                ErrorKind::Invalid
            }
            Self::Stream { source: StreamError::Connect { .. }, .. } => ErrorKind::NotFound,
            Self::Tap { source: TapError::Missing(_), .. } | Self::NotFound(_) => ErrorKind::NotFound,
            Self::Tap { .. } | Self::Net { source: NetError::Event(_) | NetError::Metadata(_), .. } => ErrorKind::Host,
            Self::Net { source: NetError::Mtu(_) | NetError::QueuePairs(_), .. } => ErrorKind::Invalid,
            Self::Net { source: NetError::VhostPairs(..) | NetError::Unseen(_), .. } => ErrorKind::Invalid,
            Self::Vhost { source: VhostError::Pieces(_), .. } | Self::Unlimited(_) => ErrorKind::Invalid,
            Self::Vhost { .. } => ErrorKind::Host,
            Self::DuplicateMac { .. } | Self::Duplicate(_) => ErrorKind::Conflict,
            Self::Device(error) => error.kind(),
            Self::Config(_) => ErrorKind::Invalid,
            Self::Descriptors(error) => error.kind(),
            Self::NotRunning(error) => error.kind(),
            Self::NotBound { source, .. } | Self::NotSetUp { source, .. } | Self::NotReleased { source, .. } => {
                source.kind()
            }
        }
    }
}

impl Networks {
    /// None, of a VM with so many vCPUs, whose memory may come to be in so many pieces.
    pub(crate) fn new(vcpus: u8, pieces: usize) -> Self {
        Self { table: Hotplug::default(), vcpus, pieces }
    }

    /// Puts an interface on the bus before the guest boots, with `metadata` at an address if that is given.
    pub(crate) fn add(
        &self,
        bus: &VirtioBus,
        config: &NetConfig,
        metadata: Option<(&Metadata, Ipv4Addr)>,
    ) -> Result<(), NetworkError> {
        self.put(&self.table.change(), bus, config, metadata).map(drop)
    }

    /// Adds an interface, without metadata; returns once a driver of the guest runs it, and the agent has set it up. After an error it is gone, unless
    /// the guest does not let go of it.
    pub(crate) fn attach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        config: &NetConfig,
        timeout: Duration,
    ) -> Result<NetworkInfo, NetworkError> {
        let deadline = Deadline::after(timeout);
        let agent = session.agent()?;
        let change = self.table.change();
        config.check_beside(self.table.map(|_| ()).len(), self.vcpus)?;
        if self.table.contains(&config.id) {
            return Err(NetworkError::Duplicate(config.id.clone()));
        }
        descriptors::check_attach(descriptors::of_network(config))?;
        let address = self.put(&change, bus, config, None)?;
        let id = || config.id.clone();
        let bound = agent.attach(&[address], deadline.left());
        let ready = bound.map_err(|source| NetworkError::NotBound { id: id(), address, source }).and_then(|()| {
            if config.guest.is_none() {
                return Ok(());
            }
            let setup = agent.configure_network(&self.setups(), deadline.left());
            setup.map_err(|source| NetworkError::NotSetUp { id: id(), source })
        });
        if let Err(error) = ready {
            if let Err(error) = self.take(&change, (agent, bus), &config.id, address, Deadline::after(timeout)) {
                tracing::warn!(%error, id = config.id, "a network interface that cannot be used stays");
            }
            return Err(error);
        }
        self.table.read(&config.id, Interface::info).ok_or_else(|| NetworkError::NotFound(id()))
    }

    /// Removes an interface: first the guest lets go of it, then it leaves the bus.
    pub(crate) fn detach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        id: &str,
        timeout: Duration,
    ) -> Result<(), NetworkError> {
        let agent = session.agent()?;
        let change = self.table.change();
        let address = self.table.read(&id.to_owned(), |interface| interface.address);
        let address = address.ok_or_else(|| NetworkError::NotFound(id.to_owned()))?;
        self.take(&change, (agent, bus), id, address, Deadline::after(timeout))
    }

    fn take(
        &self,
        change: &NetworkChange<'_>,
        (agent, bus): (&AgentClient, &VirtioBus),
        id: &str,
        address: PciAddress,
        deadline: Deadline,
    ) -> Result<(), NetworkError> {
        let released = agent.detach(&[address], deadline.left());
        released.map_err(|source| NetworkError::NotReleased { id: id.to_owned(), address, source })?;
        bus.remove(&format!("network interface `{id}`"), address)?;
        // Joins its thread.
        let gone = change.remove(&id.to_owned());
        if gone.is_some_and(|interface| interface.guest.is_some()) {
            // Instances are told of its addresses and name servers no longer.
            let setup = agent.configure_network(&self.setups(), deadline.left());
            setup.map_err(|source| NetworkError::NotSetUp { id: id.to_owned(), source })?;
        }
        Ok(())
    }

    fn put(
        &self,
        change: &NetworkChange<'_>,
        bus: &VirtioBus,
        config: &NetConfig,
        metadata: Option<(&Metadata, Ipv4Addr)>,
    ) -> Result<PciAddress, NetworkError> {
        let id = || config.id.clone();
        match &config.host {
            HostEnd::Tap(tap) => {
                let pairs = config.queue_pairs();
                let opened = match tap {
                    Tap::Name(name) if pairs > 1 => Device::open_queues(name, pairs),
                    Tap::Name(name) => Device::open(name).map(|tap| vec![tap]),
                    Tap::Fds(fds) if pairs > 1 => Device::from_descriptors(fds),
                    Tap::Fds(fds) => fds.iter().map(|fd| Device::from_descriptor(*fd)).collect(),
                    Tap::Fd(fd) => Device::from_descriptor(*fd).map(|tap| vec![tap]),
                };
                let queues = opened.map_err(|source| NetworkError::Tap { id: id(), source })?;
                let name = queues.first().map(|queue| queue.name().to_owned()).unwrap_or_default();
                if !config.vhost {
                    return self.put_links(change, bus, config, metadata, (queues, name));
                }
                let vhost = Vhost::open(queues.len(), bus.memory(), self.pieces);
                let vhost = vhost.map_err(|source| NetworkError::Vhost { id: id(), source })?;
                let make = |settings: &NetSettings| Net::with_vhost(queues, settings, vhost);
                self.put_device(change, bus, config, metadata, (make, name))
            }
            HostEnd::Stream(stream) => {
                let (opened, name) = match stream {
                    StreamSocket::Path(path) => (StreamLink::connect(path), path.display().to_string()),
                    StreamSocket::Fd(fd) => (StreamLink::from_descriptor(*fd), format!("descriptor {fd}")),
                };
                let link = opened.map_err(|source| NetworkError::Stream { id: id(), source })?;
                self.put_links(change, bus, config, metadata, (vec![link], name))
            }
        }
    }

    fn put_links(
        &self,
        change: &NetworkChange<'_>,
        bus: &VirtioBus,
        config: &NetConfig,
        metadata: Option<(&Metadata, Ipv4Addr)>,
        (links, host): (Vec<impl Link + 'static>, String),
    ) -> Result<PciAddress, NetworkError> {
        let make = |settings: &NetSettings| Net::with_queue_pairs(links, settings);
        self.put_device(change, bus, config, metadata, (make, host))
    }

    fn put_device(
        &self,
        change: &NetworkChange<'_>,
        bus: &VirtioBus,
        config: &NetConfig,
        metadata: Option<(&Metadata, Ipv4Addr)>,
        (make, host): (impl FnOnce(&NetSettings) -> Result<Net, NetError>, String),
    ) -> Result<PciAddress, NetworkError> {
        let NetConfig { id, mac, mtu, vhost, limits, guest, .. } = config;
        let mac = mac.unwrap_or_else(|| MacAddress::derived(&host, id));
        let others = self.table.map(|other| (other.mac, other.id.clone()));
        if let Some((_, other)) = others.into_iter().find(|(other, _)| *other == mac) {
            return Err(NetworkError::DuplicateMac { id: id.clone(), mac, other });
        }
        let failed = |source| NetworkError::Net { id: id.clone(), source };
        let settings = NetSettings { mac, mtu: *mtu, limits: *limits };
        let mut device = make(&settings).map_err(failed)?;
        if let Some((metadata, address)) = metadata {
            device.serve_metadata(metadata, address).map_err(failed)?;
        }
        let handle = device.handle();
        let event_loop = bus.event_loop("net")?;
        let address = bus.add(&format!("network interface `{id}`"), device, event_loop.handle())?;
        let guest = guest.clone();
        let interface = Interface {
            id: id.clone(),
            host,
            mac,
            mtu: *mtu,
            queue_pairs: config.queue_pairs(),
            vhost: *vhost,
            address,
            handle,
            guest,
            _event_loop: event_loop,
        };
        change.insert(id.clone(), interface);
        Ok(address)
    }

    /// What the guest's agent is to set up, in the order of the bus.
    pub(crate) fn setups(&self) -> Vec<InterfaceSetup> {
        let setup = |interface: &Interface| {
            Some((interface.address, interface.guest.as_ref()?.setup(&interface.id, interface.mac.bytes())))
        };
        let mut setups: Vec<_> = self.table.map(setup).into_iter().flatten().collect();
        setups.sort_by_key(|(address, _)| *address);
        setups.into_iter().map(|(_, setup)| setup).collect()
    }

    /// All interfaces, in the order of the bus, which is that of the configuration.
    pub(crate) fn infos(&self) -> Vec<NetworkInfo> {
        let mut infos = self.table.map(Interface::info);
        infos.sort_by_key(|info| info.address);
        infos
    }

    /// The traffic of the interface `id`.
    pub(crate) fn statistics(&self, id: &str) -> Result<NetStatistics, NetworkError> {
        self.find(id, |interface| interface.handle.statistics())
    }

    /// Changes the rate limits of the interface `id`.
    pub(crate) fn set_limits(&self, id: &str, limits: RateLimits) -> Result<(), NetworkError> {
        if self.find(id, |interface| interface.vhost)? {
            return Err(NetworkError::Unlimited(id.to_owned()));
        }
        self.find(id, |interface| interface.handle.set_limits(limits))
    }

    fn find<T>(&self, id: &str, read: impl FnOnce(&Interface) -> T) -> Result<T, NetworkError> {
        self.table.read(&id.to_owned(), read).ok_or_else(|| NetworkError::NotFound(id.to_owned()))
    }
}

impl Interface {
    fn info(&self) -> NetworkInfo {
        NetworkInfo {
            id: self.id.clone(),
            host: self.host.clone(),
            mac: self.mac,
            mtu: self.mtu,
            queue_pairs: self.queue_pairs,
            vhost: self.vhost,
            address: self.address,
            up: self.handle.is_up(),
            limits: self.handle.limits(),
            statistics: self.handle.statistics(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bellows_devices::virtio::net::TooManyPieces;

    use super::*;

    #[test]
    fn an_error_says_whose_fault_it_is() {
        let id = || "eth0".to_owned();
        let tap = |source| NetworkError::Tap { id: id(), source };
        let stream = |source| NetworkError::Stream { id: id(), source };
        let vhost = |source| NetworkError::Vhost { id: id(), source };
        for (error, kind) in [
            (tap(Device::open("a/b").unwrap_err()), ErrorKind::Invalid),
            (tap(Device::open("bellows-no-tap").unwrap_err()), ErrorKind::NotFound),
            (tap(Device::from_descriptor(-1).unwrap_err()), ErrorKind::Invalid),
            (stream(StreamLink::from_descriptor(-1).unwrap_err()), ErrorKind::Invalid),
            (stream(StreamLink::connect("/nowhere".as_ref()).unwrap_err()), ErrorKind::NotFound),
            (NetworkError::Net { id: id(), source: NetError::Mtu(1) }, ErrorKind::Invalid),
            (Networks::new(1, 1).statistics("eth0").unwrap_err(), ErrorKind::NotFound),
            (NetworkError::Duplicate(id()), ErrorKind::Conflict),
            (vhost(TooManyPieces { needed: 65, most: 64 }.into()), ErrorKind::Invalid),
            (vhost(VhostError::Open(std::io::ErrorKind::NotFound.into())), ErrorKind::Host),
            (NetworkError::Unlimited(id()), ErrorKind::Invalid),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("eth0"), "{error}");
        }
    }
}
