//! A layer served from a mapping of its file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use vm_memory::VolatileSlice;

use crate::disk::{Disk, DiskError, DiskId, SECTOR_SIZE, open_layer_file};
use crate::guest_io::copy_mapping;
use crate::store::Layer;

/// A read-only layer that is copied from a shared mapping of its file.
///
/// This process must not touch the mapping itself: a page beyond the end of a file that was cut short would raise SIGBUS,
/// and to populate pages first does not help, since the file can shrink between that and the copy. So the kernel copies
/// (`process_vm_readv` on this process) and answers EFAULT for such a page. What it can't see is a file that was cut short
/// in the middle of a page, where a mapping reads zeros: the file's size is compared after each copy. Measured against
/// [`crate::PreadLayer`] on cached data, both checks together cost more than `preadv` does; the mapping's own use is
/// giving it to the guest (`virtio-pmem`).
#[derive(Debug)]
pub struct MappedLayer {
    file: File,
    mapping: Mapping,
    id: DiskId,
}

impl MappedLayer {
    /// Maps a layer's file.
    ///
    /// # Errors
    /// It is missing, no regular file, of another size than recorded, or can't be mapped.
    pub fn open(layer: &Layer) -> Result<Self, DiskError> {
        let file = open_layer_file(layer)?;
        let mapping = Mapping::new(&layer.path, &file, layer.bytes)?;
        Ok(Self { file, mapping, id: DiskId::from(&layer.digest) })
    }
}

impl Disk for MappedLayer {
    fn sectors(&self) -> u64 {
        self.mapping.bytes / SECTOR_SIZE
    }

    fn read_only(&self) -> bool {
        true
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if offset.checked_add(bytes).is_none_or(|end| end > self.mapping.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copy_mapping(self.mapping.address, offset, buffers)?;
        if self.file.metadata()?.len() < self.mapping.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A shared read-only mapping of the start of a file; only its address is ever used.
#[derive(Debug)]
struct Mapping {
    address: usize,
    bytes: u64,
}

impl Mapping {
    fn new(path: &Path, file: &File, bytes: u64) -> Result<Self, DiskError> {
        let error = |source| DiskError::Open { path: path.to_owned(), source };
        let length = usize::try_from(bytes).map_err(|_| error(io::ErrorKind::FileTooLarge.into()))?;
        // SAFETY: the kernel chooses the address, so no mapping of anybody else is replaced.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(error(io::Error::last_os_error()));
        }
        Ok(Self { address: address.expose_provenance(), bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let length = usize::try_from(self.bytes).unwrap_or_default();
        // SAFETY: `new` mapped exactly this range, and no reference to it was ever made.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(self.address), length) };
    }
}
