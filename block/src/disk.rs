//! What a block device reads and writes.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use vm_memory::VolatileSlice;

use crate::digest::LayerDigest;
use crate::profile::Profile;
use crate::store::Layer;

/// Size in bytes of the unit that capacities and positions are counted in (VIRTIO 1.2, section 5.2).
pub const SECTOR_SIZE: u64 = 512;

/// A disk's serial number, padded with zeros (VIRTIO 1.2, section 5.2.6: `VIRTIO_BLK_T_GET_ID`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskId([u8; 20]);

impl DiskId {
    /// The first 20 bytes of `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut id = [0; 20];
        let length = text.len().min(id.len());
        id[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self(id)
    }

    /// What the guest reads.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl From<&LayerDigest> for DiskId {
    fn from(digest: &LayerDigest) -> Self {
        Self::new(&digest.hex())
    }
}

/// A disk, read-only unless it says otherwise. Calls come from one thread for each queue; a call may block its thread, and no
/// other.
pub trait Disk: Send + Sync {
    /// Size in [`SECTOR_SIZE`] units.
    fn sectors(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        true
    }

    /// Serial number.
    fn id(&self) -> DiskId;

    /// Fills `buffers`, one after the other, with what lies at byte `offset`.
    ///
    /// # Errors
    /// Something could not be read, or the file ends before; what the buffers hold then is not defined.
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Writes `buffers`, one after the other, to byte `offset`.
    ///
    /// # Errors
    /// The disk is read-only, or something could not be written; what the disk holds there then is not defined.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let _ = (offset, buffers);
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Returns when what was written has reached the medium.
    ///
    /// # Errors
    /// It may not have.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The pages of its files that were read so far, where it keeps account of that.
    fn touched(&self) -> Profile {
        Profile::default()
    }
}

/// Why a file can't serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Missing or not accessible.
    #[error("cannot open the disk `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system answered.
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
    /// Of no use as a disk.
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
    /// No addresses for a mapping.
    #[error("cannot reserve {bytes} bytes of addresses to map a layer or an image")]
    Reserve {
        /// Length of the mapping.
        bytes: u64,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("cannot map the layer `{path}`")]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system answered.
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

/// Checks an open file; returns its size in bytes.
pub(crate) fn check_file(path: &Path, file: &File) -> Result<u64, DiskError> {
    let metadata = file.metadata().map_err(|source| DiskError::Open { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile { path: path.to_owned() });
    }
    check_size(path, metadata.len())
}

/// Checks the size of a disk, in bytes, and returns it.
pub(crate) fn check_size(path: &Path, actual: u64) -> Result<u64, DiskError> {
    if actual == 0 || !actual.is_multiple_of(SECTOR_SIZE) {
        return Err(DiskError::Unaligned { path: path.to_owned(), actual });
    }
    Ok(actual)
}

/// How often a layer's lock is tried for: who removes layers holds it for the time of that only.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Opens a layer's file and checks its size. The file is locked, shared with others, for as long as it is open: that is how
/// the store knows that it is in use.
pub(crate) fn open_layer_file(layer: &Layer) -> Result<File, DiskError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = &layer.path;
    // A pipe in the file's place must not block.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| DiskError::Open { path: path.clone(), source })?;
    let actual = check_file(path, &file)?;
    lock_layer(path, &file)?;
    if actual != layer.bytes {
        return Err(DiskError::Size { path: path.clone(), expected: layer.bytes, actual });
    }
    Ok(file)
}

fn lock_layer(path: &Path, file: &File) -> Result<(), DiskError> {
    for attempt in 1.. {
        match file.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_ATTEMPTS => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(DiskError::Busy { path: path.to_owned() }),
            // A file system without locks: the store finds that too, and removes nothing.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => break,
            Err(TryLockError::Error(source)) => return Err(DiskError::Open { path: path.to_owned(), source }),
        }
    }
    let metadata = file.metadata().map_err(|source| DiskError::Open { path: path.to_owned(), source })?;
    if metadata.nlink() == 0 {
        return Err(DiskError::Removed { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
