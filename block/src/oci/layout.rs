//! An OCI image layout, as a directory or as an archive of one.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::blob::{BlobError, Digests};
use super::container::Container;
use super::error::{MAX_INDEX_DEPTH, OciError};
use super::source::{SourceImage, SourceLayer};
use super::spec::{
    CONFIG, ConfigFile, DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Index, LayoutFile, MANIFEST,
    Manifest, Platform, is_layer,
};
use crate::digest::LayerDigest;

/// The file that makes a directory an image layout.
pub(super) const MARK: &str = "oci-layout";

/// An OCI image layout; nothing but its version has been read.
#[derive(Clone, Debug)]
pub struct OciLayout {
    files: Container,
}

impl OciLayout {
    /// Opens the layout in the directory `root`.
    ///
    /// # Errors
    /// There is none, or one of another version than 1.0.0.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, OciError> {
        Self::of(Container::Directory(root.into()))
    }

    pub(super) fn of(files: Container) -> Result<Self, OciError> {
        let path = files.path(MARK);
        let file: LayoutFile = parse(&path, &files.document(MARK)?)?;
        expect_field(&path, "imageLayoutVersion", &file.image_layout_version, "1.0.0")?;
        Ok(Self { files })
    }

    /// Finds the image for `platform`, called `reference` in the index where that is given.
    ///
    /// # Errors
    /// There is no such image, or several; or one of its documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        let manifest = self.find_manifest(platform, reference)?;
        let digest = manifest.digest;
        let (path, manifest): (_, Manifest) = self.document(&manifest)?;
        expect_field(&path, "schemaVersion", &manifest.schema_version, "2")?;

        if ![CONFIG, DOCKER_CONFIG].contains(&manifest.config.media_type.as_str()) {
            return Err(unsupported(&manifest.config, "an image configuration"));
        }
        let (path, config): (_, ConfigFile) = self.document(&manifest.config)?;
        let diff_ids = config.check(&path, platform, digest, manifest.layers.len())?;
        let layers = std::iter::zip(&manifest.layers, diff_ids)
            .map(|(layer, diff_id)| {
                if !is_layer(&layer.media_type) {
                    return Err(unsupported(layer, "a layer: tar, tar+gzip or tar+zstd"));
                }
                let digests = Digests { blob: Some(layer.digest), diff_id: Some(*diff_id) };
                Ok(SourceLayer::member(&self.files, blob_name(&layer.digest), Some(layer.size), digests))
            })
            .collect::<Result<_, OciError>>()?;
        Ok(SourceImage { digest: Some(digest), config: config.config.unwrap_or_default().into(), layers })
    }

    fn find_manifest(&self, platform: &Platform, reference: Option<&str>) -> Result<Descriptor, OciError> {
        let top = self.files.path("index.json");
        let mut path = top.clone();
        let mut index: Index = parse(&path, &self.files.document("index.json")?)?;
        let mut reference = reference;
        for _ in 0..MAX_INDEX_DEPTH {
            expect_field(&path, "schemaVersion", &index.schema_version, "2")?;
            let found = choose(&path, &index, platform, reference)?;
            match found.media_type.as_str() {
                MANIFEST | DOCKER_MANIFEST => return Ok(found.clone()),
                INDEX | DOCKER_INDEX => {
                    let next = self.document(found)?;
                    (path, index) = next;
                    // Tags name entries of the outermost index only.
                    reference = None;
                }
                _ => return Err(unsupported(found, "an image index or manifest")),
            }
        }
        Err(OciError::Depth { path: top })
    }

    fn document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<(PathBuf, T), OciError> {
        let name = blob_name(&descriptor.digest);
        let path = self.files.path(&name);
        let data = self.files.document(&name)?;
        let (expected, actual) = (descriptor.size, data.len() as u64);
        if expected != actual {
            return Err(OciError::Size { path, expected, actual });
        }
        let (expected, actual) = (descriptor.digest, LayerDigest::of(&data));
        if expected != actual {
            return Err(OciError::Blob { path, source: BlobError::Digest { expected, actual } });
        }
        let document = parse(&path, &data)?;
        Ok((path, document))
    }
}

fn choose<'a>(
    path: &Path,
    index: &'a Index,
    platform: &Platform,
    reference: Option<&str>,
) -> Result<&'a Descriptor, OciError> {
    let named = || index.manifests.iter().filter(|d| reference.is_none() || d.reference() == reference);
    // The best of what fits, where several builds for one processor do.
    let rank = |d: &Descriptor| d.platform.as_ref().and_then(|offered| platform.rank(offered));
    let best = named().filter_map(&rank).min();
    let fits: Vec<_> = match best {
        Some(best) => named().filter(|d| rank(d) == Some(best)).collect(),
        // Single-platform layouts leave the platform out; the configuration will tell.
        None => named().filter(|d| d.platform.is_none()).collect(),
    };
    match fits[..] {
        [only] => Ok(only),
        // The same image under two tags is still one image.
        [first, ..] if fits.iter().all(|d| d.digest == first.digest) => Ok(first),
        [] => Err(OciError::NoImage {
            path: path.to_owned(),
            platform: Box::new(platform.clone()),
            reference: reference.map(str::to_owned),
            found: list(index.manifests.iter()),
        }),
        _ => Err(OciError::Ambiguous {
            path: path.to_owned(),
            platform: Box::new(platform.clone()),
            found: list(fits.iter().copied()),
        }),
    }
}

fn list<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> String {
    let words: Vec<_> = descriptors
        .take(20)
        .map(|d| {
            let name = d.reference().map_or_else(|| d.digest.to_string(), |name| format!("`{name}`"));
            d.platform.as_ref().map_or(name.clone(), |platform| format!("{name} ({platform})"))
        })
        .collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

fn unsupported(descriptor: &Descriptor, expected: &'static str) -> OciError {
    OciError::MediaType { digest: descriptor.digest, media_type: descriptor.media_type.clone(), expected }
}

pub(super) fn expect_field(
    path: &Path,
    field: &'static str,
    actual: &impl std::fmt::Display,
    expected: &str,
) -> Result<(), OciError> {
    let actual = actual.to_string();
    if actual == expected {
        return Ok(());
    }
    Err(OciError::Field { path: path.to_owned(), field, actual, expected: expected.to_owned() })
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, data: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(data).map_err(|source| OciError::Json { path: path.to_owned(), source })
}

fn blob_name(digest: &LayerDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
