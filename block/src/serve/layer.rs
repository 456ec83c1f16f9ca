//! A layer's file as a disk.

use std::fs::File;
use std::io;

use bellows_disk::io::read_file;
use bellows_disk::{Disk, DiskError, DiskId, SECTOR_SIZE, open_shared};
use bellows_memory::host::faults_are_caught;
use vm_memory::VolatileSlice;

use super::mapped::Mapped;
use crate::digest::Digest;
use crate::read_set::Recorded;
use crate::stored_file::StoredFile;

/// A read-only layer: one copy, from the host's page cache, which all VMs share, to guest memory.
///
/// It is read with `preadv`. The kernel checks the file's size in the call that copies, so a request to a truncated or unreadable file
/// fails with an error, at any time and even in the middle of a page, and has no other effect.
///
/// A process that catches faults in mappings of files ([`catch_faults`](bellows_memory::host::catch_faults)) copies from a mapping, which
/// is faster. There a file that was truncated in the middle of a page reads as zeros up to the end of the page, so a look at its size
/// follows each copy of a page that ends in a zero. If a page vanishes that had been there, all later requests to the layer fail.
#[derive(Debug)]
pub struct LayerDisk {
    // Before the file, whose lock it needs.
    mapped: Option<Mapped>,
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
        let file = open_shared(&layer.path, layer.bytes)?;
        let mapped = faults_are_caught().then(|| Mapped::new(&file, layer.bytes)).flatten();
        Ok(Self { mapped, file, bytes: layer.bytes, digest: layer.digest })
    }

    /// Has it read with `preadv`, whatever the process catches.
    #[must_use]
    pub fn unmapped(self) -> Self {
        Self { mapped: None, ..self }
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
        let Some(mapped) = &self.mapped else { return read_file(&self.file, offset, buffers) };
        match mapped.read_at(offset, buffers)? {
            Some(end) if self.file.metadata()?.len() < end => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
