//! An OCI image layout directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::blob::BlobError;
use super::spec::{
    CONFIG, Compression, ConfigFile, DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, ImageConfig,
    Index, LayoutFile, MANIFEST, Manifest, Platform,
};
use crate::digest::LayerDigest;

/// No JSON document of an image is larger than this; the registries' own limit.
const MAX_DOCUMENT: u64 = 4 << 20;

/// How deep indexes may nest.
const MAX_INDEX_DEPTH: usize = 4;

/// What is wrong with an image layout.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file is missing or unreadable.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A directory, pipe or device where a file should be.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A JSON document that is too large to be one.
    #[error("`{path}` has {actual} bytes; a JSON document of an image has at most {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Not JSON, or not the document it should be.
    #[error("`{path}` is not valid: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A version this code doesn't know.
    #[error("`{path}`: {field} is `{actual}`, expected `{expected}`")]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        actual: String,
        /// What it should be.
        expected: String,
    },
    /// A file of another size than its descriptor says.
    #[error("blob `{path}` has {actual} bytes, its descriptor says {expected}")]
    Size {
        /// The file.
        path: PathBuf,
        /// The descriptor's size.
        expected: u64,
        /// The file's size.
        actual: u64,
    },
    /// A file with other content than its name says.
    #[error("blob `{path}` is damaged")]
    Blob {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BlobError,
    },
    /// A media type this code can't read.
    #[error("{digest} has the unsupported media type `{media_type}`; expected {expected}")]
    MediaType {
        /// The descriptor's digest.
        digest: LayerDigest,
        /// Its media type.
        media_type: String,
        /// What could be read.
        expected: &'static str,
    },
    /// No manifest fits.
    #[error("`{path}` has no image for {platform}{}; it has: {found}", .reference.as_ref().map(|r| format!(" called `{r}`")).unwrap_or_default())]
    NoImage {
        /// The index.
        path: PathBuf,
        /// What was looked for.
        platform: Platform,
        /// The tag that was looked for.
        reference: Option<String>,
        /// What the index lists.
        found: String,
    },
    /// Several manifests fit.
    #[error("`{path}` has several images for {platform}: {found}; name one of them")]
    Ambiguous {
        /// The index.
        path: PathBuf,
        /// What was looked for.
        platform: Platform,
        /// What fits.
        found: String,
    },
    /// Indexes that point to indexes without end.
    #[error("the indexes in `{path}` nest deeper than {MAX_INDEX_DEPTH}")]
    Depth {
        /// The first index.
        path: PathBuf,
    },
    /// Manifest and configuration disagree.
    #[error("image {manifest} has {layers} layers but {diff_ids} diff_ids")]
    LayerCount {
        /// Digest of the manifest.
        manifest: LayerDigest,
        /// Layers in the manifest.
        layers: usize,
        /// Entries of `rootfs.diff_ids` in the configuration.
        diff_ids: usize,
    },
}

/// An OCI image layout directory; nothing but its version has been read.
#[derive(Clone, Debug)]
pub struct OciLayout {
    root: PathBuf,
}

/// One image of a layout: its documents were read and checked, its layers were not.
#[derive(Clone, Debug)]
pub struct OciImage {
    /// Digest of the manifest: the image's identity.
    pub manifest: LayerDigest,
    /// How to run it.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<OciLayer>,
}

/// One layer blob of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OciLayer {
    /// Digest of the blob as it is stored.
    pub blob: LayerDigest,
    /// Size of the blob in bytes.
    pub bytes: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar stream.
    pub diff_id: LayerDigest,
}

