//! Which servers have a registry's images, and which authorities vouch for them: folders called by registries, with containerd's
//! `hosts.toml` or Docker's files of certificates in them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, parse_pem};

use super::address::Origin;
use crate::oci::error::RegistryError;

/// containerd's file.
const HOSTS: &str = "hosts.toml";
/// The folder for registries that have none.
const DEFAULT: &str = "_default";

/// A server to ask, in its turn.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// URL that repositories' names follow, without a slash at its end: `https://mirror:5000/v2`.
    pub base: String,
    /// It may say what a tag stands for.
    pub resolves: bool,
    /// It is the registry itself and not a mirror of it.
    pub is_registry: bool,
    pub headers: Vec<(String, String)>,
    pub trust: Trust,
}

/// How a server proves its identity, and how we prove ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    /// They vouch for it beside the system's.
    pub authorities: Vec<Certificate<'static>>,
    pub client: Option<ClientCert>,
    /// Anybody will do.
    pub anybody: bool,
}

impl Trust {
    /// Whether it is what every server needs.
    pub fn is_usual(&self) -> bool {
        self.authorities.is_empty() && self.client.is_none() && !self.anybody
    }
}

/// The servers for `registry`, in the order to ask them. `folders` are looked through for one that knows it; the registry's own
/// server is at `server`.
pub(super) fn hosts(folders: &[PathBuf], registry: &str, server: &str) -> Result<Vec<Host>, RegistryError> {
    let own = |folder: Option<&Path>| {
        let trust = folder.map(docker_trust).transpose()?.unwrap_or_default();
        Ok(Host { base: format!("{server}/v2"), resolves: true, is_registry: true, headers: Vec::new(), trust })
    };
    let Some(folder) = find(folders, registry) else { return Ok(vec![own(None)?]) };
    let path = folder.join(HOSTS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![own(Some(&folder))?]),
        Err(error) => return Err(problem(&path, error)),
    };
    let file: HostsFile = toml::from_str(&text).map_err(|error| problem(&path, error))?;
    let mut hosts = Vec::new();
    for (url, entry) in file.host.0 {
        let host = entry.host(&path, &url, false)?;
        // Skip a server for uploads only.
        hosts.extend(entry.can("pull").then_some(host));
    }
    match file.server {
        Some(url) => hosts.push(file.own.host(&path, &url, true)?),
        None => hosts.push(Host { trust: file.own.trust(&path)?, ..own(None)? }),
    }
    Ok(hosts)
}

/// The folder of `registry`: under its own name, with low lines where a file system has no colons, or the one for all.
fn find(folders: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let escaped = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), escaped, Some(DEFAULT.to_owned())];
    let names = || names.iter().flatten();
    folders.iter().flat_map(|folder| names().map(move |name| folder.join(name))).find(|folder| folder.is_dir())
}

/// containerd's `hosts.toml`: the fields of the registry's own server, and those of servers before it.
#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: Ordered,
    #[serde(flatten)]
    own: Entry,
}

/// Servers in the file's order.
#[derive(Default)]
struct Ordered(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Ordered;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table of servers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut hosts = Vec::new();
                while let Some(host) = map.next_entry()? {
                    hosts.push(host);
                }
                Ok(Ordered(hosts))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[derive(Default, Deserialize)]
struct Entry {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Files,
    #[serde(default)]
    client: Clients,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMore>,
}

/// One file, or several.
#[derive(Default)]
struct Files(Vec<PathBuf>);

/// Files with a certificate, its key or both; the first that is given is used.
#[derive(Default)]
struct Clients(Option<(PathBuf, Option<PathBuf>)>);

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    One(PathBuf),
    /// Each a file with both, or a pair.
    More(Vec<OneOrMore>),
}

