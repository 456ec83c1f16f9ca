//! The addresses of a VM behind passt, and the command line that tells passt of them, so that neither has to guess.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bellows_vmm::{GuestNetwork, InterfaceAddress, MacAddress, ValueError};

use super::host::{NameServers, Routes};
use super::ports::{Protocol, Published};

/// Bytes of the largest packet: what an IPv4 packet may have, as passt's own default. There is no wire that would limit it, and TCP
/// sends as much at once.
pub(crate) const MTU: u16 = 65520;
/// Most name servers of a guest.
const MAX_NAME_SERVERS: usize = 3;
/// Most domains that it looks for names in.
const MAX_SEARCH_DOMAINS: usize = 6;

/// The addresses of one protocol. They are the same for every VM: each is alone in its network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Addresses {
    /// The guest's.
    pub(crate) guest: IpAddr,
    /// Bits of it that name the network.
    pub(crate) prefix: u8,
    /// What the guest sends all packets to, and passt's own.
    pub(crate) gateway: IpAddr,
    /// What passt passes queries for names on from, to a name server that the guest cannot reach.
    pub(crate) names: IpAddr,
}

/// As with QEMU's user network, and slirp4netns.
const IPV4: Addresses = Addresses {
    guest: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)),
    prefix: 24,
    gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
    names: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3)),
};

/// A unique local network (RFC 4193). Resolvers prefer IPv4 to it for hosts on the Internet that have both.
const IPV6: Addresses = Addresses {
    guest: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 0x15)),
    prefix: 64,
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 2)),
    names: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, 2, 0, 0, 0, 3)),
};

/// A VM's network behind passt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Plan {
    /// Of the protocols that the host has a route for: at least one.
    pub(crate) addresses: Vec<Addresses>,
    /// The guest's name servers.
    pub(crate) name_servers: Vec<IpAddr>,
    /// The domains that names are looked for in.
    pub(crate) search: Vec<String>,
    /// Those of `name_servers` that passt passes on.
    forwarded: Vec<IpAddr>,
    published: Vec<Published>,
    /// Whether the gateway's address is the host's loopback.
    loopback: bool,
}

impl Plan {
    /// For a host that routes so and asks these servers for names; `None` if it routes nothing.
    pub(crate) fn new(routes: Routes, host: &NameServers, published: Vec<Published>, loopback: bool) -> Option<Self> {
        let addresses: Vec<_> =
            [(routes.ipv4, IPV4), (routes.ipv6, IPV6)].into_iter().filter_map(|(has, of)| has.then_some(of)).collect();
        let mut plan = Self {
            name_servers: Vec::new(),
            search: host.search.clone(),
            forwarded: Vec::new(),
            published,
            loopback,
            addresses,
        };
        for own in &plan.addresses {
            let of_protocol = |server: &&IpAddr| server.is_ipv4() == own.guest.is_ipv4();
            for (number, server) in host.servers.iter().filter(of_protocol).enumerate() {
                match server.is_loopback() {
                    // A guest reaches these as the host does.
                    false => plan.name_servers.push(*server),
                    // passt passes queries on to the first.
                    true if number == 0 => {
                        plan.name_servers.push(own.names);
                        plan.forwarded.push(own.names);
                    }
                    true => {}
                }
            }
        }
        plan.name_servers.truncate(MAX_NAME_SERVERS);
        plan.forwarded.retain(|server| plan.name_servers.contains(server));
        (!plan.addresses.is_empty()).then_some(plan)
    }

    /// What the guest's agent sets up. Of the host's search domains those are left out that are not names of domains.
    pub(crate) fn guest(&self) -> Result<GuestNetwork, ValueError> {
        let address = |own: &Addresses| InterfaceAddress::new(own.guest, own.prefix);
        Ok(GuestNetwork {
            addresses: self.addresses.iter().map(address).collect::<Result<_, _>>()?,
            gateways: self.addresses.iter().map(|own| own.gateway).collect(),
            name_servers: self.name_servers.clone(),
            search_domains: self.search.iter().filter_map(|name| name.parse().ok()).take(MAX_SEARCH_DOMAINS).collect(),
        })
    }

    /// The words after `passt`, which has the stream socket as descriptor `fd`, and runs as `user` if it is to be another.
    pub(crate) fn arguments(&self, fd: i32, mac: MacAddress, user: Option<&str>) -> Vec<String> {
        let mut words: Vec<String> = ["--foreground", "--quiet"].map(Into::into).into();
        let mut add = |name: &str, value: String| words.extend([name.to_owned(), value]);
        add("--fd", fd.to_string());
        add("--mac-addr", mac.to_string());
        add("--mtu", MTU.to_string());
        if let Some(user) = user {
            add("--runas", user.to_owned());
        }
        for Addresses { guest, prefix, gateway, .. } in &self.addresses {
            add("--address", guest.to_string());
            add("--gateway", gateway.to_string());
            if guest.is_ipv4() {
                add("--netmask", prefix.to_string());
            }
        }
        for server in &self.forwarded {
            add("--dns-forward", server.to_string());
        }
        for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
            let mut ports = self.published.iter().filter(|port| port.protocol == protocol).peekable();
            // Without a word about UDP, those of TCP would be published for it too.
            if ports.peek().is_none() {
                add(option, "none".into());
            }
            for Published { address, host, guest, .. } in ports {
                let address = address.map(|address| format!("{address}/")).unwrap_or_default();
                add(option, format!("{address}{host}:{guest}"));
            }
        }
        if let [only] = &self.addresses[..] {
            words.push(if only.guest.is_ipv4() { "--ipv4-only" } else { "--ipv6-only" }.into());
        }
        if !self.loopback {
            words.push("--no-map-gw".into());
        }
        // The agent sets the addresses.
        words.push("--no-ra".into());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Routes = Routes { ipv4: true, ipv6: true };

