//! What the guest's agent sets up on a network interface.

use std::fmt::Display;
use std::net::IpAddr;

use bellows_protocol::network::{
    InterfaceAddress, InterfaceSetup, MAX_ADDRESSES, MAX_GATEWAYS, MAX_NAME_SERVERS, MAX_SEARCH_DOMAINS,
    check_gateways, check_name_server,
};
use bellows_protocol::values::{SearchDomain, ValueError};
use serde::{Deserialize, Serialize};

use super::{ConfigError, count, error};

/// Addresses, routes and name servers of a network interface in the guest, which the agent sets up before any instance starts. The
/// interface goes by its id there, if that can be the name of one (15 characters, not `lo`, `all` or `default`).
///
/// Without any of these the interface is set up only: the guest's kernel takes what IPv6 routers announce.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestNetwork {
    /// Its addresses, of either family, such as `172.16.0.2/30`: up to 16.
    #[serde(with = "super::text::list")]
    pub addresses: Vec<InterfaceAddress>,
    /// Where packets for other networks go: one for each family, in the network of an address. Outside of it may be an IPv6 link-local
    /// one, or one of a family in which an address has a network of its own (`/32`, `/128`). If several interfaces have gateways, the
    /// first one's is used.
    pub gateways: Vec<IpAddr>,
    /// The name servers that instances ask which share the VM's network: up to 3. Of several interfaces the first three are used.
    pub name_servers: Vec<IpAddr>,
    /// The domains that those look for names in: up to 6.
    #[serde(with = "super::text::list")]
    pub search_domains: Vec<SearchDomain>,
}

impl GuestNetwork {
    /// With one address and the gateway of its family.
    #[must_use]
    pub fn new(address: InterfaceAddress, gateway: IpAddr) -> Self {
        Self { addresses: vec![address], gateways: vec![gateway], ..Self::default() }
    }

    /// Checks it as the field `field` of the configuration.
    pub(super) fn check(&self, field: &str) -> Result<(), ConfigError> {
        let Self { addresses, gateways, name_servers, search_domains } = self;
        let at_most = |name: &str, length, limit| {
            let found = || error(format!("{field}.{name}"), count(length), format!("at most {limit}"));
            if length > limit { Err(found()) } else { Ok(()) }
        };
        at_most("addresses", addresses.len(), MAX_ADDRESSES)?;
        at_most("gateways", gateways.len(), MAX_GATEWAYS)?;
        at_most("name_servers", name_servers.len(), MAX_NAME_SERVERS)?;
        at_most("search_domains", search_domains.len(), MAX_SEARCH_DOMAINS)?;
        let wrong =
            |name: &str, value: &dyn Display, expected: &str| Err(error(format!("{field}.{name}"), value, expected));
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].iter().any(|other| other.address() == address.address()) {
                return wrong(&format!("addresses[{index}]"), address, "an address that is not there twice");
            }
        }
        match check_gateways(gateways, addresses) {
            Ok(()) => {}
            Err(ValueError::Gateway(gateway)) => {
                let expected = "another host's address in the network of one of `addresses`, or an IPv6 link-local one";
                return wrong("gateways", &gateway, expected);
            }
            Err(_) => return wrong("gateways", &count(gateways.len()), "one for each family"),
        }
        match name_servers.iter().find(|&&server| check_name_server(server).is_err()) {
            Some(server) => wrong("name_servers", server, "the address of a host, not a link-local one"),
            None => Ok(()),
        }
    }

    /// What the agent is asked to set up on the interface called `id` with this hardware address.
    pub(crate) fn setup(&self, id: &str, hardware_address: [u8; 6]) -> InterfaceSetup {
        InterfaceSetup {
            hardware_address,
            name: id.parse().ok(),
            addresses: self.addresses.clone(),
            gateways: self.gateways.clone(),
            name_servers: self.name_servers.clone(),
            search_domains: self.search_domains.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bellows_protocol::network::parse_interfaces;

    use super::*;

    fn read(text: &str) -> Result<GuestNetwork, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn full() -> GuestNetwork {
        let text = r#"{ "addresses": ["172.16.0.2/30", "fd00::2/64"], "gateways": ["172.16.0.1", "fe80::1"],
                        "name_servers": ["172.16.0.1"], "search_domains": ["example.org"] }"#;
        read(text).unwrap()
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        full().check("guest").unwrap();
        assert_eq!(read(&serde_json::to_string(&full()).unwrap()).unwrap(), full());
        assert_eq!(read("{}").unwrap(), GuestNetwork::default());
        GuestNetwork::default().check("guest").unwrap();
        for (text, named) in [
            (r#"{ "addresses": ["172.16.0.2"] }"#, "172.16.0.2"),
            (r#"{ "addresses": ["127.0.0.1/8"] }"#, "127.0.0.1/8"),
            (r#"{ "gateways": ["router"] }"#, "invalid IP address"),
            (r#"{ "search_domains": ["a b"] }"#, "a b"),
            (r#"{ "dns": [] }"#, "unknown field `dns`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    /// Whatever passes here passes the agent's checks.
    #[test]
    fn the_agent_takes_what_is_checked_here() {
        let setup = full().setup("eth0", [2, 0, 0, 0, 0, 1]);
        assert_eq!(setup.name.as_ref().map(|name| name.as_str()), Some("eth0"));
        assert_eq!(parse_interfaces(&[setup.message()]), Ok(vec![setup]));
        assert_eq!(full().setup("a-very-long-name", [2; 6]).name, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |change: fn(&mut GuestNetwork)| {
            let mut network = full();
            change(&mut network);
            network.check("network_interfaces[1].guest").unwrap_err().to_string()
        };
        let text = refused(|network| network.gateways[0] = [10, 0, 0, 1].into());
        assert!(text.contains("`network_interfaces[1].guest.gateways` is 10.0.0.1: expected another host's"), "{text}");
        let text = refused(|network| network.gateways[1] = [172, 16, 0, 1].into());
        assert!(text.contains("expected one for each family"), "{text}");
        let text = refused(|network| network.addresses.push("172.16.0.2/24".parse().unwrap()));
        assert!(text.contains("guest.addresses[2]` is 172.16.0.2/24"), "{text}");
        let text = refused(|network| network.name_servers = vec![[10, 0, 0, 1].into(); 4]);
        assert!(text.contains("guest.name_servers` is 4 entries: expected at most 3"), "{text}");
        let text = refused(|network| network.name_servers = vec![[0; 4].into()]);
        assert!(text.contains("guest.name_servers` is 0.0.0.0"), "{text}");
    }
}
