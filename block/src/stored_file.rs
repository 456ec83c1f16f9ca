//! A file of the store, and the digest that names it.

use std::path::PathBuf;

use serde::Serialize;

use crate::digest::Digest;

/// A file in the store: a layer, or the metadata of a flat image.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct StoredFile {
    /// Its name. A layer's is the digest of its uncompressed archive, not of this file.
    pub digest: Digest,
    /// An EROFS image.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
}
