//! Threads that end together. Several callers may wait; each returns when all threads are gone.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use bellows_memory::threads::{self, ThreadRole};

/// The threads that run.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Running>);

#[derive(Default)]
struct Running {
    ids: Mutex<HashSet<ThreadId>>,
    changed: Condvar,
}

impl Threads {
    /// Starts a thread that runs `work`. A panic is not caught here.
    ///
    /// # Errors
    /// The system has no thread.
    pub(crate) fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let running = self.0.clone();
        // Held until the thread is listed, so that it does not end before.
        let mut ids = self.0.ids();
        let thread = threads::spawn(ThreadRole::Vcpu, name, Some(512 << 10), move || {
            let _listed = Listed(running);
            work();
        })?;
        ids.insert(thread.thread().id());
        Ok(())
    }

    /// Waits until all have ended; one of them does not wait for itself.
    pub(crate) fn wait(&self) {
        let me = thread::current().id();
        let others = |ids: &mut HashSet<ThreadId>| ids.iter().any(|id| *id != me);
        drop(self.0.changed.wait_while(self.0.ids(), others).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Running {
    fn ids(&self) -> MutexGuard<'_, HashSet<ThreadId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the thread off the list at its very end.
struct Listed(Arc<Running>);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.ids().remove(&thread::current().id());
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_waiter_waits_until_the_last_thread_has_ended() {
        let threads = Threads::default();
        let (go, gone) = mpsc::channel::<()>();
        let over = Arc::new(AtomicBool::new(false));
        let last = threads.spawn("last".into(), {
            let over = over.clone();
            move || {
                let _ = gone.recv();
                over.store(true, Ordering::SeqCst);
            }
        });
        last.unwrap();
        threads.spawn("first".into(), || {}).unwrap();
        let (waiting, waits) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..2 {
                let waiting = waiting.clone();
                let (threads, over) = (&threads, &over);
                scope.spawn(move || {
                    waiting.send(()).unwrap();
                    threads.wait();
                    assert!(over.load(Ordering::SeqCst), "one thread still ran");
                });
            }
            waits.recv().unwrap();
            waits.recv().unwrap();
            drop(go);
        });
    }

    #[test]
    fn a_thread_waits_for_the_others_but_not_for_itself() {
        let threads = Threads::default();
        let (done, ends) = mpsc::channel();
        let own = threads.clone();
        let spawned = threads.spawn("self".into(), move || {
            own.wait();
            done.send(()).unwrap();
        });
        spawned.unwrap();
        ends.recv().unwrap();
        threads.wait();
    }

    #[test]
    fn a_thread_that_panicked_has_ended() {
        let threads = Threads::default();
        threads.spawn("panics".into(), || std::panic::resume_unwind(Box::new("on purpose"))).unwrap();
        threads.wait();
    }
}
