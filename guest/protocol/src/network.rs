//! Networks of a guest: what an interface gets, as both sides check it.
//!
//! ```
//! use bellows_protocol::network::InterfaceAddress;
//!
//! let address: InterfaceAddress = "10.0.0.2/24".parse()?;
//! assert_eq!(address.prefix(), 24);
//! assert!(address.reaches("10.0.0.1".parse()?) && !address.reaches("10.0.1.1".parse()?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::agent;
use crate::egress::{EgressRule, MAX_EGRESS_RULES, PacketLimit};
use crate::values::{InterfaceName, SearchDomain, ValueError, bits, excerpt, parse_all};

/// Most network interfaces of a guest.
pub const MAX_INTERFACES: usize = 16;
/// Most addresses of one interface.
pub const MAX_ADDRESSES: usize = 16;
/// Most gateways of one interface: one for each family.
pub const MAX_GATEWAYS: usize = 2;
/// Most name servers that an interface brings: what C libraries ask (`MAXNS` in `resolv.h`).
pub const MAX_NAME_SERVERS: usize = 3;
/// Most search domains that an interface brings: `MAXDNSRCH` in `resolv.h`.
pub const MAX_SEARCH_DOMAINS: usize = 6;

/// An address of an interface, and the bits of it that name its network: `172.16.0.2/30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    address: IpAddr,
    prefix: u8,
}

impl InterfaceAddress {
    /// `address` in a network of its first `prefix` bits.
    ///
    /// # Errors
    /// [`ValueError::InterfaceAddress`]: it is the address of no interface, or has fewer bits.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, ValueError> {
        let own = Self { address, prefix };
        let usable = !address.is_unspecified()
            && !address.is_loopback()
            && !address.is_multicast()
            && address != IpAddr::V4(Ipv4Addr::BROADCAST);
        if usable && (1..=bits(address)).contains(&prefix) {
            Ok(own)
        } else {
            Err(ValueError::InterfaceAddress(own.to_string()))
        }
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The bits that name its network: 1 to 32, or to 128.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `other` is in its network.
    #[must_use]
    pub fn reaches(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= self.prefix.into()
            }
            _ => false,
        }
    }

    /// Whether its network is nothing but itself.
    fn is_alone(self) -> bool {
        self.prefix == bits(self.address)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for InterfaceAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::InterfaceAddress(excerpt(text));
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        Self::new(address.parse().map_err(|_| malformed())?, prefix.parse().map_err(|_| malformed())?)
    }
}

/// Checks the gateways of an interface with `addresses`: one for each family at most. Each is in the network of an address, or an
/// address of its family has a network of its own, as is usual where every guest is routed to by itself; or it is a link-local one.
///
/// # Errors
/// [`ValueError::Gateway`], [`ValueError::TooMany`].
pub fn check_gateways(gateways: &[IpAddr], addresses: &[InterfaceAddress]) -> Result<(), ValueError> {
    let reached = |gateway: IpAddr| {
        let family = || addresses.iter().filter(|own| own.address.is_ipv4() == gateway.is_ipv4());
        let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
        let is_own = family().any(|own| own.address == gateway);
        let alone = family().any(|own| own.is_alone()) && InterfaceAddress::new(gateway, bits(gateway)).is_ok();
        !is_own && (link_local || alone || family().any(|own| own.reaches(gateway)))
    };
    if let Some(&gateway) = gateways.iter().find(|&&gateway| !reached(gateway)) {
        return Err(ValueError::Gateway(gateway));
    }
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let count = gateways.iter().filter(|gateway| family(gateway)).count();
        if count > 1 {
            return Err(ValueError::TooMany { what: "gateways of one family", count, limit: 1 });
        }
    }
    Ok(())
}

/// Checks the address of a name server: every program can send to it, so it is not link-local.
///
/// # Errors
/// [`ValueError::NameServer`].
pub fn check_name_server(server: IpAddr) -> Result<(), ValueError> {
    let link_local = matches!(server, IpAddr::V6(server) if server.is_unicast_link_local());
    if server.is_unspecified() || server.is_multicast() || link_local {
        return Err(ValueError::NameServer(server.to_string()));
    }
    Ok(())
}

/// Checks that there are at most `limit` of `what`.
///
/// # Errors
/// [`ValueError::TooMany`].
pub fn check_count<T>(values: &[T], what: &'static str, limit: usize) -> Result<(), ValueError> {
    if values.len() > limit { Err(ValueError::TooMany { what, count: values.len(), limit }) } else { Ok(()) }
}

/// What an interface of the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSetup {
    /// By which it is found.
    pub hardware_address: [u8; 6],
    /// What the guest calls it; `None` leaves that to its kernel.
    pub name: Option<InterfaceName>,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Where packets for all other networks go.
    pub gateways: Vec<IpAddr>,
    /// The name servers that it reaches.
    pub name_servers: Vec<IpAddr>,
    /// The domains that names are looked for in.
    pub search_domains: Vec<SearchDomain>,
}

impl InterfaceSetup {
    /// Checks what its types do not say already.
    ///
    /// # Errors
    /// [`ValueError::Gateway`], [`ValueError::NameServer`], [`ValueError::TooMany`].
    pub fn check(&self) -> Result<(), ValueError> {
        check_count(&self.addresses, "addresses of an interface", MAX_ADDRESSES)?;
        check_gateways(&self.gateways, &self.addresses)?;
        check_count(&self.name_servers, "name servers", MAX_NAME_SERVERS)?;
        self.name_servers.iter().try_for_each(|&server| check_name_server(server))?;
        check_count(&self.search_domains, "search domains", MAX_SEARCH_DOMAINS)
    }

