//! Ends long operations from another thread.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "registry")]
use std::sync::mpsc::{self, RecvTimeoutError};
#[cfg(feature = "registry")]
use std::time::Duration;

use bellows_memory::sync::Mutex;

/// A wish to end something early. Clones are the same wish.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Wish>);

#[derive(Default)]
struct Wish {
    uttered: AtomicBool,
    /// Wakes threads that wait for something else and cannot check.
    wakers: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wish").field("uttered", &self.uttered).finish_non_exhaustive()
    }
}

impl Cancel {
    /// Ends all operations that check this wish.
    pub fn cancel(&self) {
        self.0.uttered.store(true, Ordering::Relaxed);
        let wakers = std::mem::take(&mut *self.0.wakers.lock());
        wakers.into_iter().for_each(|wake| wake());
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.uttered.load(Ordering::Relaxed)
    }

    /// Calls `wake` when the wish is uttered, or at once where it was already.
    #[cfg(feature = "registry")]
    pub(crate) fn on_cancel(&self, wake: impl FnOnce() + Send + 'static) {
        let mut wakers = self.0.wakers.lock();
        // Looked at under the lock, so that no waker comes after the last one was taken.
        if self.is_cancelled() {
            drop(wakers);
            return wake();
        }
        wakers.push(Box::new(wake));
    }

    /// Sleeps for `time`, or until the wish is uttered; whether that time has passed.
    #[cfg(feature = "registry")]
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let (waker, woken) = mpsc::channel::<()>();
        self.on_cancel(move || drop(waker));
        woken.recv_timeout(time) == Err(RecvTimeoutError::Timeout) && !self.is_cancelled()
    }

    /// Lets `inner` be read until the wish is uttered.
    pub(crate) fn reader<R: Read>(&self, inner: R) -> impl Read + use<R> {
        Cancellable { inner, cancel: self.clone() }
    }
}

struct Cancellable<R> {
    inner: R,
    cancel: Cancel,
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was cancelled"));
        }
        self.inner.read(into)
    }
}
