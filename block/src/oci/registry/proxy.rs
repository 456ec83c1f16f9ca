//! Which proxy a request goes through, as Go's programs read it from their environment (`golang.org/x/net/http/httpproxy`).

use std::net::IpAddr;

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::address::Origin;

/// Proxies by the scheme of the URL, and the hosts that are reached directly. Empty by default.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// A variable that does not name a proxy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the variable `{variable}` is `{value}`: expected a proxy as http://[USER:PASSWORD@]HOST[:PORT], or https://")]
pub struct ParseProxyError {
    variable: &'static str,
    /// Without what may be a password.
    value: String,
}

/// Servers that are asked past proxies.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Exception {
    place: Place,
    /// Any where it is left out.
    port: Option<u16>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    Everywhere,
    /// Addresses that begin with these bits.
    Network(IpAddr, u32),
    /// What is below a domain, and perhaps the host of that name.
    Domain {
        name: String,
        itself: bool,
    },
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or their names in lower case; `variable` gives what a variable has.
    ///
    /// # Errors
    /// One is not the URL of a proxy.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ParseProxyError> {
        let value = |name: &str| {
            let names = [name.to_owned(), name.to_lowercase()];
            names.iter().filter_map(|name| variable(name)).find(|value| !value.trim().is_empty())
        };
        let proxy = |name| value(name).map(|value| parse(name, value.trim())).transpose();
        let exceptions = value("NO_PROXY").unwrap_or_default();
        let exceptions = exceptions.split(',').filter_map(|text| Exception::parse(&text.trim().to_lowercase()));
        Ok(Self { http: proxy("HTTP_PROXY")?, https: proxy("HTTPS_PROXY")?, exceptions: exceptions.collect() })
    }

    /// The proxy that a request for `url` goes through. What is on this host is asked past any.
    pub(super) fn of(&self, url: &Uri) -> Option<&Proxy> {
        let origin = Origin::of(url)?;
        let proxy = if origin.is_https() { &self.https } else { &self.http };
        let direct = origin.is_loopback() || self.exceptions.iter().any(|exception| exception.fits(&origin));
        proxy.as_ref().filter(|_| !direct)
    }
}

/// Reads a proxy's URL, whose scheme may be left out.
fn parse(variable: &'static str, value: &str) -> Result<Proxy, ParseProxyError> {
    let url = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let proxy = Proxy::new(&url).ok();
    let known = |proxy: &Proxy| [ProxyProtocol::Http, ProxyProtocol::Https].contains(&proxy.protocol());
    proxy.filter(known).ok_or_else(|| {
        let value = value.rsplit('@').next().unwrap_or_default();
        ParseProxyError { variable, value: crate::oci::words::quoted(value) }
    })
}

impl Exception {
    /// Reads a word in lower case: `*`, an address, a network, a name, or one with a port. What means nothing is passed over.
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { place: Place::Everywhere, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= most).then_some(Self { place: Place::Network(address, bits), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            // An address of version 6 has colons of its own.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = host.parse::<IpAddr>() {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            return Some(Self { place: Place::Network(address, bits), port });
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let (name, itself) = host.strip_prefix('.').map_or((host, true), |name| (name, false));
        let place = Place::Domain { name: name.to_owned(), itself };
        (!name.is_empty()).then_some(Self { place, port })
    }

    fn fits(&self, origin: &Origin) -> bool {
        let host = origin.host();
        let here = match &self.place {
            Place::Everywhere => true,
            Place::Network(network, bits) => host.parse().is_ok_and(|address| is_in(address, *network, *bits)),
            Place::Domain { name, itself } => match host.strip_suffix(name.as_str()) {
                Some("") => *itself,
                Some(before) => before.ends_with('.'),
                None => false,
            },
        };
        here && self.port.is_none_or(|port| port == origin.port())
    }
}

/// Whether an address has the first `bits` bits of another.
fn is_in(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            (address.to_bits() ^ network.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, ParseProxyError> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Proxies::from_variables(variable)
    }

    /// Host and port of the proxy for a URL.
    fn through(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxies = proxies(variables).unwrap();
        proxies.of(&url.parse().unwrap()).map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = [("HTTPS_PROXY", "http://s:1"), ("HTTP_PROXY", "p:2")];
        assert_eq!(through(&both, "https://r.io/a").as_deref(), Some("s:1"));
        assert_eq!(through(&both, "http://r.io/a").as_deref(), Some("p:2"));
        assert_eq!(through(&both[..1], "http://r.io/a"), None);
        assert_eq!(through(&both[1..], "https://r.io/a"), None);
        // The upper-case name counts, unless it is empty.
        let lower = [("HTTPS_PROXY", " "), ("https_proxy", "http://u:p@l:3")];
        assert_eq!(through(&lower, "https://r.io/a").as_deref(), Some("l:3"));
        for url in ["https://localhost:5000/a", "https://127.0.0.2/a", "https://[::1]/a"] {
            assert_eq!(through(&both, url), None, "{url}");
        }
    }

    #[test]
    fn exceptions_are_names_addresses_and_networks() {
        for (exceptions, url, direct) in [
            ("*", "https://r.io/", true),
            ("r.io", "https://r.io/", true),
            ("R.io", "https://r.IO:5000/", true),
            ("r.io", "https://a.b.r.io/", true),
            ("r.io", "https://err.io/", false),
            (".r.io", "https://a.r.io/", true),
            (".r.io", "https://r.io/", false),
            ("*.r.io", "https://a.r.io/", true),
            ("*.r.io", "https://r.io/", false),
            ("x, r.io ,", "https://r.io/", true),
            ("r.io:5000", "https://r.io:5000/", true),
            ("r.io:5000", "https://r.io/", false),
            ("r.io:443", "https://r.io/", true),
            ("10.1.2.3", "https://10.1.2.3:5000/", true),
            ("10.1.2.3:5000", "https://10.1.2.3/", false),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("0.0.0.0/0", "https://r.io/", false),
            ("fd00::/8", "https://[fd12::1]/", true),
            ("fd12::1", "https://[fd12::1]:5000/", true),
            ("[fd12::1]:5000", "https://[fd12::1]:5000/", true),
            ("[fd12::1]:5000", "https://[fd12::1]/", false),
            ("fd00::/8", "https://[fe80::1]/", false),
            ("", "https://r.io/", false),
            (".,:,*.,/8,10.0.0.0/33,r.io:x", "https://r.io/", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://p:1"), ("no_proxy", exceptions)];
            assert_eq!(through(&variables, url).is_none(), direct, "{exceptions}: {url}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_named_without_its_password() {
        for (value, shown) in [("http://", "http://"), ("socks5://u:secret@h:1", "h:1"), ("ftp://h", "ftp://h")] {
            let message = proxies(&[("HTTPS_PROXY", value)]).unwrap_err().to_string();
            assert!(message.contains("`HTTPS_PROXY`") && message.contains(&format!("`{shown}`")), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
