//! The thread that gives memory back to the host.
//!
//! Freeing gigabytes takes milliseconds to tenths of a second, which neither a vCPU nor a device's thread can spare.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{HostMapping, MapError, STEP, give_way};
use crate::threads::{self, ThreadRole};
use crate::{ByteSize, limited};

/// A worker thread that discards ranges in the order they were submitted. Dropping it finishes what is queued and joins.
///
/// It is less urgent than other threads. It hands work that others may wait for to a second thread, which is as urgent as
/// the thread that started both, and waits for it: so the order stays.
pub struct Discarder {
    queue: DiscardQueue,
    threads: Vec<JoinHandle<()>>,
}

impl Discarder {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread could not be made.
    pub fn spawn() -> io::Result<Self> {
        let (queue, receiver) = channel();
        let (sender, tasks) = mpsc::channel::<Urgent>();
        let stack = Some(256 << 10);
        // Ends when the other has.
        let work = move || tasks.into_iter().for_each(Urgent::run);
        let urgent = threads::spawn(ThreadRole::Discard, "trim-slots", stack, work)?;
        let discard = threads::spawn(ThreadRole::Discard, "discard", stack, move || run(&receiver, &sender))?;
        Ok(Self { queue, threads: vec![discard, urgent] })
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
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                limited!(error, "the discard thread panicked");
            }
        }
    }
}

/// Submits work to a [`Discarder`]. Cheap to clone; may outlive the thread, which then takes nothing more.
#[derive(Clone)]
pub struct DiscardQueue {
    sender: Sender<Task>,
}

impl DiscardQueue {
    /// Discards `bytes` at `offset` of `mapping` after all that was submitted before, then calls `done` on the thread.
    ///
    /// # Errors
    /// The thread has ended; nothing was discarded, and `done` is not called.
    pub fn discard(
        &self,
        mapping: Arc<HostMapping>,
        offset: u64,
        bytes: u64,
        done: impl FnOnce(Discarded) + Send + 'static,
    ) -> Result<(), WorkerEnded> {
        let task = move || {
            let discarded = discard(&mapping, offset, bytes);
            // Before the callback: a thread that waits for it may be about to unmap.
            drop(mapping);
            done(discarded);
        };
        self.sender.send(Task::Discard(Box::new(task))).map_err(|_| WorkerEnded)
    }

    /// Runs `task` after all that was submitted before, and before what is submitted later, on a thread that is as urgent as
    /// others: vCPUs may wait for it.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) -> Result<(), WorkerEnded> {
        self.sender.send(Task::Urgent(Box::new(task))).map_err(|_| WorkerEnded)
    }
}

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

/// The worker has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the discard thread has ended")]
pub struct WorkerEnded;

/// What is submitted.
pub(crate) enum Task {
    Discard(Box<dyn FnOnce() + Send>),
    Urgent(Box<dyn FnOnce() + Send>),
    Stop,
}

/// A way to submit work, and where it arrives.
pub(crate) fn channel() -> (DiscardQueue, Receiver<Task>) {
    let (sender, receiver) = mpsc::channel();
    (DiscardQueue { sender }, receiver)
}

/// A task for the urgent thread, and how the other hears that it is done.
struct Urgent {
    task: Box<dyn FnOnce() + Send>,
    /// Dropped when it is.
    done: Sender<()>,
}

impl Urgent {
    fn run(self) {
        (self.task)();
        drop(self.done);
    }
}

fn run(tasks: &Receiver<Task>, urgent: &Sender<Urgent>) {
    // A device wakes this thread before it reports the unplug. On a busy host it would take the processor that a thread which
    // waits for the unplug needs.
    if let Err(error) = give_way() {
        limited!(debug, %error, "discards take processors from what waits for an unplug");
    }
    for task in tasks {
        match task {
            Task::Discard(task) => task(),
            Task::Urgent(task) => {
                let (done, finished) = mpsc::channel();
                // It runs for as long as this one does.
                if urgent.send(Urgent { task, done }).is_ok() {
                    let _ = finished.recv();
                }
            }
            Task::Stop => return,
        }
    }
}

fn discard(mapping: &HostMapping, offset: u64, bytes: u64) -> Discarded {
    let mut discarded = Discarded { freed: ByteSize::bytes(0), took: Duration::ZERO, error: None };
    let mut at = 0;
    while at < bytes {
        let step = (STEP as u64).min(bytes - at);
        let resident = mapping.resident(offset + at, step);
        let start = Instant::now();
        let result = mapping.discard(offset + at, step);
        discarded.took += start.elapsed();
        match (resident, result) {
            (Ok(resident), Ok(())) => discarded.freed = discarded.freed.plus(ByteSize::bytes(resident)),
            // It went back all the same.
            (Err(error), Ok(())) => limited!(debug, %error, "memory that is discarded cannot be counted"),
            (_, Err(error)) => discarded.error = Some(error),
        }
        at += step;
    }
    limited!(debug, offset, bytes, freed = discarded.freed.get(), took = ?discarded.took, "discarded memory");
    discarded
}

#[cfg(test)]
#[path = "discard_test.rs"]
mod tests;
