//! Files without their page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Drops the pages of a file that no process uses from the host's page cache.
///
/// # Errors
/// The file can't be opened, or the kernel refuses.
pub fn evict(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Pages that have not reached the disk stay.
    file.sync_all()?;
    // SAFETY: the call takes no memory, and the descriptor is open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
