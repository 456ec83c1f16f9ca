//! Errors of disks.

use std::io;
use std::path::PathBuf;

use crate::SECTOR_SIZE;

/// A file that cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Missing or not accessible.
    #[error("cannot open the disk `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A directory, pipe or device.
    #[error("the disk `{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The same, where a block device would do.
    #[error("the disk `{path}` is neither a regular file nor a block device")]
    NoDisk {
        /// The file.
        path: PathBuf,
    },
    /// Of a size that a disk cannot have.
    #[error("the disk `{path}` has {actual} bytes; expected a multiple of {SECTOR_SIZE}, and not 0")]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
    },
    /// A layer of another size than the store's record.
    #[error("the layer `{path}` has {actual} bytes, expected {expected}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Size recorded.
        expected: u64,
        /// Size of the file.
        actual: u64,
    },
    /// Too few addresses for a mapping.
    #[error("cannot reserve {bytes} bytes of addresses to map a layer or an image")]
    Reserve {
        /// Length of the mapping.
        bytes: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("cannot map the layer `{path}`")]
    Map {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The store no longer has it.
    #[error("the layer `{path}` was removed from the store")]
    Removed {
        /// The file.
        path: PathBuf,
    },
    /// In use.
    #[error("the disk `{path}` is in use by another VM")]
    Busy {
        /// The file.
        path: PathBuf,
    },
}
