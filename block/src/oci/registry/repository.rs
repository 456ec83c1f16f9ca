//! What an image's name stands for in a registry, and where its blobs are read.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::BlobReader;
use super::client::Client;
use super::options::RegistryOptions;
use super::reference::{RegistryReference, Version};
use super::retry::{Tries, is_broken_connection};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::oci::blob::BlobError;
use crate::oci::error::OciError;
use crate::oci::file_set::MAX_DOCUMENT;
use crate::oci::spec::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, DocumentKind, INDEX, MANIFEST};

/// Where an image's blobs are read.
pub(in crate::oci) struct Repository {
    /// For messages.
    name: String,
    client: Arc<Client>,
    /// What the image's name stands for, and its document.
    top: (Descriptor, Vec<u8>),
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).field("top", &self.top.0).finish_non_exhaustive()
    }
}

impl Repository {
    /// Asks the registry what `reference` is.
    ///
    /// # Errors
    /// The registry does not answer or refuses it, or its answer has another digest than expected.
    pub fn find(reference: &RegistryReference, options: &RegistryOptions, cancel: &Cancel) -> Result<Self, OciError> {
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
        Ok(Self { name, client: Arc::new(client), top: (top, data) })
    }

    /// What the image's name stands for.
    pub fn top(&self) -> &Descriptor {
        &self.top.0
    }

    /// What messages call a blob.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        PathBuf::from(format!("{}@{digest}", self.name))
    }

    /// Reads a document, which is not checked.
    pub fn document(&self, descriptor: &Descriptor, kind: DocumentKind) -> Result<Vec<u8>, OciError> {
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
    pub fn open(&self, digest: &Digest, bytes: u64) -> Result<Box<dyn Read + Send>, OciError> {
        Ok(Box::new(BlobReader::open(&self.client, &self.path(digest), digest, bytes)?))
    }
}

/// An index or a manifest, and the digest that the answer states. The type that it states is not needed.
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
