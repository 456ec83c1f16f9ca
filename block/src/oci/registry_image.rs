//! An image in a registry.

use std::sync::Arc;

use super::blobs::Blobs;
use super::error::OciError;
use super::image::SourceImage;
use super::index::find_image;
use super::platform::Platform;
use super::registry::{RegistryOptions, RegistryReference, Repository};
use crate::cancel::Cancel;

/// An image's name in a registry, and what it stands for there at the moment.
#[derive(Clone, Debug)]
pub struct RegistryImage {
    repository: Arc<Repository>,
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
        Repository::find(reference, options, cancel).map(|repository| Self { repository: Arc::new(repository) })
    }

    /// Finds the image for `platform`.
    ///
    /// # Errors
    /// No image matches, or several do; or one of the documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform) -> Result<SourceImage, OciError> {
        let top = self.repository.top();
        let path = self.repository.path(&top.digest);
        // A name stands for one thing, which may be an index.
        let manifests = std::slice::from_ref(top);
        find_image(&Blobs::Registry(Arc::clone(&self.repository)), &path, manifests, platform, None)
    }
}
