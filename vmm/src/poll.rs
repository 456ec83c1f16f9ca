//! Waiting for descriptors (`poll(2)`).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Waits until one of these descriptors is ready for the events beside it: the events of each, all empty where time is up or a
/// signal came first. Without a time-out it waits for as long as it takes.
///
/// # Errors
/// Those of `poll(2)` except `EINTR`.
pub(crate) fn poll<const N: usize>(
    wanted: [(BorrowedFd<'_>, PollFlags); N],
    timeout: Option<Duration>,
) -> io::Result<[PollFlags; N]> {
    // Rounded up, so that a caller does not spin through the last millisecond.
    let rounded = |left: Duration| if left.is_zero() { 0 } else { left.as_millis().saturating_add(1) };
    let timeout = timeout.map(|left| PollTimeout::try_from(rounded(left)).unwrap_or(PollTimeout::MAX));
    let mut entries = wanted.map(|(fd, events)| PollFd::new(fd, events));
    match nix::poll::poll(&mut entries, timeout) {
        // A flag that nix does not know was not asked for.
        Ok(_) => Ok(entries.map(|entry| entry.revents().unwrap_or(PollFlags::POLLERR))),
        Err(Errno::EINTR) => Ok([PollFlags::empty(); N]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn says_what_happened_to_which() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let other = writer.try_clone().unwrap();
        let wanted = [other.as_fd(), reader.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
        let nothing = [PollFlags::empty(); 2];
        assert_eq!(poll(wanted, Some(Duration::ZERO)).unwrap(), nothing);
        assert_eq!(poll(wanted, Some(Duration::from_micros(1))).unwrap(), nothing);
        writer.write_all(b"x").unwrap();
        assert_eq!(poll(wanted, None).unwrap(), [PollFlags::empty(), PollFlags::POLLIN]);
    }
}
