//! Where the blobs of an image are found by their descriptors.

use std::path::PathBuf;
#[cfg(feature = "registry")]
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::blob::{BlobError, Digests};
use super::container::Container;
use super::error::OciError;
#[cfg(feature = "registry")]
use super::registry::Repository;
use super::source::SourceLayer;
use super::spec::{Descriptor, parse};
use crate::digest::LayerDigest;

/// Blobs that are called by their digests.
#[derive(Clone, Debug)]
pub(super) enum Blobs {
    /// The files of an image layout.
    Files(Container),
    /// Those of a registry's repository.
    #[cfg(feature = "registry")]
    Registry(Arc<Repository>),
}

impl Blobs {
    /// Reads a JSON document, and checks it against its descriptor. Says what messages call it.
    pub fn document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<(PathBuf, T), OciError> {
        let (path, data) = match self {
            Self::Files(files) => {
                let name = file_name(&descriptor.digest);
                (files.path(&name), files.document(&name)?)
            }
            #[cfg(feature = "registry")]
            Self::Registry(repository) => (repository.path(&descriptor.digest), repository.document(descriptor)?),
        };
        let (expected, actual) = (descriptor.size, data.len() as u64);
        if expected != actual {
            return Err(OciError::Size { path, expected, actual });
        }
        BlobError::check(Some(descriptor.digest), LayerDigest::of(&data))
            .map_err(|source| OciError::Blob { path: path.clone(), source })?;
        let document = parse(&path, &data)?;
        Ok((path, document))
    }

    /// The layer that `descriptor` names; nothing of it is read.
    pub fn layer(&self, descriptor: &Descriptor, diff_id: LayerDigest) -> SourceLayer {
        let digests = Digests { blob: Some(descriptor.digest), diff_id: Some(diff_id) };
        match self {
            Self::Files(files) => {
                SourceLayer::member(files, file_name(&descriptor.digest), Some(descriptor.size), digests)
            }
            #[cfg(feature = "registry")]
            Self::Registry(repository) => {
                SourceLayer::remote(repository, descriptor.digest, descriptor.size, digests.diff_id)
            }
        }
    }
}

fn file_name(digest: &LayerDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
