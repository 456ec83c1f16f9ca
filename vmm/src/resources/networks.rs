//! The network interfaces of a VM.

use bellows_devices::event_loop::EventLoop;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::net::link::Link;
use bellows_devices::virtio::net::{
    MacAddress, NetError, NetSettings, NetStatistics, RateLimits, StreamError, StreamLink, Tap as Device, TapError,
};
use bellows_devices::virtio::{Net, NetHandle};
use bellows_protocol::network::InterfaceSetup;
use serde::Serialize;

use crate::config::{GuestNetwork, HostEnd, NetConfig, StreamSocket, Tap};
use crate::kind::ErrorKind;
use crate::virtio_bus::{DeviceError, VirtioBus};

/// All network interfaces of a VM, in the order of its configuration.
#[derive(Default)]
pub(crate) struct Networks {
    interfaces: Vec<Interface>,
}

struct Interface {
    id: String,
    host: String,
    mac: MacAddress,
    mtu: Option<u16>,
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
}

impl NetworkError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tap { source: TapError::Name(_), .. } => ErrorKind::Invalid,
            Self::Tap { source: TapError::Flags { .. } | TapError::NotTap { .. }, .. } => ErrorKind::Invalid,
            Self::Tap { source: TapError::Descriptor { .. }, .. } => ErrorKind::Invalid,
            Self::Stream { source: StreamError::Descriptor { .. } | StreamError::NotStream { .. }, .. } => {
                ErrorKind::Invalid
            }
            Self::Stream { source: StreamError::Connect { .. }, .. } => ErrorKind::NotFound,
            Self::Tap { source: TapError::Missing(_), .. } | Self::NotFound(_) => ErrorKind::NotFound,
            Self::Tap { .. } | Self::Net { source: NetError::Event(_), .. } => ErrorKind::Host,
            Self::Net { source: NetError::Mtu(_), .. } => ErrorKind::Invalid,
            Self::DuplicateMac { .. } => ErrorKind::Conflict,
            Self::Device(error) => error.kind(),
        }
    }
}

impl Networks {
    /// Puts an interface on the bus before the guest boots.
    pub(crate) fn add(&mut self, bus: &VirtioBus, config: &NetConfig) -> Result<(), NetworkError> {
        let id = || config.id.clone();
        match &config.host {
            HostEnd::Tap(tap) => {
                let opened = match tap {
                    Tap::Name(name) => Device::open(name),
                    Tap::Fd(fd) => Device::from_descriptor(*fd),
                };
                let tap = opened.map_err(|source| NetworkError::Tap { id: id(), source })?;
                let name = tap.name().to_owned();
                self.add_link(bus, config, tap, name)
            }
            HostEnd::Stream(stream) => {
                let (opened, name) = match stream {
                    StreamSocket::Path(path) => (StreamLink::connect(path), path.display().to_string()),
                    StreamSocket::Fd(fd) => (StreamLink::from_descriptor(*fd), format!("descriptor {fd}")),
                };
                let link = opened.map_err(|source| NetworkError::Stream { id: id(), source })?;
                self.add_link(bus, config, link, name)
            }
        }
    }

    fn add_link(
        &mut self,
        bus: &VirtioBus,
        config: &NetConfig,
        link: impl Link + 'static,
        host: String,
    ) -> Result<(), NetworkError> {
        let NetConfig { id, mac, mtu, limits, guest, .. } = config;
        let mac = mac.unwrap_or_else(|| MacAddress::derived(&host, id));
        if let Some(other) = self.interfaces.iter().find(|other| other.mac == mac) {
            return Err(NetworkError::DuplicateMac { id: id.clone(), mac, other: other.id.clone() });
        }
        let device = Net::new(link, &NetSettings { mac, mtu: *mtu, limits: *limits })
            .map_err(|source| NetworkError::Net { id: id.clone(), source })?;
        let handle = device.handle();
        let event_loop = bus.event_loop("net")?;
        let address = bus.add(&format!("network interface `{id}`"), device, event_loop.handle())?;
        let (id, guest) = (id.clone(), guest.clone());
        let interface = Interface { id, host, mac, mtu: *mtu, address, handle, guest, _event_loop: event_loop };
        self.interfaces.push(interface);
        Ok(())
    }

    /// What the guest's agent is to set up.
    pub(crate) fn setups(&self) -> Vec<InterfaceSetup> {
        let setup = |interface: &Interface| Some(interface.guest.as_ref()?.setup(&interface.id, interface.mac.bytes()));
        self.interfaces.iter().filter_map(setup).collect()
    }

    /// All interfaces, in order.
    pub(crate) fn infos(&self) -> Vec<NetworkInfo> {
        self.interfaces.iter().map(Interface::info).collect()
    }

    /// The traffic of the interface `id`.
    pub(crate) fn statistics(&self, id: &str) -> Result<NetStatistics, NetworkError> {
        Ok(self.find(id)?.statistics())
    }

    /// Changes the rate limits of the interface `id`.
    pub(crate) fn set_limits(&self, id: &str, limits: RateLimits) -> Result<(), NetworkError> {
        self.find(id)?.set_limits(limits);
        Ok(())
    }

    fn find(&self, id: &str) -> Result<&NetHandle, NetworkError> {
        let found = self.interfaces.iter().find(|interface| interface.id == id);
        Ok(&found.ok_or_else(|| NetworkError::NotFound(id.to_owned()))?.handle)
    }
}

impl Interface {
    fn info(&self) -> NetworkInfo {
        NetworkInfo {
            id: self.id.clone(),
            host: self.host.clone(),
            mac: self.mac,
            mtu: self.mtu,
            address: self.address,
            up: self.handle.is_up(),
            limits: self.handle.limits(),
            statistics: self.handle.statistics(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whose_fault_it_is() {
        let id = || "eth0".to_owned();
        let tap = |source| NetworkError::Tap { id: id(), source };
        let stream = |source| NetworkError::Stream { id: id(), source };
        for (error, kind) in [
            (tap(Device::open("a/b").unwrap_err()), ErrorKind::Invalid),
            (tap(Device::open("bellows-no-tap").unwrap_err()), ErrorKind::NotFound),
            (tap(Device::from_descriptor(-1).unwrap_err()), ErrorKind::Invalid),
            (stream(StreamLink::from_descriptor(-1).unwrap_err()), ErrorKind::Invalid),
            (stream(StreamLink::connect("/nowhere".as_ref()).unwrap_err()), ErrorKind::NotFound),
            (NetworkError::Net { id: id(), source: NetError::Mtu(1) }, ErrorKind::Invalid),
            (Networks::default().statistics("eth0").unwrap_err(), ErrorKind::NotFound),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("eth0"), "{error}");
        }
    }
}
