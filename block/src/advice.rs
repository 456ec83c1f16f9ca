//! Advice to the kernel about the page cache of files (`posix_fadvise(2)`).

use std::fs::File;
use std::io;
use std::ops::Range;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Has the kernel read these bytes without waiting for them.
///
/// # Errors
/// The range is too large, or the kernel refused.
pub(crate) fn will_need(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    advise(file, bytes.start, bytes.end - bytes.start, PosixFadviseAdvice::POSIX_FADV_WILLNEED)
}

/// Has the kernel drop all pages of a file that no process uses.
///
/// # Errors
/// The kernel refused.
pub(crate) fn dont_need(file: &File) -> io::Result<()> {
    advise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

/// Advises about `length` bytes from `start` on; a length of 0 goes to the end.
fn advise(file: &File, start: u64, length: u64, advice: PosixFadviseAdvice) -> io::Result<()> {
    let offset = |offset: u64| i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(posix_fadvise(file, offset(start)?, offset(length)?, advice)?)
}
