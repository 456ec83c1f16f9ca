//! Where requests go: which server a URL means, and where a redirect leads.

use std::net::IpAddr;

use ureq::http::Uri;

/// A server, as far as secrets are meant for it and no other: scheme, host and port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The server of a URL; `None` where that has no host or is not HTTP.
    pub fn of(url: &Uri) -> Option<Self> {
        let https = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, host: url.host()?.to_ascii_lowercase(), port })
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Name or address, which has no brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is on this host.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Whether a host, without a port, is this one.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Where `location` leads from `base` (RFC 3986 section 5.2, without what never occurs in a `Location`: a path relative to the
/// last segment is taken, dots in it are the server's to resolve).
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute =
        location.split_once("://").is_some_and(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphanumeric()));
    let text = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let url: Uri = text.parse().ok()?;
    Origin::of(&url).map(|_| url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| Origin::of(&uri(a)) == Origin::of(&uri(b));
        assert!(same("https://r.io/a", "https://R.io:443/b?c"));
        assert!(same("http://r.io:80/a", "http://r.io"));
        for other in
            ["http://r.io/a", "https://r.io:444/a", "https://r.io.evil/a", "https://evil/r.io", "https://x@evil/"]
        {
            assert!(!same("https://r.io/a", other), "{other}");
        }
        assert_eq!(Origin::of(&uri("ftp://r.io/")), None);
        assert_eq!(Origin::of(&uri("/path")), None);
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let base = uri("https://r.io:5000/v2/a/blobs/sha256:0?x=1");
        for (location, expected) in [
            ("https://cdn.io/b?sig=a%2Fb", "https://cdn.io/b?sig=a%2Fb"),
            ("http://cdn.io", "http://cdn.io/"),
            ("//cdn.io/b", "https://cdn.io/b"),
            ("/files/b?c=d", "https://r.io:5000/files/b?c=d"),
            ("other", "https://r.io:5000/v2/a/blobs/other"),
            ("?y=2", "https://r.io:5000/v2/a/blobs/sha256:0?y=2"),
            ("/b#part", "https://r.io:5000/b"),
            ("/b?next=http://x/", "https://r.io:5000/b?next=http://x/"),
        ] {
            assert_eq!(resolve(&base, location).map(|url| url.to_string()).as_deref(), Some(expected), "{location}");
        }
        for location in ["ftp://r.io/", "https://", "/a b", "file:///etc/passwd"] {
            assert_eq!(resolve(&base, location), None, "{location}");
        }
    }

    #[test]
    fn this_host_has_many_names() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil", "10.0.0.1", "127.0.0.1.evil", "r.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
