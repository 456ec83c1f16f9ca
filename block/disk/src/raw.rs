//! A disk that may be writable, in a plain file or on a block device.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use vm_memory::VolatileSlice;

use crate::file::{check_size, open};
use crate::io::{read_file, write_file};
use crate::{Disk, DiskError, DiskId, SECTOR_SIZE, hole};

/// A raw disk image, or a block device. The file is locked for as long as it is a disk: exclusively where it is writable, so that
/// two VMs never write to the same one.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    bytes: u64,
    read_only: bool,
    /// What is discarded leaves a hole.
    discards: bool,
    id: DiskId,
}

impl RawDisk {
    /// Opens the file at `path`; its size is the disk's.
    ///
    /// # Errors
    /// It is missing, neither a regular file nor a block device, not a multiple of a sector in size, or in use.
    pub fn open(path: &Path, read_only: bool, id: DiskId) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let mut file = open(path, read_only)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NoDisk { path: path.to_owned() });
        }
        // The metadata of a device does not give its size.
        let bytes = check_size(path, file.seek(SeekFrom::End(0)).map_err(failed)?)?;
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => {
                // A device says so when it is asked to. Beyond its end, a file has nothing to lose.
                let discards = !read_only && (!kind.is_file() || hole::punch(&file, bytes, SECTOR_SIZE).is_ok());
                Ok(Self { file, bytes, read_only, discards, id })
            }
            Err(TryLockError::WouldBlock) => Err(DiskError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl RawDisk {
    /// This disk once more, with the size that its file has now and the serial number `id`, if the file is the one at `path`. Both have
    /// the lock. `None` if `path` leads to another file.
    ///
    /// # Errors
    /// There is no file, or it can be no disk any more.
    pub fn again(&self, path: &Path, id: DiskId) -> Result<Option<Self>, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let (mine, found) = (self.file.metadata().map_err(failed)?, fs::metadata(path).map_err(failed)?);
        if (mine.dev(), mine.ino()) != (found.dev(), found.ino()) {
            return Ok(None);
        }
        let mut file = self.file.try_clone().map_err(failed)?;
        let bytes = check_size(path, file.seek(SeekFrom::End(0)).map_err(failed)?)?;
        Ok(Some(Self { file, bytes, read_only: self.read_only, discards: self.discards, id }))
    }
}

impl RawDisk {
    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

/// Makes zeros of a range of a file: with a hole where that is allowed, and by writing them where the file system knows no other way.
pub(crate) fn write_zeroes(file: &File, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
    let made = if unmap { hole::punch(file, offset, bytes) } else { hole::zero(file, offset, bytes) };
    match made {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            hole::write_zeros(offset, bytes, |offset, buffers| write_file(file, offset, buffers))
        }
        result => result,
    }
}

impl Disk for RawDisk {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        read_file(&self.file, offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check_writable()?;
        write_file(&self.file, offset, buffers)
    }

    fn discards(&self) -> bool {
        self.discards
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.check_writable()?;
        hole::punch(&self.file, offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        write_zeroes(&self.file, offset, bytes, unmap)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
#[path = "raw_test.rs"]
mod tests;
