//! Ports of the guest that the host's are passed on to, as Docker writes them.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// A port of the host that leads to one of the guest: `[ADDR:]HOST:GUEST[/tcp|/udp]`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Published {
    /// The host's address that it is open at; `None` for all of them.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: NonZeroU16,
    /// The guest's.
    pub guest: NonZeroU16,
    /// What is passed on.
    pub protocol: Protocol,
}

/// What a port is one of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A text is not a port to publish.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}`: {what}; expected [ADDR:]HOST:GUEST[/tcp|/udp], such as 8080:80 or 127.0.0.1:5353:53/udp")]
pub struct ParsePublishedError {
    text: String,
    what: String,
}

impl FromStr for Published {
    type Err = ParsePublishedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|what| ParsePublishedError { text: text.to_owned(), what })
    }
}

fn parse(text: &str) -> Result<Published, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither `tcp` nor `udp`")),
    };
    let (rest, guest) = ports.rsplit_once(':').ok_or("there is no port of the guest")?;
    let (address, host) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((address, host)) => (Some(parse_address(address)?), host),
    };
    Ok(Published { address, host: port(host)?, guest: port(guest)?, protocol })
}

/// An IPv4 address, or an IPv6 address in brackets.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let within = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let parsed = match within {
        Some(text) => text.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    parsed.ok_or_else(|| format!("`{text}` is neither an IPv4 address nor an IPv6 address in brackets"))
}

fn port(text: &str) -> Result<NonZeroU16, String> {
    // `parse` takes a sign, too.
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| format!("`{text}` is not a port from 1 to 65535"))
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_for_docker() {
        for (text, written) in [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/tcp", "8080:80/tcp"),
            ("53:53/udp", "53:53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
            ("[fd00::2]:65535:1", "[fd00::2]:65535:1/tcp"),
        ] {
            let port: Published = text.parse().unwrap();
            assert_eq!(port.to_string(), written);
            assert_eq!(written.parse(), Ok(port));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, what) in [
            ("", "no port of the guest"),
            ("80", "no port of the guest"),
            ("80/udp", "no port of the guest"),
            ("0:80", "`0` is not a port"),
            ("80:65536", "`65536` is not a port"),
            ("+80:80", "`+80` is not a port"),
            (":80", "`` is not a port"),
            ("8000-8010:80", "`8000-8010` is not a port"),
            ("80:80/sctp", "`sctp` is neither"),
            ("80:80/", "`` is neither"),
            ("::1:80:80", "`::1` is neither an IPv4"),
            ("[127.0.0.1]:80:80", "`[127.0.0.1]` is neither"),
            ("localhost:80:80", "`localhost` is neither"),
            (":80:80", "`` is neither an IPv4"),
        ] {
            let error = text.parse::<Published>().unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("such as 8080:80"), "{text}: {error}");
        }
    }
}
