//! A layer served from a mapping of its file.

use std::io;

use bellows_disk::io::copy_mapping;
use bellows_disk::{Disk, DiskError, DiskId, SECTOR_SIZE};
use vm_memory::VolatileSlice;

use super::ImageMapping;
use crate::stored_file::StoredFile;

/// A read-only layer that is copied from a mapping of its file.
///
/// This process must not touch the mapping itself ([`ImageMapping`]). Populating pages first does not help: the file can shrink
/// before the copy. So the kernel copies (`process_vm_readv` on this process) and answers EFAULT for a page that does not exist.
/// It cannot see a file that was truncated in the middle of a page, where a mapping reads zeros, so each copy is followed by a check
/// of the file's size. On cached data, both together measured slower than the `preadv` of [`crate::LayerDisk`].
#[derive(Debug)]
pub struct MappedLayer {
    mapping: ImageMapping,
    bytes: u64,
    id: DiskId,
}

impl MappedLayer {
    /// Maps a layer's file.
    ///
    /// # Errors
    /// It is missing, not a regular file, of another size than recorded, or cannot be mapped.
    pub fn open(layer: &StoredFile) -> Result<Self, DiskError> {
        Ok(Self { mapping: ImageMapping::layer(layer)?, bytes: layer.bytes, id: DiskId::from(&layer.digest) })
    }
}

impl Disk for MappedLayer {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copy_mapping(self.mapping.address(), offset, buffers)?;
        if self.mapping.cut_short().is_some() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}
