//! Files of disks: opened, checked and locked.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::{DiskError, SECTOR_SIZE};

/// Attempts to lock a file: a removal that runs at the same time holds the lock only briefly.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Opens a regular file of `bytes` bytes that several VMs read. For as long as it is open, a lock that all readers share protects
/// it from removal.
///
/// # Errors
/// It is missing, not a regular file, of another size, or removed.
pub fn open_shared(path: &Path, bytes: u64) -> Result<File, DiskError> {
    let file = open(path, true)?;
    let metadata = file.metadata().map_err(|source| DiskError::Open { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile { path: path.to_owned() });
    }
    let actual = check_size(path, metadata.len())?;
    lock_against_removal(path, &file)?;
    if actual != bytes {
        return Err(DiskError::Size { path: path.to_owned(), expected: bytes, actual });
    }
    Ok(file)
}

/// Opens a file. A pipe in its place does not block.
pub(crate) fn open(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let mut options = File::options();
    options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|source| DiskError::Open { path: path.to_owned(), source })
}

/// Checks the size of a disk, in bytes, and returns it.
pub(crate) fn check_size(path: &Path, actual: u64) -> Result<u64, DiskError> {
    if actual == 0 || !actual.is_multiple_of(SECTOR_SIZE) {
        return Err(DiskError::Unaligned { path: path.to_owned(), actual });
    }
    Ok(actual)
}

fn lock_against_removal(path: &Path, file: &File) -> Result<(), DiskError> {
    for attempt in 1.. {
        match file.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_ATTEMPTS => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(DiskError::Busy { path: path.to_owned() }),
            // A file system without locks: the remover finds that too, and removes nothing.
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
