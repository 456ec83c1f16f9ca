//! A layer served by reading its file.

use std::fs::File;
use std::io;

use bellows_disk::io::read_file;
use bellows_disk::{Disk, DiskError, DiskId, SECTOR_SIZE, open_shared};
use vm_memory::VolatileSlice;

use crate::digest::Digest;
use crate::read_set::Recorded;
use crate::stored_file::StoredFile;

/// A read-only layer that is read with `preadv`: one copy, from the host's page cache, which all VMs share, to guest memory.
///
/// The kernel checks the file's size in the call that copies. So a request to a truncated or unreadable file fails with an error,
/// at any time and even in the middle of a page, and has no other effect. Of the ways to serve a layer that survive truncation it
/// is the fastest.
#[derive(Debug)]
pub struct LayerDisk {
    file: File,
    bytes: u64,
    digest: Digest,
}

impl LayerDisk {
    /// Opens a layer's file.
    ///
    /// # Errors
    /// It is missing, not a regular file, or of another size than recorded.
    pub fn open(layer: &StoredFile) -> Result<Self, DiskError> {
        Ok(Self { file: open_shared(&layer.path, layer.bytes)?, bytes: layer.bytes, digest: layer.digest })
    }

    /// Records what is read of it from now on.
    #[must_use]
    pub fn recorded(self) -> Recorded<Self> {
        let files = vec![(0..self.bytes, self.digest)];
        Recorded::new(self, files)
    }
}

impl Disk for LayerDisk {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn id(&self) -> DiskId {
        DiskId::from(&self.digest)
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        read_file(&self.file, offset, buffers)
    }
}