    /// It as a message.
    #[must_use]
    pub fn message(&self) -> agent::NetworkInterface {
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(T::to_string).collect()
        }
        agent::NetworkInterface {
            hardware_address: self.hardware_address.into(),
            name: self.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            addresses: texts(&self.addresses),
            gateways: texts(&self.gateways),
            name_servers: texts(&self.name_servers),
            search_domains: texts(&self.search_domains),
            ..Default::default()
        }
    }

    /// Reads and checks a message.
    ///
    /// # Errors
    /// The first value that is not acceptable.
    pub fn parse(message: &agent::NetworkInterface) -> Result<Self, ValueError> {
        let hardware_address = <[u8; 6]>::try_from(&message.hardware_address[..])
            .map_err(|_| ValueError::HardwareAddress(message.hardware_address.len()))?;
        let name = match &*message.name {
            "" => None,
            name => Some(name.parse()?),
        };
        let setup = Self {
            hardware_address,
            name,
            addresses: parse_all(&message.addresses, "addresses of an interface", MAX_ADDRESSES)?,
            gateways: ip_addresses(&message.gateways, "gateways", MAX_GATEWAYS)?,
            name_servers: ip_addresses(&message.name_servers, "name servers", MAX_NAME_SERVERS)?,
            search_domains: parse_all(&message.search_domains, "search domains", MAX_SEARCH_DOMAINS)?,
        };
        setup.check()?;
        Ok(setup)
    }
}

/// The network of an instance's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnNetworkSetup {
    /// Its addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The hardware address of its interface; `None` leaves it to the guest's kernel.
    pub hardware_address: Option<[u8; 6]>,
    /// What it may send to beside those that have sent to it first: without any, nothing.
    pub egress: Vec<EgressRule>,
    /// Limits of what it receives.
    pub receive: PacketLimit,
    /// Limits of what it sends.
    pub transmit: PacketLimit,
}

impl OwnNetworkSetup {
    /// Checks what its types do not say already.
    ///
    /// # Errors
    /// [`ValueError::OwnAddress`], [`ValueError::NoAddress`], [`ValueError::TooMany`].
    pub fn check(&self) -> Result<(), ValueError> {
        check_count(&self.addresses, "addresses of an instance", MAX_ADDRESSES)?;
        check_count(&self.egress, "egress rules", MAX_EGRESS_RULES)?;
        if self.addresses.is_empty() {
            return Err(ValueError::NoAddress);
        }
        for (index, &address) in self.addresses.iter().enumerate() {
            let link_local = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            if link_local
                || InterfaceAddress::new(address, bits(address)).is_err()
                || self.addresses[..index].contains(&address)
            {
                return Err(ValueError::OwnAddress(address));
            }
        }
        Ok(())
    }

    /// It as a message.
    #[must_use]
    pub fn message(&self) -> agent::OwnNetwork {
        agent::OwnNetwork {
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            hardware_address: self.hardware_address.map(Into::into).unwrap_or_default(),
            egress: self.egress.iter().map(ToString::to_string).collect(),
            receive: Some(self.receive.message()).into(),
            transmit: Some(self.transmit.message()).into(),
            ..Default::default()
        }
    }

    /// Reads and checks a message.
    ///
    /// # Errors
    /// The first value that is not acceptable.
    pub fn parse(message: &agent::OwnNetwork) -> Result<Self, ValueError> {
        let hardware_address = match &message.hardware_address[..] {
            [] => None,
            bytes => Some(bytes.try_into().map_err(|_| ValueError::HardwareAddress(bytes.len()))?),
        };
        let addresses = ip_addresses(&message.addresses, "addresses of an instance", MAX_ADDRESSES)?;
        let limit = |limit: Option<&agent::PacketLimit>| limit.map_or(Ok(PacketLimit::default()), PacketLimit::parse);
        let setup = Self {
            addresses,
            hardware_address,
            egress: parse_all(&message.egress, "egress rules", MAX_EGRESS_RULES)?,
            receive: limit(message.receive.as_ref())?,
            transmit: limit(message.transmit.as_ref())?,
        };
        setup.check()?;
        Ok(setup)
    }
}

fn ip_addresses(texts: &[String], what: &'static str, limit: usize) -> Result<Vec<IpAddr>, ValueError> {
    check_count(texts, what, limit)?;
    let parse = |text: &String| text.parse().map_err(|_| ValueError::IpAddress(excerpt(text)));
    texts.iter().map(parse).collect()
}

/// Reads and checks the interfaces of a request, of which no two are one, nor get one name.
///
/// # Errors
/// The first value that is not acceptable.
pub fn parse_interfaces(messages: &[agent::NetworkInterface]) -> Result<Vec<InterfaceSetup>, ValueError> {
    check_count(messages, "network interfaces", MAX_INTERFACES)?;
    let mut setups = Vec::<InterfaceSetup>::with_capacity(messages.len());
    for message in messages {
        let setup = InterfaceSetup::parse(message)?;
        let same = |other: &InterfaceSetup| {
            other.hardware_address == setup.hardware_address || (other.name.is_some() && other.name == setup.name)
        };
        if setups.iter().any(same) {
            let name = setup.name.as_ref().map_or("", |name| name.as_str());
            return Err(ValueError::SameInterface(name.to_owned()));
        }
        setups.push(setup);
    }
    Ok(setups)
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
