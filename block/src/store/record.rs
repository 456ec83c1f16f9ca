//! The store's JSON records.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files::io_error;
use crate::digest::Digest;
use crate::oci::ImageConfig;

/// What the store remembers of a layer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    /// Size of the layer's file.
    pub bytes: u64,
    /// Digest of the layer's file.
    pub sha256: Digest,
    /// The layer hides everything below it, which overlayfs has no mark for.
    pub opaque_root: bool,
    /// The layer came as an EROFS image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native: bool,
}

/// An image in the store.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Its layers, lowest first; those that a higher one hides as a whole are left out.
    pub layers: Vec<Digest>,
    /// How to run it.
    pub config: ImageConfig,
}

/// Name of an image in the store, such as `debian:bookworm` or `sha256:...`: 1 to 200 letters, digits and `. _ - : / @`,
/// the first no full stop.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ImageName(String);

/// A text that is not an image name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is not an image name: expected 1 to 200 letters, digits and . _ - : / @, not beginning with a full stop"
)]
pub struct ParseImageNameError(String);

impl ImageName {
    /// Name of its record. Slashes become `%`, which is in no name, so that no two names share a file.
    pub(super) fn file_name(&self) -> String {
        format!("{}.json", self.0.replace('/', "%"))
    }

    /// The name whose record is called `file`.
    pub(super) fn from_file_name(file: &str) -> Option<Self> {
        file.strip_suffix(".json")?.replace('%', "/").parse().ok()
    }
}

impl FromStr for ImageName {
    type Err = ParseImageNameError;

    fn from_str(text: &str) -> Result<Self, ParseImageNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
        if (1..=200).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseImageNameError(text.chars().take(200).collect()))
        }
    }
}

impl From<&Digest> for ImageName {
    fn from(digest: &Digest) -> Self {
        Self(digest.to_string())
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a record; `None` if it is missing.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Ok(data) => match serde_json::from_slice(&data) {
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(StoreError::Record { path: path.to_owned(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// A record's JSON.
pub(super) fn encode<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}
