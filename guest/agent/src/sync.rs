//! Locks that do not fail.
//!
//! The standard library poisons a lock when a thread panics while it holds it. Here a first panic ends the agent, and where it
//! does not, in tests, whatever a lock guards is whole after every single step: a poisoned lock is used like any other.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

/// [`std::sync::Mutex`] whose lock can always be had.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

/// [`std::sync::Condvar`] for [`Mutex`].
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condvar {
    /// Gives the lock up until the condition is notified, or for no reason.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Condvar::wait`], for `timeout` at most.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits while `condition` holds, for `timeout` at most; says whether it has ceased to.
    pub fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> (MutexGuard<'a, T>, bool) {
        let waited = self.0.wait_timeout_while(guard, timeout, condition);
        let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
        (guard, !result.timed_out())
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
