//! An OCI image layout, as a directory or as an archive of one.

use std::path::PathBuf;

use super::blobs::Blobs;
use super::error::OciError;
use super::file_set::FileSet;
use super::image::SourceImage;
use super::index::find_image;
use super::platform::Platform;
use super::spec::{Document, LayoutFile, expect_field, parse};

/// The file that makes a directory an image layout.
pub(super) const MARK: &str = "oci-layout";
/// The file that lists a layout's images.
pub(super) const INDEX: &str = "index.json";

/// An OCI image layout; nothing but its version has been read.
#[derive(Clone, Debug)]
pub struct OciLayout {
    files: FileSet,
}

impl OciLayout {
    /// Opens the layout in the directory `root`.
    ///
    /// # Errors
    /// It is missing, or has another version than 1.0.0.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, OciError> {
        Self::of(FileSet::Directory(root.into()))
    }

    pub(super) fn of(files: FileSet) -> Result<Self, OciError> {
        let path = files.path(MARK);
        let file: LayoutFile = parse(&path, &files.document(MARK)?)?;
        expect_field(&path, "imageLayoutVersion", &file.image_layout_version, "1.0.0")?;
        Ok(Self { files })
    }

    /// Finds the image for `platform`, called `reference` in the index where that is given.
    ///
    /// # Errors
    /// No image matches, or several do; or one of the documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        let path = self.files.path(INDEX);
        let Document::Index(manifests) = Document::parse(&path, &self.files.document(INDEX)?)? else {
            return Err(OciError::Document { path, reason: "is a manifest and not an index" });
        };
        find_image(&Blobs::Layout(self.files.clone()), &path, &manifests, platform, reference)
    }
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
