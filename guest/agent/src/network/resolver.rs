//! What instances that share the VM's network are told of it: `/etc/resolv.conf` and `/etc/hosts`.

use std::fmt::Write;
use std::net::IpAddr;

use bellows_protocol::network::{InterfaceSetup, MAX_NAME_SERVERS, MAX_SEARCH_DOMAINS};
use bellows_protocol::values::SearchDomain;

/// Name servers and domains of all interfaces, the first interface's first, and the VM's own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<IpAddr>,
    domains: Vec<SearchDomain>,
    addresses: Vec<IpAddr>,
}

impl Resolver {
    /// What these interfaces bring, as far as resolvers read it.
    pub fn of(setups: &[InterfaceSetup]) -> Self {
        let mut all = Self::default();
        for setup in setups {
            merge(&mut all.servers, &setup.name_servers, MAX_NAME_SERVERS);
            merge(&mut all.domains, &setup.search_domains, MAX_SEARCH_DOMAINS);
            all.addresses.extend(setup.addresses.iter().map(|own| own.address()));
        }
        all
    }

    /// The content of `/etc/resolv.conf`; `None` if there is no name server.
    pub fn resolv_conf(&self) -> Option<String> {
        if self.servers.is_empty() {
            return None;
        }
        let mut text = String::new();
        for server in &self.servers {
            // It cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.domains.is_empty() {
            let domains: Vec<_> = self.domains.iter().map(SearchDomain::as_str).collect();
            let _ = writeln!(text, "search {}", domains.join(" "));
        }
        Some(text)
    }

    /// The same for an instance with addresses of its own.
    #[must_use]
    pub fn at(self, addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.into(), ..self }
    }

    /// Whether the VM has this address.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The addresses that the name of an instance stands for: the VM's first of each family, which other hosts reach it at.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let first = |family: fn(&IpAddr) -> bool| self.addresses.iter().copied().find(family);
        [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten().collect()
    }
}

fn merge<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T], limit: usize) {
    for value in more {
        if all.len() < limit && !all.contains(value) {
            all.push(value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(addresses: &[&str], servers: &[&str], domains: &[&str]) -> InterfaceSetup {
        InterfaceSetup {
            hardware_address: [2, 0, 0, 0, 0, 1],
            name: None,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: Vec::new(),
            name_servers: servers.iter().map(|text| text.parse().unwrap()).collect(),
            search_domains: domains.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn instances_are_told_of_all_interfaces() {
        let resolver = Resolver::of(&[
            setup(&["fd00::2/64", "10.0.0.2/24"], &["10.0.0.1", "fd00::1"], &["example.org"]),
            setup(&["10.1.0.2/24"], &["10.0.0.1", "10.1.0.1", "10.2.0.1"], &["example.org", "example.net"]),
        ]);
        let expected = "nameserver 10.0.0.1\nnameserver fd00::1\nnameserver 10.1.0.1\nsearch example.org example.net\n";
        assert_eq!(resolver.resolv_conf().as_deref(), Some(expected));
        assert_eq!(resolver.own_addresses().iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.0.0.2", "fd00::2"]);
    }

    #[test]
    fn without_a_server_there_is_nothing_to_tell() {
        assert_eq!(Resolver::of(&[setup(&["10.0.0.2/24"], &[], &["example.org"])]).resolv_conf(), None);
        assert_eq!(Resolver::default().own_addresses(), Vec::<IpAddr>::new());
    }
}
