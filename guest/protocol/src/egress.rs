//! What an instance with a network of its own may reach, and how much of it: rules and limits as both sides check them.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::str::FromStr;

use crate::agent;
use crate::values::{ValueError, bits, excerpt};

/// Most rules of an instance.
pub const MAX_EGRESS_RULES: usize = 64;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EgressProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Destinations that an instance may send to: a network, and of that one port only if it names one. As text it is
/// `CIDR[:PORT[/tcp|/udp]]`, with the brackets that an IPv6 network before a port has in URLs: `10.0.0.0/8`, `10.1.2.3:53/udp`,
/// `[fd00::/64]:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EgressRule {
    network: IpAddr,
    prefix: u8,
    port: Option<(NonZeroU16, Option<EgressProtocol>)>,
}

impl EgressRule {
    /// Destinations whose first `prefix` bits are those of `network`, at any port or, of both protocols or the one that is named, one.
    ///
    /// # Errors
    /// [`ValueError::Egress`]: `network` has fewer bits, or others than the first that are not zero.
    pub fn new(
        network: IpAddr,
        prefix: u8,
        port: Option<(NonZeroU16, Option<EgressProtocol>)>,
    ) -> Result<Self, ValueError> {
        let rule = Self { network, prefix, port };
        let host_bits = match network {
            IpAddr::V4(network) => prefix <= 32 && network.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
            IpAddr::V6(network) => prefix <= 128 && network.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
        };
        if host_bits { Ok(rule) } else { Err(ValueError::Egress(rule.to_string())) }
    }

    /// The network's first address.
    #[must_use]
    pub const fn network(&self) -> IpAddr {
        self.network
    }

    /// Bits of it that count.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The port, if it is for one only, and the protocol, if it is for one only.
    #[must_use]
    pub const fn port(&self) -> Option<(NonZeroU16, Option<EgressProtocol>)> {
        self.port
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, prefix, port } = self;
        let Some((port, protocol)) = port else { return write!(formatter, "{network}/{prefix}") };
        match network {
            IpAddr::V4(_) => write!(formatter, "{network}/{prefix}:{port}")?,
            IpAddr::V6(_) => write!(formatter, "[{network}/{prefix}]:{port}")?,
        }
        formatter.write_str(match protocol {
            None => "",
            Some(EgressProtocol::Tcp) => "/tcp",
            Some(EgressProtocol::Udp) => "/udp",
        })
    }
}

impl FromStr for EgressRule {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::Egress(excerpt(text));
        let (network, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (network, port) = rest.split_once(']').ok_or_else(malformed)?;
                (network, Some(port.strip_prefix(':').ok_or_else(malformed)?))
            }
            None => match text.split_once(':') {
                // More than one colon is an IPv6 network without a port.
                Some((network, port)) if !port.contains(':') => (network, Some(port)),
                _ => (text, None),
            },
        };
        let (address, prefix) = match network.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (network, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        if text.starts_with('[') != (address.is_ipv6() && port.is_some()) {
            return Err(malformed());
        }
        let prefix = prefix.map_or(Some(bits(address)), number).ok_or_else(malformed)?;
        let port = port.map(|port| parse_port(port).ok_or_else(malformed)).transpose()?;
        Self::new(address, prefix, port)
    }
}

fn parse_port(text: &str) -> Option<(NonZeroU16, Option<EgressProtocol>)> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((port, "tcp")) => (port, Some(EgressProtocol::Tcp)),
        Some((port, "udp")) => (port, Some(EgressProtocol::Udp)),
        Some(_) => return None,
    };
    Some((number(port)?, protocol))
}

/// A number in digits alone.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// How much may pass: as a token bucket, which fills at a constant rate and holds no more than the burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketRate {
    /// What comes in every second.
    pub per_second: NonZeroU64,
    /// Most that gathers while nothing passes.
    pub burst: NonZeroU64,
}

/// Limits of one direction of an instance's traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PacketLimit {
    /// Of bytes, without link headers.
    pub bytes: Option<PacketRate>,
    /// Of packets.
    pub packets: Option<PacketRate>,
}

impl PacketLimit {
    /// Whether there is none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.bytes.is_none() && self.packets.is_none()
    }

    /// It as a message: 0 where there is no limit.
    #[must_use]
    pub fn message(&self) -> agent::PacketLimit {
        let parts = |rate: Option<PacketRate>| rate.map_or((0, 0), |rate| (rate.per_second.get(), rate.burst.get()));
        let ((bytes_per_second, bytes_burst), (packets_per_second, packets_burst)) =
            (parts(self.bytes), parts(self.packets));
        agent::PacketLimit { bytes_per_second, bytes_burst, packets_per_second, packets_burst, ..Default::default() }
    }

    /// Reads and checks a message.
    ///
    /// # Errors
    /// [`ValueError::PacketRate`]: a rate without a burst, or the other way round.
    pub fn parse(message: &agent::PacketLimit) -> Result<Self, ValueError> {
        let rate = |per_second, burst| match (NonZeroU64::new(per_second), NonZeroU64::new(burst)) {
            (Some(per_second), Some(burst)) => Ok(Some(PacketRate { per_second, burst })),
            (None, None) => Ok(None),
            _ => Err(ValueError::PacketRate { per_second, burst }),
        };
        Ok(Self {
            bytes: rate(message.bytes_per_second, message.bytes_burst)?,
            packets: rate(message.packets_per_second, message.packets_burst)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8",
            "fd00::/64",
            "10.1.2.3/32:53/udp",
            "10.0.0.0/8:443",
            "[fd00::/64]:443/tcp",
            "[::/0]:65535",
        ] {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), text);
        }
        for (text, whole) in
            [("10.1.2.3", "10.1.2.3/32"), ("fd00::1", "fd00::1/128"), ("[fd00::1]:53", "[fd00::1/128]:53")]
        {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn what_is_no_rule_is_named() {
        for text in [
            "",
            "all",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "fd00::/129",
            "fd00::1/64",
            "10.0.0.0/+8",
            "10.0.0.0/8:0",
            "10.0.0.0/8:65536",
            "10.0.0.0/8:",
            "10.0.0.0/8:53/sctp",
            "10.0.0.0/8/tcp",
            "[10.0.0.0/8]:53",
            "[fd00::/64]",
            "[fd00::/64]443",
            "fd00::/64:443",
            "[fd00::/64:443",
            "10.0.0.0/8:+53",
            "localhost:80",
            "1.2.3.4/",
        ] {
            let error = text.parse::<EgressRule>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        let rate = |per_second, burst| PacketRate {
            per_second: NonZeroU64::new(per_second).unwrap(),
            burst: NonZeroU64::new(burst).unwrap(),
        };
        let whole = PacketLimit { bytes: Some(rate(1000, 5)), packets: Some(rate(u64::MAX, 1)) };
        for limit in [PacketLimit::default(), whole, PacketLimit { bytes: None, ..whole }] {
            assert_eq!(PacketLimit::parse(&limit.message()), Ok(limit));
            assert_eq!(limit.is_none(), limit == PacketLimit::default());
        }
        let half = agent::PacketLimit { bytes_per_second: 0, ..whole.message() };
        assert_eq!(PacketLimit::parse(&half), Err(ValueError::PacketRate { per_second: 0, burst: 5 }));
    }
}
