//! Calls with a time limit: how much of it remains, and waits within it.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::end::{EndSignal, VmEnd};
use crate::poll::poll;

/// The moment by which a call must end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    /// A deadline `limit` from now.
    pub(crate) fn after(limit: Duration) -> Self {
        Self { start: Instant::now(), limit }
    }

    /// The limit of the whole call.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The time that remains.
    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }
}

/// Why there is nothing to read.
#[derive(Debug)]
pub(crate) enum NothingToRead {
    /// Time is up.
    Timeout,
    /// The VM ended before.
    Ended(VmEnd),
    /// The system refused to wait.
    System(io::Error),
}

/// Waits until `file` can be read, the VM ends, or time is up.
pub(crate) fn await_readable(file: &impl AsFd, deadline: Deadline, end: &EndSignal) -> Result<(), NothingToRead> {
    loop {
        let left = deadline.left();
        if left.is_zero() {
            return Err(NothingToRead::Timeout);
        }
        let wanted = [end.as_fd(), file.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
        let [ended, readable] = poll(wanted, Some(left)).map_err(NothingToRead::System)?;
        if let (true, Some(end)) = (!ended.is_empty(), end.ended()) {
            return Err(NothingToRead::Ended(end));
        }
        if !readable.is_empty() {
            return Ok(());
        }
    }
}

/// Threads take turns; each waits for its turn only up to a limit.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

/// The turn of one thread, while the others wait.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for the turn; `None` if it does not come within `limit`.
    pub(crate) fn take(&self, limit: Duration) -> Option<Turn<'_>> {
        let waited = self.free.wait_timeout_while(self.lock(), limit, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return None;
        }
        *taken = true;
        Some(Turn(self))
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn the_longest_limit_is_valid() {
        assert!(Deadline::after(Duration::MAX).left() > Duration::from_secs(1 << 40));
        assert_eq!(Deadline::after(Duration::ZERO).left(), Duration::ZERO);
    }

    #[test]
    fn waiting_ends_with_data_with_time_and_with_the_vm() {
        let end = EndSignal::new().unwrap();
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let wait = |limit| await_readable(&ours, Deadline::after(limit), &end);
        assert!(matches!(wait(Duration::from_millis(2)), Err(NothingToRead::Timeout)));
        theirs.write_all(b"x").unwrap();
        wait(Duration::MAX).unwrap();
        thread::scope(|scope| {
            let (idle, _other) = UnixStream::pair().unwrap();
            let end = &end;
            let waiter = scope.spawn(move || await_readable(&idle, Deadline::after(Duration::MAX), end));
            end.report(VmEnd::Reset);
            assert!(matches!(waiter.join().unwrap(), Err(NothingToRead::Ended(VmEnd::Reset))));
        });
    }

    #[test]
    fn a_turn_is_waited_for_within_the_limit() {
        let turns = Turns::default();
        let first = turns.take(Duration::ZERO).unwrap();
        assert!(turns.take(Duration::from_millis(2)).is_none());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| turns.take(Duration::from_secs(60)).is_some());
            drop(first);
            assert!(waiter.join().unwrap());
        });
        assert!(turns.take(Duration::ZERO).is_some());
    }
}
