//! EROFS images, written the one way that suits layers: uncompressed, 4 KiB blocks, file data plain and block-aligned
//! (so that a guest may map it with DAX), the same bytes for the same input.
//!
//! An image is written front to back: one block for the superblock, file data as it comes, then all metadata. So a layer
//! streams through, and only its tree of names and attributes is held in memory.

mod directory;
mod format;
mod layout;
mod tree;
mod writer;
mod xattr;

pub use format::BLOCK_SIZE;
pub use layout::LayoutError;
pub use tree::{Content, Device, Directory, Extent, InodeId, Metadata, Timestamp, Tree};
pub use writer::{ImageWriter, WriteError};
pub use xattr::XattrName;
