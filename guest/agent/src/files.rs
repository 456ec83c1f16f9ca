//! Reading and writing the kernel's small text files, with errors that name them.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{AgentError, Result};

/// The file's text without white space at its end.
///
/// # Errors
/// [`AgentError::Path`].
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut text = fs::read_to_string(path).map_err(AgentError::path("read", path))?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

/// Writes `text` to a file that exists, in one call.
///
/// # Errors
/// [`AgentError::Path`].
pub fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    use std::io::Write;
    let path = path.as_ref();
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(AgentError::path("write to", path))
}

/// Creates a directory with its parents.
///
/// # Errors
/// [`AgentError::Path`].
pub fn make_directory(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(AgentError::path("create", path))
}

/// Waits until the kernel announces a change with `POLLPRI`, for `limit` at most; returns whether it has.
///
/// # Errors
/// The system refused to wait.
pub fn await_urgent(file: &impl AsFd, limit: Duration) -> nix::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Err(Errno::EINTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}

/// Whether a list like `0,3-5` (cpulist format) holds `number`.
pub fn list_holds(list: &str, number: u32) -> bool {
    list.trim().split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&number),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_their_ranges() {
        for (list, number, held) in
            [("0", 0, true), ("0,3-5", 4, true), ("0,3-5\n", 5, true), ("0,3-5", 2, false), ("", 0, false)]
        {
            assert_eq!(list_holds(list, number), held, "{list:?} {number}");
        }
    }
}
