//! The thread that gives memory back to the host.
//!
//! Freeing gigabytes takes milliseconds to tenths of a second, which neither a vCPU nor a device's thread can spare.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::mapping::{HostMapping, MapError};
use crate::{ByteSize, limited};

/// How much is freed in one system call: few enough pages that nobody waits long for the address space's lock.
const STEP: u64 = 256 << 20;

/// What a discard did.
#[derive(Debug)]
pub struct Discarded {
    /// Bytes that had pages and went back to the host; measured, so at most the size of the range.
    pub freed: ByteSize,
    /// Time it took to free them, without the time to count them.
    pub took: Duration,
    /// What went wrong; part of the range may have been freed all the same.
    pub error: Option<MapError>,
}

/// A worker thread that discards ranges in the order they were submitted. Dropping it finishes what is queued and joins.
pub struct Discarder {
    queue: DiscardQueue,
    thread: Option<JoinHandle<()>>,
}

/// Submits work to a [`Discarder`]. Cheap to clone; may outlive the thread, which then takes nothing more.
#[derive(Clone)]
pub struct DiscardQueue {
    sender: Sender<Task>,
}

/// The worker has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the discard thread has ended")]
pub struct WorkerEnded;

enum Task {
    Discard { mapping: Arc<HostMapping>, offset: u64, bytes: u64, done: Box<dyn FnOnce(Discarded) + Send> },
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

impl Discarder {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn spawn() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let thread =
            thread::Builder::new().name("discard".to_owned()).stack_size(256 << 10).spawn(move || run(&receiver))?;
        Ok(Self { queue: DiscardQueue { sender }, thread: Some(thread) })
    }

    /// A way to submit work.
    #[must_use]
    pub fn queue(&self) -> DiscardQueue {
        self.queue.clone()
    }
}

impl Drop for Discarder {
    fn drop(&mut self) {
        let _ = self.queue.sender.send(Task::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            limited!(error, "the discard thread panicked");
        }
    }
}

impl DiscardQueue {
    /// Discards `bytes` at `offset` of `mapping` after all that was submitted before, then calls `done` on the thread.
    ///
    /// # Errors
    /// The thread has ended; nothing was discarded, and `done` won't be called.
    pub fn discard(
        &self,
        mapping: Arc<HostMapping>,
        offset: u64,
        bytes: u64,
        done: impl FnOnce(Discarded) + Send + 'static,
    ) -> Result<(), WorkerEnded> {
        let task = Task::Discard { mapping, offset, bytes, done: Box::new(done) };
        self.sender.send(task).map_err(|_| WorkerEnded)
    }

    /// Runs `task` on the thread after all that was submitted before.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) -> Result<(), WorkerEnded> {
        self.sender.send(Task::Run(Box::new(task))).map_err(|_| WorkerEnded)
    }
}

fn run(tasks: &Receiver<Task>) {
    if let Err(error) = give_way() {
        limited!(debug, %error, "discards take processors from what waits for an unplug");
    }
    for task in tasks {
        match task {
            Task::Discard { mapping, offset, bytes, done } => {
                let discarded = discard(&mapping, offset, bytes);
                // Before the callback: whoever waits for it may be about to unmap.
                drop(mapping);
                done(discarded);
            }
            Task::Run(task) => task(),
            Task::Stop => return,
        }
    }
}

/// Makes this thread less urgent than others: it is woken by a device that has yet to say that memory is unplugged, where
/// processors are scarce on the very one that who waits for that needs. As a batch thread it takes none from anybody when it
/// wakes; where it competes for one it gets a third of what another gets.
fn give_way() -> io::Result<()> {
    const NICE: libc::c_int = 5;
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` is a valid structure that outlives the call; on Linux 0 is this thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) })?;
    // SAFETY: takes numbers only; on Linux 0 is this thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) })
}

fn discard(mapping: &HostMapping, offset: u64, bytes: u64) -> Discarded {
    let mut discarded = Discarded { freed: ByteSize::bytes(0), took: Duration::ZERO, error: None };
    let mut at = 0;
    while at < bytes {
        let step = STEP.min(bytes - at);
        let resident = mapping.resident(offset + at, step);
        let start = Instant::now();
        let result = mapping.discard(offset + at, step);
        discarded.took += start.elapsed();
        match (resident, result) {
            (Ok(resident), Ok(())) => discarded.freed = ByteSize::bytes(discarded.freed.get() + resident),
            (Err(error), _) | (_, Err(error)) => discarded.error = Some(error),
        }
        at += step;
    }
    limited!(debug, offset, bytes, freed = discarded.freed.get(), took = ?discarded.took, "discarded memory");
    discarded
}

#[cfg(test)]
#[path = "discard_test.rs"]
mod tests;
