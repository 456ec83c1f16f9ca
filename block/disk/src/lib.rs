//! What a disk of a virtual machine is: the trait [`Disk`], its errors, and [`RawDisk`], a disk in a plain file or on a block
//! device.
//!
//! A block device needs nothing else. The disks that serve container images stand in `bellows-block`.

mod error;
mod file;
pub mod hole;
pub mod io;
mod raw;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use vm_memory::VolatileSlice;

pub use error::DiskError;
pub use file::open_shared;
pub use raw::RawDisk;

/// Size in bytes of the unit that capacities and positions are counted in (VIRTIO 1.2, section 5.2).
pub const SECTOR_SIZE: u64 = 512;

/// A disk, read-only unless it says otherwise. Each queue calls it from a thread of its own; a call may block its thread, and no
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

    /// Fills `buffers`, one after the other, from byte `offset` on.
    ///
    /// # Errors
    /// A part could not be read, or the disk ends before. The contents of `buffers` are undefined then.
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> std::io::Result<()>;

    /// Writes `buffers`, one after the other, from byte `offset` on.
    ///
    /// # Errors
    /// The disk is read-only, or a part could not be written. The contents of the disk are undefined there then.
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> std::io::Result<()> {
        let _ = (offset, buffers);
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Whether [`Disk::discard`] gives anything back.
    fn discards(&self) -> bool {
        false
    }

    /// Gives the medium under `bytes` bytes from byte `offset` on back. What they hold afterwards is undefined.
    ///
    /// # Errors
    /// The kind is [`Unsupported`](std::io::ErrorKind::Unsupported) where the medium cannot be given back; nothing has changed then.
    fn discard(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        let _ = (offset, bytes);
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Makes zeros of `bytes` bytes from byte `offset` on. With `unmap` the medium under them may be given back.
    ///
    /// # Errors
    /// As for [`Disk::write_at`].
    fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> std::io::Result<()> {
        let _ = unmap;
        hole::write_zeros(offset, bytes, |offset, buffers| self.write_at(offset, buffers))
    }

    /// Returns when all completed writes have reached the medium.
    ///
    /// # Errors
    /// They may not have.
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

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

    /// The bytes that the guest reads.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}