impl OneOrMore {
    fn all(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(texts) => texts,
        }
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let files = OneOrMore::deserialize(deserializer)?.all();
        Ok(Self(files.into_iter().map(PathBuf::from).collect()))
    }
}

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let first = match ClientFiles::deserialize(deserializer)? {
            ClientFiles::One(file) => return Ok(Self(Some((file, None)))),
            ClientFiles::More(files) => files.into_iter().next().map(OneOrMore::all),
        };
        match first.as_deref() {
            None => Ok(Self(None)),
            Some([both]) => Ok(Self(Some((both.into(), None)))),
            Some([certificate, key]) => {
                Ok(Self(Some((certificate.into(), (!key.is_empty()).then(|| PathBuf::from(key))))))
            }
            Some(files) => Err(D::Error::custom(format!("{} files for one client, expected 1 or 2", files.len()))),
        }
    }
}

impl Entry {
    /// The server at `url` as the file at `path` describes it.
    fn host(&self, path: &Path, url: &str, is_registry: bool) -> Result<Host, RegistryError> {
        let address = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let valid = address.parse::<Uri>().is_ok_and(|url| Origin::of(&url).is_some() && url.query().is_none());
        if !valid {
            return Err(problem(path, format!("`{url}` is not the URL of a server")));
        }
        let trust = self.trust(path)?;
        let address = address.trim_end_matches('/');
        let base =
            if self.override_path || address.ends_with("/v2") { address.into() } else { format!("{address}/v2") };
        let one = |(name, values): (&String, &OneOrMore)| {
            let name = name.clone();
            values.clone().all().into_iter().map(move |value| (name.clone(), value))
        };
        let headers = self.header.iter().flat_map(one).collect();
        let resolves = self.can("resolve");
        Ok(Host { base, resolves, is_registry, headers, trust })
    }

    /// Whether it may be asked for such things; without a list for all.
    fn can(&self, wanted: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|all| all.iter().any(|one| one == wanted))
    }

    fn trust(&self, path: &Path) -> Result<Trust, RegistryError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut authorities = Vec::new();
        for file in &self.ca.0 {
            authorities.extend(certificates(&folder.join(file))?);
        }
        let client = match &self.client.0 {
            Some((certificate, key)) => {
                Some(client(&folder.join(certificate), &folder.join(key.as_ref().unwrap_or(certificate)))?)
            }
            None => None,
        };
        Ok(Trust { authorities, client, anybody: self.skip_verify })
    }
}

/// What Docker's files in a registry's folder say: `*.crt` are authorities, `*.cert` and `*.key` of one name a client's.
fn docker_trust(folder: &Path) -> Result<Trust, RegistryError> {
    let mut trust = Trust::default();
    let entries = fs::read_dir(folder).map_err(|error| problem(folder, error))?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(folder, error))?;
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.authorities.extend(certificates(&file)?),
            Some("cert") if trust.client.is_none() => trust.client = Some(client(&file, &file.with_extension("key"))?),
            _ => {}
        }
    }
    Ok(trust)
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let certificates: Vec<_> = pem(file)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(problem(file, "it has no certificate in PEM form")) } else { Ok(certificates) }
}

fn client(certificate: &Path, key: &Path) -> Result<ClientCert, RegistryError> {
    let chain = certificates(certificate)?;
    let key_in = |item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    };
    let found: Option<PrivateKey<'static>> = pem(key)?.into_iter().find_map(key_in);
    Ok(ClientCert::new_with_certs(&chain, found.ok_or_else(|| problem(key, "it has no private key in PEM form"))?))
}

fn pem(file: &Path) -> Result<Vec<PemItem<'static>>, RegistryError> {
    let data = fs::read(file).map_err(|error| problem(file, error))?;
    parse_pem(&data).collect::<Result<_, _>>().map_err(|error| problem(file, error))
}

fn problem(path: &Path, problem: impl ToString) -> RegistryError {
    RegistryError::Hosts { path: path.to_owned(), problem: problem.to_string().replace('\n', " ") }
}

#[cfg(test)]
#[path = "hosts_test.rs"]
mod tests;
