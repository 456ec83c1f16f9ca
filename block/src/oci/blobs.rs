//! Where the blobs of an image are found by their descriptors.

use std::path::PathBuf;
#[cfg(feature = "registry")]
use std::sync::Arc;

use super::blob::{BlobError, Digests};
use super::docker::MANIFEST;
use super::error::OciError;
use super::file_set::FileSet;
use super::image::SourceLayer;
#[cfg(feature = "registry")]
use super::registry::Repository;
use super::spec::{ConfigFile, Descriptor, Document, DocumentKind, parse};
use crate::digest::Digest;

/// Blobs that are called by their digests.
#[derive(Clone, Debug)]
pub(super) enum Blobs {
    /// The files of an image layout.
    Layout(FileSet),
    /// Those beside the manifest in skopeo's form for directories (`dir:`), which has the digest `top`.
    Dir { files: FileSet, top: Digest },
    /// Those of a registry's repository.
    #[cfg(feature = "registry")]
    Registry(Arc<Repository>),
}

impl Blobs {
    /// Reads an index or a manifest. Says what messages call it.
    pub fn manifest(&self, descriptor: &Descriptor) -> Result<(PathBuf, Document), OciError> {
        let (path, data) = self.document(descriptor, DocumentKind::Manifest)?;
        let document = Document::parse(&path, &data)?;
        Ok((path, document))
    }

    /// Reads an image's configuration. Says what messages call it.
    pub fn config(&self, descriptor: &Descriptor) -> Result<(PathBuf, ConfigFile), OciError> {
        let (path, data) = self.document(descriptor, DocumentKind::Config)?;
        let document = parse(&path, &data)?;
        Ok((path, document))
    }

    /// Reads a document, and checks it against its descriptor.
    #[cfg_attr(
        not(feature = "registry"),
        allow(unused_variables, reason = "files are called the same whatever they are")
    )]
    fn document(&self, descriptor: &Descriptor, kind: DocumentKind) -> Result<(PathBuf, Vec<u8>), OciError> {
        let (path, data) = match self {
            Self::Layout(files) | Self::Dir { files, .. } => {
                let name = self.file_name(files, &descriptor.digest);
                (files.path(&name), files.document(&name)?)
            }
            #[cfg(feature = "registry")]
            Self::Registry(repository) => (repository.path(&descriptor.digest), repository.document(descriptor, kind)?),
        };
        let (expected, actual) = (descriptor.size, data.len() as u64);
        if expected != actual {
            return Err(OciError::Size { path, expected, actual });
        }
        BlobError::check(Some(descriptor.digest), Digest::of(&data))
            .map_err(|source| OciError::Blob { path: path.clone(), source })?;
        Ok((path, data))
    }

    /// The layer that `descriptor` names; nothing of it is read.
    pub fn layer(&self, descriptor: &Descriptor, diff_id: Digest) -> SourceLayer {
        let digests = Digests { blob: Some(descriptor.digest), diff_id: Some(diff_id) };
        match self {
            Self::Layout(files) | Self::Dir { files, .. } => {
                let name = self.file_name(files, &descriptor.digest);
                SourceLayer::member(files, name, Some(descriptor.size), digests)
            }
            #[cfg(feature = "registry")]
            Self::Registry(repository) => {
                SourceLayer::remote(repository, descriptor.digest, descriptor.size, digests.diff_id)
            }
        }
    }

    fn file_name(&self, files: &FileSet, digest: &Digest) -> String {
        let hex = digest.hex();
        match self {
            Self::Dir { top, .. } if digest == top => MANIFEST.to_owned(),
            Self::Dir { .. } => {
                // The manifests that an index lists.
                let manifest = format!("{hex}.manifest.json");
                if files.has(&manifest) { manifest } else { hex }
            }
            _ => format!("blobs/sha256/{hex}"),
        }
    }
}
