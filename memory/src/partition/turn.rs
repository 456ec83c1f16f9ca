//! Turns: many threads share something that one of them at a time works on.
//!
//! The thread that has the [`Turn`] works for as long as it takes, and holds the lock only for a moment at a time. So a thread
//! that looks at the figures never waits for an operation.
//!
//! ```text
//!                     take, try_take                  drop
//!   free --------------------------------> taken --------------> free
//!    ^                                       |                     |
//!    |   no thread waits: wake the device    |  try_take:          |  a thread waits in take
//!    +---- if its request was put off        |  put off            +------------------------> taken
//! ```
//!
//! Control threads wait for the turn ([`Turns::take`]). The device's thread does not ([`Turns::try_take`]): its request is put
//! off where the turn is taken or a thread waits for it, and the device is woken once a turn ends for which no thread waits.
//! So threads come before the device: even if a guest asks all the time, each waits for one request at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Brings the device back to a request that was put off.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// What threads take turns at.
pub(super) struct Turns<T> {
    shared: Mutex<Shared<T>>,
    changed: Condvar,
}

/// The right to change what a [`Turns`] holds, until this is dropped.
pub(super) struct Turn<'a, T> {
    turns: &'a Turns<T>,
}

/// What a thread that waits for a change sees beside the data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// No turn is taken: what the data says has been answered, too.
    pub(super) free: bool,
    /// The guest has ended.
    pub(super) ended: bool,
    /// Time is up.
    pub(super) last: bool,
}

struct Shared<T> {
    data: T,
    /// A [`Turn`] exists.
    taken: bool,
    /// Threads in [`Turns::take`].
    waiting: u32,
    device: Device,
    ended: bool,
}

/// The device, as far as turns are concerned.
enum Device {
    /// No driver has bound.
    Absent,
    /// It waits for no turn.
    Idle(Waker),
    /// It is to be woken.
    PutOff(Waker),
}

impl<T> Turns<T> {
    pub(super) fn new(data: T) -> Self {
        let shared = Shared { data, taken: false, waiting: 0, device: Device::Absent, ended: false };
        Self { shared: Mutex::new(shared), changed: Condvar::new() }
    }

    /// Waits for the turn. Turns are short: a drain is limited.
    pub(super) fn take(&self) -> Turn<'_, T> {
        let mut shared = self.shared.lock();
        shared.waiting += 1;
        while shared.taken {
            shared = self.changed.wait(shared);
        }
        shared.waiting -= 1;
        self.begin(shared)
    }

    /// Takes the turn for the device, or puts its request off.
    pub(super) fn try_take(&self) -> Option<Turn<'_, T>> {
        let mut shared = self.shared.lock();
        if shared.taken || shared.waiting != 0 {
            shared.device.put_off();
            return None;
        }
        Some(self.begin(shared))
    }

    /// Has `waker` called when a request that was put off may be brought again; `None` ends that.
    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        self.shared.lock().device = waker.map_or(Device::Absent, Device::Idle);
    }

    /// Tells all waits, now and later, that the guest has ended.
    pub(super) fn end(&self) {
        self.shared.lock().ended = true;
        self.changed.notify_all();
    }

    /// Looks at the data, as the last turn to end or the one that is taken has left it so far.
    pub(super) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.shared.lock().data)
    }

    /// Calls `check` now and after each change until it says something, or once more when `timeout` is over. `late` answers
    /// if it says nothing even then.
    pub(super) fn wait<R>(
        &self,
        timeout: Duration,
        mut check: impl FnMut(&T, Moment) -> Option<R>,
        late: impl FnOnce(&T) -> R,
    ) -> R {
        let start = Instant::now();
        let mut shared = self.shared.lock();
        loop {
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let moment = Moment { free: !shared.taken, ended: shared.ended, last: left.is_none() };
            if let Some(result) = check(&shared.data, moment) {
                return result;
            }
            let Some(left) = left else { return late(&shared.data) };
            shared = self.changed.wait_timeout(shared, left);
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.shared.get_mut().data
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> u32 {
        self.shared.lock().waiting
    }

    fn begin(&self, mut shared: MutexGuard<'_, Shared<T>>) -> Turn<'_, T> {
        shared.taken = true;
        Turn { turns: self }
    }
}

impl<T> Turn<'_, T> {
    /// Looks at the data or changes it.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.turns.shared.lock().data)
    }

    /// Has the device woken at the end of the turn, to bring its request again.
    pub(super) fn put_off(&self) {
        self.turns.shared.lock().device.put_off();
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut shared = self.turns.shared.lock();
        shared.taken = false;
        if shared.waiting == 0 {
            shared.device.wake();
        }
        // Before the others are woken, or they would wake only to wait for the lock.
        drop(shared);
        self.turns.changed.notify_all();
    }
}

impl Device {
    fn put_off(&mut self) {
        *self = match std::mem::replace(self, Self::Absent) {
            Self::Absent => Self::Absent,
            Self::Idle(waker) | Self::PutOff(waker) => Self::PutOff(waker),
        };
    }

    fn wake(&mut self) {
        *self = match std::mem::replace(self, Self::Absent) {
            Self::PutOff(waker) => {
                waker();
                Self::Idle(waker)
            }
            other => other,
        };
    }
}

#[cfg(test)]
#[path = "turn_test.rs"]
mod tests;
