//! fs-verity (Linux, `Documentation/filesystems/fsverity.rst`): a file system that has it refuses to read a file that
//! changed since, and lets nobody write to it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::digest::Digest;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_more: [u64; 11],
}

/// `struct fsverity_digest` with room for SHA-256.
#[repr(C)]
struct MeasuredDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

const SHA256: u16 = 1;
const ENABLE: libc::Ioctl = libc::_IOW::<EnableArgument>(b'f' as u32, 133);
/// The kernel's own type ends without the digest.
const MEASURE: libc::Ioctl = libc::_IOWR::<[u16; 2]>(b'f' as u32, 134);

/// Makes a finished file unchangeable, where its file system can; says whether it did. `file` must be open for reading
/// only, and nobody may have it open for writing.
pub(super) fn enable(file: &File) -> io::Result<bool> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: 4096,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        reserved_more: [0; 11],
    };
    // SAFETY: the kernel reads one `fsverity_enable_arg`, which outlives the call and names no other memory.
    match unsafe { libc::ioctl(file.as_raw_fd(), ENABLE, &raw const argument) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if is_unsupported(&error) => Ok(false),
            error => Err(error),
        },
    }
}

/// Whether files in a directory can be made unchangeable. It is tried, with a file that goes again.
///
/// # Errors
/// The directory cannot be written to, or the file system failed.
pub fn can_seal(directory: &Path) -> io::Result<bool> {
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(b"x")?;
    let path = file.into_temp_path();
    enable(&File::open(&path)?)
}

/// The digest that the file system holds a file to; `None` if it does not.
pub(super) fn measure(file: &File) -> io::Result<Option<Digest>> {
    let mut measured = MeasuredDigest { algorithm: 0, size: 32, digest: [0; 32] };
    // SAFETY: the kernel writes the head and as many bytes behind it as `size` says, which is what `digest` has.
    match unsafe { libc::ioctl(file.as_raw_fd(), MEASURE, &raw mut measured) } {
        0 if (measured.algorithm, measured.size) == (SHA256, 32) => Ok(Some(Digest::from(measured.digest))),
        0 => Ok(None),
        _ => match io::Error::last_os_error() {
            error if is_unsupported(&error) || error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            error => Err(error),
        },
    }
}

/// What kernels and file systems without it answer.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!((ENABLE, MEASURE), (0x4080_6685, 0xc004_6686));
    }

    /// On a file system with fs-verity the file can no longer be changed; elsewhere nothing happens.
    #[test]
    fn files_are_protected_where_that_is_possible() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "data").unwrap();
        let file = File::open(&path).unwrap();
        let enabled = enable(&file).unwrap();
        assert_eq!(measure(&file).unwrap().is_some(), enabled);
        assert_eq!(File::options().write(true).open(&path).is_err(), enabled);
        assert_eq!(can_seal(directory.path()).unwrap(), enabled);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the file that was tried is gone");
    }
}
