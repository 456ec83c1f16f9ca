//! A layer served by reading its file.

use std::fs::File;
use std::io;

use vm_memory::VolatileSlice;

use crate::disk::{Disk, DiskError, DiskId, SECTOR_SIZE, open_layer_file};
use crate::guest_io::read_file;
use crate::store::Layer;

/// A read-only layer that is read with `preadv`: one copy, from the host's page cache, which all VMs share, to guest memory.
///
/// The kernel checks the file's size in the call that copies. So a file that was cut short or can't be read gives the
/// request an error at any moment, also in the middle of a page, and nothing else happens.
#[derive(Debug)]
pub struct PreadLayer {
    file: File,
    bytes: u64,
    id: DiskId,
}

impl PreadLayer {
    /// Opens a layer's file.
    ///
    /// # Errors
    /// It is missing, no regular file, or of another size than recorded.
    pub fn open(layer: &Layer) -> Result<Self, DiskError> {
        Ok(Self { file: open_layer_file(layer)?, bytes: layer.bytes, id: DiskId::from(&layer.digest) })
    }
}

impl Disk for PreadLayer {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn read_only(&self) -> bool {
        true
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        read_file(&self.file, offset, buffers)
    }

    fn write_at(&self, _offset: u64, _buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
