//! Skopeo's form of an image in a directory (`dir:`): `manifest.json` and beside it the blobs, called by their digests.

use super::blobs::Blobs;
use super::docker::MANIFEST;
use super::error::OciError;
use super::file_set::FileSet;
use super::image::SourceImage;
use super::index::find_image;
use super::platform::Platform;
use super::spec::Descriptor;
use crate::digest::Digest;

/// An image as skopeo's `dir:` keeps it; nothing of it has been read.
#[derive(Clone, Debug)]
pub struct DirImage {
    files: FileSet,
}

impl DirImage {
    pub(super) fn of(files: FileSet) -> Self {
        Self { files }
    }

    /// Finds the image for `platform`. It has no name but its digest.
    ///
    /// # Errors
    /// No image matches; or one of the documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        let path = self.files.path(MANIFEST);
        let data = self.files.document(MANIFEST)?;
        let top = Digest::of(&data);
        // It is a manifest, or an index with all of an image's platforms.
        let manifests = [Descriptor::of(top, data.len() as u64)];
        find_image(&Blobs::Dir { files: self.files.clone(), top }, &path, &manifests, platform, reference)
    }
}

#[cfg(test)]
#[path = "dir_test.rs"]
mod tests;
