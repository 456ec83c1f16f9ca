//! Disks that last no longer than their guest: room to write in, for one instance.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bellows_disk::io::{read_file, write_file};
use bellows_disk::{Disk, DiskId, SECTOR_SIZE, hole};
use bellows_memory::ByteSize;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use vm_memory::VolatileSlice;

use crate::ext4;

/// `RAMFS_MAGIC` (linux/magic.h).
const RAMFS: FsType = FsType(0x8584_58f6);

/// A sparse file that has no name, with an empty ext4 file system. It takes room on the host only for what was written and not
/// discarded, and is gone with the process at the latest.
#[derive(Debug)]
pub struct ScratchDisk {
    file: File,
    bytes: u64,
    discards: bool,
    id: DiskId,
}

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// No file system has that size.
    #[error(
        "the size of the scratch disk is {0}: expected {least} to {most}",
        least = ByteSize::bytes(*ext4::SIZES.start()),
        most = ByteSize::bytes(*ext4::SIZES.end())
    )]
    Size(ByteSize),
    /// The folder cannot have it.
    #[error("cannot make a scratch disk in `{}`", folder.display())]
    Create {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ScratchDisk {
    /// Checks a size.
    ///
    /// # Errors
    /// [`ScratchError::Size`].
    pub fn check(size: ByteSize) -> Result<(), ScratchError> {
        if ext4::SIZES.contains(&size.get()) { Ok(()) } else { Err(ScratchError::Size(size)) }
    }

    /// Makes one of `size`, rounded down to whole sectors, in a folder's file system.
    ///
    /// # Errors
    /// See [`ScratchError`]; nothing is left behind.
    pub fn create(folder: &Path, size: ByteSize, id: DiskId) -> Result<Self, ScratchError> {
        let bytes = size.get() / SECTOR_SIZE * SECTOR_SIZE;
        Self::check(ByteSize::bytes(bytes))?;
        let create = || -> io::Result<Self> {
            // Without a name from the beginning, where the file system can do that.
            let file = tempfile::tempfile_in(folder)?;
            file.set_len(bytes)?;
            for (offset, piece) in ext4::empty(bytes, &identity()?).unwrap_or_default() {
                file.write_all_at(&piece, offset)?;
            }
            let discards = hole::punch(&file, bytes, SECTOR_SIZE).is_ok();
            Ok(Self { file, bytes, discards, id })
        };
        create().map_err(|source| ScratchError::Create { folder: folder.to_owned(), source })
    }

    /// Bytes of the host that it takes now.
    ///
    /// # Errors
    /// The system did not say.
    pub fn taken(&self) -> io::Result<ByteSize> {
        // In units of 512 bytes, whatever the file system's blocks are (stat(2)).
        Ok(ByteSize::bytes(self.file.metadata()?.blocks() * 512))
    }
}

/// Whether the files of a folder lie in memory.
///
/// # Errors
/// There is no such folder.
pub fn is_in_memory(folder: &Path) -> io::Result<bool> {
    let kind = statfs(folder)?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind == RAMFS)
}

fn identity() -> io::Result<ext4::Identity> {
    let mut identity = ext4::Identity { uuid: [0; 16], hash_seed: [0; 16], made: 0 };
    let mut random = File::open("/dev/urandom")?;
    random.read_exact(&mut identity.uuid)?;
    random.read_exact(&mut identity.hash_seed)?;
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    identity.made = u32::try_from(made).unwrap_or(u32::MAX);
    Ok(identity)
}

impl Disk for ScratchDisk {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn read_only(&self) -> bool {
        false
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        read_file(&self.file, offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        write_file(&self.file, offset, buffers)
    }

    fn discards(&self) -> bool {
        self.discards
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        hole::punch(&self.file, offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        // No room is promised to anybody, so a hole is always right.
        match hole::punch(&self.file, offset, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                hole::write_zeros(offset, bytes, |offset, buffers| self.write_at(offset, buffers))
            }
            result => result,
        }
    }

    /// Nothing of it is there after a crash, so there is nothing to wait for.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "scratch_test.rs"]
mod tests;
