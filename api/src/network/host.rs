//! What the host's network is like, as far as passt depends on it.

use std::net::IpAddr;

/// Which protocols the host has a default route for: passt serves no others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Routes {
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

/// `RTF_UP` and `RTF_REJECT` of `linux/route.h`.
const UP: u32 = 1;
const REJECT: u32 = 0x200;

impl Routes {
    /// From the texts of `/proc/net/route` and `/proc/net/ipv6_route`.
    pub(crate) fn parse(ipv4: &str, ipv6: &str) -> Self {
        let usable = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (UP | REJECT) == UP);
        let is_default4 = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "00000000", _, flags, _, _, _, "00000000", ..] => usable(flags),
            _ => false,
        };
        let is_default6 = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [destination, "00", _, _, _, _, _, _, flags, interface] => {
                destination.bytes().all(|byte| byte == b'0') && interface != "lo" && usable(flags)
            }
            _ => false,
        };
        Self { ipv4: ipv4.lines().any(is_default4), ipv6: ipv6.lines().any(is_default6) }
    }
}

/// What the host asks names of.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct NameServers {
    /// In their order.
    pub(crate) servers: Vec<IpAddr>,
    /// The domains that names are looked for in.
    pub(crate) search: Vec<String>,
}

impl NameServers {
    /// From the text of a `resolv.conf(5)`. Servers with a scope are left out: it means nothing in a guest.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                // The last one counts.
                Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn default_routes_are_found() {
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let network = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let half = "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        let rejected = "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n";
        let zeros = "0".repeat(32);
        let default6 =
            format!("{zeros} 00 {zeros} 00 fe80000000000000000000000000000001 00000400 00000002 0 00000003 eth0\n");
        let null6 = format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200     lo\n");
        let network6 =
            format!("fd00{} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth0\n", "0".repeat(28));
        for (ipv4, ipv6, expected) in [
            (String::new(), String::new(), (false, false)),
            ([ROUTE, network, half, rejected].concat(), [network6.as_str(), &null6].concat(), (false, false)),
            ([ROUTE, network, default].concat(), null6.clone(), (true, false)),
            (ROUTE.to_owned(), [null6.as_str(), &default6].concat(), (false, true)),
            ([ROUTE, default].concat(), default6.clone(), (true, true)),
            ("nonsense\n\n".into(), "00 00\n".into(), (false, false)),
        ] {
            let routes = Routes::parse(&ipv4, &ipv6);
            assert_eq!((routes.ipv4, routes.ipv6), expected, "{ipv4}{ipv6}");
        }
    }

    #[test]
    fn name_servers_are_found() {
        let text = "# made by\ndomain a.example\nsearch b.example c.example\nnameserver 127.0.0.53\n\
                    nameserver\t192.0.2.1 # first\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\noptions edns0\nnameserver\n";
        let found = NameServers::parse(text);
        let servers = ["127.0.0.53", "192.0.2.1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(
            found,
            NameServers { servers: servers.into(), search: vec!["b.example".into(), "c.example".into()] }
        );
        assert_eq!(NameServers::parse(""), NameServers::default());
    }
}