    fn servers(servers: &[&str]) -> NameServers {
        NameServers { servers: servers.iter().map(|text| text.parse().unwrap()).collect(), search: Vec::new() }
    }

    fn line(plan: &Plan) -> String {
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        plan.arguments(5, mac, None).join(" ")
    }

    #[test]
    fn passt_is_told_everything() {
        let plan = Plan::new(BOTH, &servers(&["192.0.2.1"]), Vec::new(), false).unwrap();
        assert_eq!(
            line(&plan),
            "--foreground --quiet --fd 5 --mac-addr 02:00:00:00:00:01 --mtu 65520 \
             --address 10.0.2.15 --gateway 10.0.2.2 --netmask 24 --address fd00:10:0:2::15 --gateway fd00:10:0:2::2 \
             --tcp-ports none --udp-ports none --no-map-gw --no-ra"
        );
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        assert!(plan.arguments(5, mac, Some("1:2")).join(" ").contains(" --runas 1:2 "));
    }

    #[test]
    fn the_guest_is_set_up_as_passt_is_told() {
        let search = ["a.example", "not a domain", "b.example"].map(str::to_owned).into();
        let host = NameServers { search, ..servers(&["192.0.2.1"]) };
        let plan = Plan::new(BOTH, &host, Vec::new(), false).unwrap();
        let guest = serde_json::to_value(plan.guest().unwrap()).unwrap();
        assert_eq!(
            guest,
            serde_json::json!({
                "addresses": ["10.0.2.15/24", "fd00:10:0:2::15/64"],
                "gateways": ["10.0.2.2", "fd00:10:0:2::2"],
                "name_servers": ["192.0.2.1"],
                "search_domains": ["a.example", "b.example"],
            })
        );
        // The guest takes it.
        let mut config = bellows_vmm::VmConfig::new("vmlinux", "512M".parse().unwrap());
        let mut interface = bellows_vmm::NetConfig::new("eth0", bellows_vmm::Tap::Fd(7));
        interface.guest = Some(plan.guest().unwrap());
        config.network_interfaces.push(interface);
        config.validate().unwrap();
    }

    #[test]
    fn a_protocol_without_a_route_is_left_out() {
        for (ipv4, ipv6, option, left_out) in
            [(true, false, "--ipv4-only", "fd00"), (false, true, "--ipv6-only", "10.0.2")]
        {
            let host = servers(&["192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"]);
            let plan = Plan::new(Routes { ipv4, ipv6 }, &host, Vec::new(), true).unwrap();
            let line = line(&plan);
            assert!(line.contains(option) && !line.contains(left_out) && !line.contains("--no-map-gw"), "{line}");
            assert!(plan.name_servers.iter().all(|server| server.is_ipv4() == ipv4));
        }
        assert_eq!(Plan::new(Routes { ipv4: false, ipv6: false }, &servers(&[]), Vec::new(), false), None);
    }

    #[test]
    fn ports_are_published_as_asked_and_no_others() {
        let ports = ["8080:80", "127.0.0.1:53:5353/udp", "[::1]:443:8443"].map(|text| text.parse().unwrap());
        let line = line(&Plan::new(BOTH, &servers(&[]), ports.into(), false).unwrap());
        assert!(line.contains("--tcp-ports 8080:80 --tcp-ports ::1/443:8443 --udp-ports 127.0.0.1/53:5353"), "{line}");
        assert!(!line.contains("none"), "{line}");
    }

    #[test]
    fn the_guest_asks_the_hosts_name_servers() {
        for (host, expected, forwards) in [
            (&["192.0.2.1", "192.0.2.2"] as &[&str], &["192.0.2.1", "192.0.2.2"] as &[&str], ""),
            // A resolver of the host's own.
            (&["127.0.0.53"], &["10.0.2.3"], "--dns-forward 10.0.2.3"),
            (&["127.0.0.53", "192.0.2.2"], &["10.0.2.3", "192.0.2.2"], "--dns-forward 10.0.2.3"),
            (&["192.0.2.2", "127.0.0.1"], &["192.0.2.2"], ""),
            (&["::1", "192.0.2.2"], &["192.0.2.2", "fd00:10:0:2::3"], "--dns-forward fd00:10:0:2::3"),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3", "::1"], &["192.0.2.1", "192.0.2.2", "192.0.2.3"], ""),
            (&[], &[], ""),
        ] {
            let plan = Plan::new(BOTH, &servers(host), Vec::new(), false).unwrap();
            assert_eq!(plan.name_servers, servers(expected).servers, "{host:?}");
            let line = line(&plan);
            assert_eq!(line.matches("--dns-forward").count(), forwards.len().min(1), "{line}");
            assert!(line.contains(forwards), "{line}");
        }
    }
}
