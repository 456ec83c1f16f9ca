//! Holes in files: parts that read as zeros and take no room on the medium.
//!
//! ```
//! use bellows_disk::hole;
//!
//! let file = tempfile::tempfile()?;
//! file.set_len(1 << 20)?;
//! hole::zero(&file, 0, 4096)?;
//! assert_eq!(file.metadata()?.len(), 1 << 20);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::VolatileSlice;

/// Zeros that are written from.
const ZEROS: usize = 16 << 10;
/// How often a call writes them.
const TIMES: u64 = 32;

/// Makes a hole of `bytes` bytes at byte `offset` of a file, or of a block device. Its size stays.
///
/// # Errors
/// The kind is [`io::ErrorKind::Unsupported`] where the file system or the device has no holes.
pub fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)
}

/// Has `bytes` bytes at byte `offset` of a file read as zeros, without a hole. Its size stays.
///
/// # Errors
/// As for [`punch`].
pub fn zero(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, bytes)
}

fn allocate(file: &File, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let number = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (offset, bytes) = (number(offset)?, number(bytes)?);
    loop {
        return match fallocate(file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Ok(()) => Ok(()),
            Err(Errno::EINTR) => continue,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Err(io::ErrorKind::Unsupported.into()),
            Err(error) => Err(error.into()),
        };
    }
}

/// Writes `bytes` zeros from byte `offset` on, with as many calls of `write` as that takes.
///
/// # Errors
/// Those of `write`.
pub fn write_zeros(
    mut offset: u64,
    mut bytes: u64,
    mut write: impl FnMut(u64, &[VolatileSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut zeros = [0; ZEROS];
    let zeros = VolatileSlice::from(&mut zeros[..]);
    let many = [zeros; TIMES as usize];
    while bytes > 0 {
        let whole = (bytes / ZEROS as u64).min(TIMES);
        let written = if whole > 0 {
            write(offset, &many[..whole as usize])?;
            whole * ZEROS as u64
        } else {
            // Less than a slice.
            let rest = zeros.subslice(0, bytes as usize).map_err(io::Error::other)?;
            write(offset, &[rest])?;
            bytes
        };
        offset += written;
        bytes -= written;
    }
    Ok(())
}

#[cfg(test)]
#[path = "hole_test.rs"]
mod tests;
