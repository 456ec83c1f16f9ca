//! Flat images: all layers of an image as one disk and one file system, however many they are.
//!
//! ```text
//! block 0   metadata of the whole image, with a table of devices: one for each layer
//! ...       zeros up to the next multiple of 2 MiB
//! mapped    the first layer's file as it is
//! ...       zeros up to the next multiple of 2 MiB
//! mapped    the next layer's file
//! ```
//!
//! The metadata says what unpacking the layers over each other would give: whiteouts and links in the way of names are resolved
//! when it is made. Its files lie where the layers' files do,
//! by block numbers that count from the start of it all (`mapped_blkaddr` of the table of devices, Linux 6.4 or later), so
//! no file's data is read or copied for it, and images share the pages of the layers they have in common.

mod fixup;
mod stack;
mod unpack;

pub use fixup::Fixup;
pub use unpack::{UnpackError, UnpackProblem, Unpacked, unpack};

use std::path::PathBuf;

use crate::digest::Digest;
use crate::stored_file::StoredFile;

/// A flat image in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlatImage {
    /// What it is known by: a digest of its layers' digests.
    pub digest: Digest,
    /// The file with its metadata.
    pub path: PathBuf,
    /// Size of that file.
    pub bytes: u64,
    /// Its layers, each with the byte that it begins at.
    pub layers: Vec<(u64, StoredFile)>,
}

impl FlatImage {
    /// Its files as they lie behind each other: metadata, then layers, each with the byte that it begins at.
    pub(crate) fn files(&self) -> Vec<(u64, StoredFile)> {
        let metadata = StoredFile { digest: self.digest, path: self.path.clone(), bytes: self.bytes };
        std::iter::once((0, metadata)).chain(self.layers.iter().cloned()).collect()
    }
}

#[cfg(test)]
#[path = "flat_test.rs"]
mod tests;
