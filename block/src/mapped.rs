//! A layer served from a mapping of its file.

use std::io;

use bellows_disk::io::copy_mapping;
use bellows_disk::{Disk, DiskError, DiskId, SECTOR_SIZE};
use vm_memory::VolatileSlice;

use crate::mapping::ImageMapping;
use crate::stored_file::StoredFile;

/// A read-only layer that is copied from a mapping of its file.
///
/// This process must not touch the mapping itself ([`ImageMapping`]), and to populate pages first does not help, since the
/// file can shrink between that and the copy. So the kernel copies (`process_vm_readv` on this process) and answers EFAULT
/// for a page that is not there. What it can't see is a file that was cut short in the middle of a page, where a mapping
/// reads zeros: the file's size is compared after each copy. Measured against [`crate::LayerDisk`] on cached data, both
/// checks together cost more than `preadv` does; the mapping's own use is giving it to the guest (virtio-pmem).
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
    /// It is missing, no regular file, of another size than recorded, or can't be mapped.
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
