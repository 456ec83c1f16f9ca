//! Waiting for descriptors (`poll(2)`).

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use libc::{c_int, c_short};

/// Waits until one of these descriptors is ready for the events beside it: the events of each, all 0 where time is up or a signal
/// came first. Without a time-out it waits for as long as it takes.
///
/// # Errors
/// Those of `poll(2)` but for `EINTR`.
pub(crate) fn poll<const N: usize>(
    wanted: [(RawFd, c_short); N],
    timeout: Option<Duration>,
) -> io::Result<[c_short; N]> {
    // Rounded up, so that a caller does not spin through the last millisecond.
    let rounded = |left: Duration| if left.is_zero() { 0 } else { left.as_millis().saturating_add(1) };
    let milliseconds = timeout.map_or(-1, |left| c_int::try_from(rounded(left)).unwrap_or(c_int::MAX));
    let mut entries = wanted.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // SAFETY: the array has `N` entries; a descriptor that is closed is an event of its own.
    let count = unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, milliseconds) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([0; N]) } else { Err(error) };
    }
    Ok(entries.map(|entry| entry.revents))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn says_what_happened_to_which() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let wanted = [(writer.as_raw_fd(), libc::POLLIN), (reader.as_raw_fd(), libc::POLLIN)];
        assert_eq!(poll(wanted, Some(Duration::ZERO)).unwrap(), [0, 0]);
        assert_eq!(poll(wanted, Some(Duration::from_micros(1))).unwrap(), [0, 0]);
        writer.write_all(b"x").unwrap();
        assert_eq!(poll(wanted, None).unwrap(), [0, libc::POLLIN]);
    }
}
