//! From a layer's tar stream to an EROFS image. Nothing is unpacked on the host: names in an archive never become names
//! of host files, and no privilege is needed.

mod changes;
mod layer;
mod native;

pub use layer::{ImportedLayer, import_layer};
pub use native::NativeProblem;
pub(crate) use native::inlined;
#[cfg(test)]
pub(crate) use native::tests::image as native_image;

use crate::archive::{ArchiveError, EntryName};
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
    /// The archive is damaged, or has an invalid entry.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The layer is an EROFS image, but not one that can be a layer.
    #[error("the layer is an EROFS image that cannot be used as it is")]
    Native(#[from] NativeProblem),
    /// The image could not be written.
    #[error("cannot write the image{}", .entry.as_ref().map(|name| format!(" from entry `{name}` on")).unwrap_or_default())]
    Write {
        /// The entry that was being written.
        entry: Option<EntryName>,
        /// The cause.
        #[source]
        source: WriteError,
    },
}
