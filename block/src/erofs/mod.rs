//! EROFS images, written the one way that suits layers: uncompressed, 4 KiB blocks, file data plain and block-aligned
//! (so that a guest may map it with DAX), the same bytes for the same input.
//!
//! Files with holes are lists of chunks; data may also lie on further devices, behind the image itself (a flat image).
//!
//! An image is written front to back: one block for the superblock, file data as it comes, then all metadata. So a layer
//! streams through, and only its tree of names and attributes is held in memory. Behind a layer's file system lies its
//! journal, which no mount sees.

mod data;
mod directory;
mod format;
mod inode;
mod journal;
mod layout;
mod reader;
mod sparse;
mod superblock;
mod tree;
mod writer;
mod xattr;

pub use data::DataReader;
pub use format::BLOCK_SIZE;
pub use journal::{Change, Step};
pub use layout::LayoutError;
pub use reader::{LayerTree, Origin, ReadError, read_layer, read_tree};
pub use sparse::SparseMap;
pub use tree::{Blocks, Content, Device, Directory, FileData, InodeId, Metadata, Timestamp, Tree, WHITEOUT};
pub use writer::{ExtraDevice, ImageWriter, WriteError, Written};
pub use xattr::XattrName;
