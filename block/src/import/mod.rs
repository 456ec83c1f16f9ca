//! From a layer's tar stream to an EROFS image. Nothing is unpacked on the host: names in an archive never become names
//! of host files, and no privilege is needed.

mod changes;
mod layer;
mod name;
mod pax;
mod tar_stream;

pub use layer::{ImportedLayer, import_layer};
pub use name::EntryName;

use crate::erofs::WriteError;
use crate::oci::BlobError;

/// Why a layer could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is not the one its digest names.
    #[error("the blob is damaged")]
    Blob(#[source] BlobError),
    /// The blob's uncompressed content is not the one its `diff_id` names.
    #[error("the uncompressed layer is not the one the image's configuration names")]
    DiffId(#[source] BlobError),
    /// Decompression failed, or the archive ends early.
    #[error("cannot unpack the archive after {offset} bytes")]
    Read {
        /// How much of the uncompressed archive had been read.
        offset: u64,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// What should be a tar header is none.
    #[error("the archive has no valid header at byte {offset}: {reason}")]
    Header {
        /// Where in the uncompressed archive.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry that can't be taken over.
    #[error("entry `{name}` {reason}")]
    Entry {
        /// The entry's name.
        name: EntryName,
        /// What is wrong with it.
        reason: EntryProblem,
    },
    /// The image could not be written.
    #[error(transparent)]
    Write(WriteError),
}

/// What is wrong with an archive's entry.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum EntryProblem {
    /// The name begins with a slash.
    #[error("has an absolute name")]
    Absolute,
    /// The name has a component `..`.
    #[error("has a name that leaves the image")]
    ParentReference,
    /// The name or one of its components is too long, or has a zero byte.
    #[error("has a name that no file can have")]
    InvalidName,
    /// A whiteout of nothing, of `.` or `..`, or one with files below it.
    #[error("is a whiteout that names no file")]
    InvalidWhiteout,
    /// A component of the name is no directory.
    #[error("lies below `{0}`, which is no directory")]
    ParentNotDirectory(EntryName),
    /// A hard link to a file that this layer does not have before it.
    #[error("is a hard link to `{0}`, which is no earlier file of this layer")]
    HardLink(EntryName),
    /// The root of the image as anything but a directory.
    #[error("would replace the root directory")]
    Root,
    /// A type of entry that a layer can't have.
    #[error("has the unsupported type {}", .0.escape_ascii())]
    Type(u8),
    /// A sparse file in an encoding that is not read yet.
    #[error("is a sparse file in GNU's archive format, which is not supported")]
    Sparse,
    /// A field with a value that makes no sense.
    #[error("has an invalid {0}")]
    Field(&'static str),
}
