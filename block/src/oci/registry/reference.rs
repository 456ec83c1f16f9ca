//! Names of images in registries, in Docker's grammar.

use std::fmt;
use std::str::FromStr;

use super::address::is_loopback;
use crate::digest::Digest;

/// Where images are that name no registry.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Its namespace for names without one.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// What a name with its registry and a tag may have, in characters (`distribution/reference`).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An image in a registry: `[REGISTRY/]NAME[:TAG|@DIGEST]`. `busybox` is `docker.io/library/busybox:latest`; a first word with
/// a full stop or a colon in it, or `localhost`, is a registry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which of a repository's images.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Tag(String),
    Digest(Digest),
}

/// A text that names no image in a registry.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` does not name an image in a registry: {problem}; expected [REGISTRY/]NAME[:TAG|@DIGEST]")]
pub struct ParseReferenceError {
    text: String,
    problem: &'static str,
}

impl RegistryReference {
    /// Host of the registry, with a port where it is given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Name of the image there, without a tag.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    /// The host that serves the registry: Docker Hub's has another name.
    pub(super) fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this host.
    pub(super) fn is_loopback(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => &self.registry,
        };
        is_loopback(host)
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| "its digest is not sha256: and 64 hex digits")?))
            }
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DEFAULT_REGISTRY, name),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return Err("its registry is not a host name with or without a port");
        }
        let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err("its tag is not 1 to 128 letters, digits and _ . -");
        }
        if !path.split('/').all(is_component) {
            return Err("its name is not made of lower-case letters and digits, with . _ __ or - between them");
        }
        let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("{DEFAULT_NAMESPACE}/{path}"),
            false => path.to_owned(),
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err("it is longer than 255 characters");
        }
        // As with Docker a digest says it all.
        let version = digest.map_or_else(|| Version::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()), Version::Digest);
        Ok(Self { registry: registry.to_owned(), repository, version })
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(allowed)
    };
    let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    valid && port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

/// Letters and digits with separators between them: one full stop, one or two low lines, or any number of hyphens.
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |text: &str| ["", ".", "_", "__"].contains(&text) || text.bytes().all(|byte| byte == b'-');
    text.starts_with(plain) && text.ends_with(plain) && text.split(plain).all(separator)
}

impl FromStr for RegistryReference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        Self::parse(text).map_err(|problem| ParseReferenceError { text: text.chars().take(300).collect(), problem })
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> RegistryReference {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"x");
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("someone/thing", "docker.io/someone/thing:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("quay.io/a/b/c:v1.0-x", "quay.io/a/b/c:v1.0-x"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[::1]/a__b/c--d.e_f", "[::1]/a__b/c--d.e_f:latest"),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}")),
            (&format!("r.io:1/a:b@{digest}"), &format!("r.io:1/a@{digest}")),
        ] {
            let parsed = reference(text);
            assert_eq!(parsed.to_string(), *full);
            assert_eq!(reference(full), parsed);
        }
        assert_eq!(reference("a").host(), "registry-1.docker.io");
        assert_eq!(reference("r.io:1/a").host(), "r.io:1");
    }

    #[test]
    fn what_names_no_image_is_quoted() {
        let long = "a".repeat(250);
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:-b",
            "a b",
            "a@sha256:1",
            "a@",
            "-a",
            "a-",
            "a._b",
            "a___b",
            "a..b",
            "r.io",
            "r.io:x/a",
            "r.io:99999/a",
            "-r.io/a",
            "[::g]/a",
            "[::1/a",
            "../a",
            "a/../b",
            "a:b/c",
            "a?b",
            "a\n",
            "https://r.io/a",
            "r.io:/a",
            &long,
            &tag,
        ] {
            match bad {
                // A name with a full stop is a name where nothing follows it.
                "r.io" => assert_eq!(reference(bad).to_string(), "docker.io/library/r.io:latest"),
                // An empty port is what the parser of URLs takes as none; it is not one.
                _ => {
                    let error = bad.parse::<RegistryReference>().expect_err(bad);
                    assert!(error.to_string().starts_with(&format!("`{bad}` does not name")), "{error}");
                }
            }
        }
    }

    #[test]
    fn only_this_host_is_loopback() {
        for text in ["localhost/a", "localhost:5000/a", "127.0.0.1:5000/a", "127.1.2.3/a", "[::1]/a", "[::1]:80/a"] {
            assert!(reference(text).is_loopback(), "{text}");
        }
        for text in ["a", "quay.io/a", "localhost.evil.io/a", "127.0.0.1.evil.io/a", "10.0.0.1:5000/a", "[::2]:80/a"] {
            assert!(!reference(text).is_loopback(), "{text}");
        }
    }
}
