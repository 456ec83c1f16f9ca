//! Images in registries. Nothing that a registry says is believed before its digest was compared; what it may send is bounded
//! by the descriptors, and documents by a limit.

mod address;
mod auth;
mod blob;
mod client;
mod credentials;
mod helper;
mod hosts;
mod proxy;
mod reference;
mod retry;
mod server;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::blob::BlobReader;
use self::client::Client;
use self::reference::Version;
use self::retry::{Tries, is_broken_connection};
use super::blob::BlobError;
use super::blobs::{Blobs, DocumentKind};
use super::error::OciError;
use super::file_set::MAX_DOCUMENT;
use super::index::find_image;
use super::platform::Platform;
use super::source::SourceImage;
use super::spec::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, MANIFEST};
use crate::cancel::Cancel;
use crate::digest::Digest;

pub use credentials::{AuthFile, CredentialSource, Credentials};
pub use proxy::{ParseProxyError, Proxies};
pub use reference::{ParseReferenceError, RegistryReference};
pub use retry::{Retries, Retry};

/// How to speak to a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// HTTP instead of HTTPS; always so with a registry on this host.
    pub plain_http: bool,
    /// Who to be there.
    pub credentials: CredentialSource,
    /// Folders with a folder for each registry, which says where else its images are and who vouches for it: containerd's
    /// `hosts.toml`, or certificates as Docker names them. The first that knows a registry counts.
    pub hosts_folders: Vec<PathBuf>,
    /// What requests go through.
    pub proxies: Proxies,
    /// Longest time that the registry may let pass without sending or taking anything.
    pub patience: Duration,
    /// How often to try what fails for a reason that may pass.
    pub retries: Retries,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            credentials: CredentialSource::Nobody,
            hosts_folders: Vec::new(),
            proxies: Proxies::default(),
            patience: Duration::from_secs(60),
            retries: Retries::default(),
        }
    }
}

/// An image's name in a registry, and what it stands for there at the moment.
#[derive(Clone, Debug)]
pub struct RegistryImage {
    repository: Arc<Repository>,
}

/// Where an image's blobs are read.
pub(super) struct Repository {
    /// For messages.
    name: String,
    client: Client,
    /// What the image's name stands for, and its document.
    top: (Descriptor, Vec<u8>),
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).field("top", &self.top.0).finish_non_exhaustive()
    }
}

impl RegistryImage {
    /// Asks the registry what `reference` is.
    ///
    /// # Errors
    /// The registry does not answer or refuses it, or what it gives is not what it should be.
    pub(super) fn open(
        reference: &RegistryReference,
        options: &RegistryOptions,
        cancel: &Cancel,
    ) -> Result<Self, OciError> {
        let client = Client::new(reference, options, cancel)?;
        let (path, pinned) = match reference.version() {
            Version::Tag(tag) => (format!("manifests/{tag}"), None),
            Version::Digest(digest) => (format!("manifests/{digest}"), Some(*digest)),
        };
        let name = PathBuf::from(format!("docker://{reference}"));
        let Fetched { data, digest: named } = fetch_manifest(&client, &name, &path, MAX_DOCUMENT)?;
        let digest = Digest::of(&data);
        for expected in [pinned, named] {
            BlobError::check(expected, digest).map_err(|source| OciError::Blob { path: name.clone(), source })?;
        }
        let top = Descriptor::of(digest, data.len() as u64);
        let name = format!("docker://{}/{}", reference.registry(), reference.repository());
        Ok(Self { repository: Arc::new(Repository { name, client, top: (top, data) }) })
    }

    /// Finds the image for `platform`.
    ///
    /// # Errors
    /// There is no such image, or several; or one of its documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform) -> Result<SourceImage, OciError> {
        let top = &self.repository.top.0;
        let path = self.repository.path(&top.digest);
        // A name stands for one thing, which may be an index.
        let manifests = std::slice::from_ref(top);
        find_image(&Blobs::Registry(Arc::clone(&self.repository)), &path, manifests, platform, None)
    }
}

impl Repository {
    /// What messages call a blob.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        PathBuf::from(format!("{}@{digest}", self.name))
    }

    /// Reads a document, which is not checked.
    pub fn document(self: &Arc<Self>, descriptor: &Descriptor, kind: DocumentKind) -> Result<Vec<u8>, OciError> {
        let (top, data) = &self.top;
        if top.digest == descriptor.digest {
            return Ok(data.clone());
        }
        let path = self.path(&descriptor.digest);
        if descriptor.size > MAX_DOCUMENT {
            return Err(OciError::TooLarge { path, actual: descriptor.size, limit: MAX_DOCUMENT });
        }
        if kind == DocumentKind::Manifest {
            let name = format!("manifests/{}", descriptor.digest);
            return Ok(fetch_manifest(&self.client, &path, &name, descriptor.size)?.data);
        }
        let mut data = Vec::new();
        let mut blob = self.open(&descriptor.digest, descriptor.size)?;
        blob.read_to_end(&mut data).map_err(|source| OciError::Read { path, source })?;
        Ok(data)
    }

    /// Begins to read a blob; the content is not checked, but it has `bytes` bytes.
    pub fn open(self: &Arc<Self>, digest: &Digest, bytes: u64) -> Result<Box<dyn Read + Send>, OciError> {
        Ok(Box::new(BlobReader::open(self, digest, bytes)?))
    }
}

/// An index or a manifest, and what the answer says of its digest. What it says of its type is a hint that nobody needs.
struct Fetched {
    data: Vec<u8>,
    digest: Option<Digest>,
}

/// Reads an index or a manifest of at most `limit` bytes.
fn fetch_manifest(client: &Client, path: &Path, name: &str, limit: u64) -> Result<Fetched, OciError> {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
    let is_tag = !name.contains("sha256:");
    let too_large = |actual| OciError::TooLarge { path: path.to_owned(), actual, limit };
    let mut tries = Tries::new(client.retries());
    loop {
        let response = client.get(name, &accept, 0, is_tag)?;
        if let Some(bytes) = response.body().content_length().filter(|bytes| *bytes > limit) {
            return Err(too_large(bytes));
        }
        let digest = response.headers().get("docker-content-digest");
        let digest = digest.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        let mut data = Vec::new();
        match response.into_body().into_reader().take(limit + 1).read_to_end(&mut data) {
            Ok(_) if data.len() as u64 > limit => return Err(too_large(data.len() as u64)),
            Ok(_) => return Ok(Fetched { data, digest }),
            Err(broken)
                if is_broken_connection(&broken) && tries.again(&client.url(name), &broken, None, client.cancel()) => {}
            Err(source) => return Err(OciError::Read { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
#[path = "registry_test.rs"]
mod tests;