impl OciLayout {
    /// Opens the layout at `root`.
    ///
    /// # Errors
    /// There is none, or one of another version than 1.0.0.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, OciError> {
        let layout = Self { root: root.into() };
        let path = layout.root.join("oci-layout");
        let file: LayoutFile = parse(&path, &read_document(&path)?)?;
        expect_field(&path, "imageLayoutVersion", &file.image_layout_version, "1.0.0")?;
        Ok(layout)
    }

    /// Finds the image for `platform`, called `reference` in the index where that is given.
    ///
    /// # Errors
    /// There is no such image, or several; or one of its documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<OciImage, OciError> {
        let manifest = self.find_manifest(platform, reference)?;
        let digest = manifest.digest;
        let (path, manifest): (_, Manifest) = self.document(&manifest)?;
        expect_field(&path, "schemaVersion", &manifest.schema_version, "2")?;

        if ![CONFIG, DOCKER_CONFIG].contains(&manifest.config.media_type.as_str()) {
            return Err(unsupported(&manifest.config, "an image configuration"));
        }
        let (path, config): (_, ConfigFile) = self.document(&manifest.config)?;
        expect_field(&path, "platform", &config.platform, &platform.to_string())?;
        expect_field(&path, "rootfs.type", &config.rootfs.kind, "layers")?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(OciError::LayerCount { manifest: digest, layers, diff_ids });
        }
        let layers = std::iter::zip(&manifest.layers, config.rootfs.diff_ids)
            .map(|(layer, diff_id)| {
                let compression = Compression::of_media_type(&layer.media_type)
                    .ok_or_else(|| unsupported(layer, "a layer: tar, tar+gzip or tar+zstd"))?;
                Ok(OciLayer { blob: layer.digest, bytes: layer.size, compression, diff_id })
            })
            .collect::<Result<_, OciError>>()?;
        Ok(OciImage { manifest: digest, config: config.config.unwrap_or_default().into(), layers })
    }

    /// Path of a blob, whether or not it exists.
    #[must_use]
    pub fn blob_path(&self, digest: &LayerDigest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Opens a blob of `bytes` bytes. The content is not checked: read it through a [`super::VerifyingReader`].
    ///
    /// # Errors
    /// It is missing, no regular file, or of another size.
    pub fn open_blob(&self, digest: &LayerDigest, bytes: u64) -> Result<File, OciError> {
        let path = self.blob_path(digest);
        let (file, actual) = open_regular(&path)?;
        if actual != bytes {
            return Err(OciError::Size { path, expected: bytes, actual });
        }
        Ok(file)
    }

    fn find_manifest(&self, platform: &Platform, reference: Option<&str>) -> Result<Descriptor, OciError> {
        let top = self.root.join("index.json");
        let mut path = top.clone();
        let mut index: Index = parse(&path, &read_document(&path)?)?;
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
        let path = self.blob_path(&descriptor.digest);
        let data = read_document(&path)?;
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
    let exact: Vec<_> = named().filter(|d| d.platform.as_ref() == Some(platform)).collect();
    // Single-platform layouts leave the platform out; the configuration will tell.
    let fits = if exact.is_empty() { named().filter(|d| d.platform.is_none()).collect() } else { exact };
    match fits[..] {
        [only] => Ok(only),
        // The same image under two tags is still one image.
        [first, ..] if fits.iter().all(|d| d.digest == first.digest) => Ok(first),
        [] => Err(OciError::NoImage {
            path: path.to_owned(),
            platform: platform.clone(),
            reference: reference.map(str::to_owned),
            found: list(index.manifests.iter()),
        }),
        _ => Err(OciError::Ambiguous {
            path: path.to_owned(),
            platform: platform.clone(),
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

fn expect_field(
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

fn parse<T: DeserializeOwned>(path: &Path, data: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(data).map_err(|source| OciError::Json { path: path.to_owned(), source })
}

fn read_document(path: &Path) -> Result<Vec<u8>, OciError> {
    let (file, bytes) = open_regular(path)?;
    if bytes > MAX_DOCUMENT {
        return Err(OciError::TooLarge { path: path.to_owned(), actual: bytes, limit: MAX_DOCUMENT });
    }
    let mut data = Vec::new();
    file.take(MAX_DOCUMENT)
        .read_to_end(&mut data)
        .map_err(|source| OciError::Read { path: path.to_owned(), source })?;
    Ok(data)
}

/// Opens a regular file and says its size; a pipe in its place does not block.
fn open_regular(path: &Path) -> Result<(File, u64), OciError> {
    let read = |source| OciError::Read { path: path.to_owned(), source };
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(OciError::NotAFile { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
