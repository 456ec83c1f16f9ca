//! Advice to the kernel about the page cache of files (`posix_fadvise(2)`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

/// Has the kernel read these bytes without waiting for them.
///
/// # Errors
/// The range is too large, or the kernel refused.
pub(crate) fn will_need(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    advise(file, bytes.start, bytes.end - bytes.start, libc::POSIX_FADV_WILLNEED)
}

/// Has the kernel drop all pages of a file that no process uses.
///
/// # Errors
/// The kernel refused.
pub(crate) fn dont_need(file: &File) -> io::Result<()> {
    advise(file, 0, 0, libc::POSIX_FADV_DONTNEED)
}

/// Advises about `length` bytes from `start` on; a length of 0 goes to the end.
fn advise(file: &File, start: u64, length: u64, advice: libc::c_int) -> io::Result<()> {
    let offset = |offset: u64| libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput);
    let (start, length) = (offset(start)?, offset(length)?);
    // SAFETY: the call takes no memory, and the descriptor is open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), start, length, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
