//! Partitions are prepared in the background: the guest adds their memory and parks it, so that no plug has to wait for that.
//!
//! [`Plan`] says what is next and who goes first; [`Preparer`] is its shell: the thread that carries steps out ([`worker`]),
//! calls that it has to let through, and those that wait for its end.

mod plan;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bellows_devices::virtio::{MemHandle, PlugError, Plugged};
use bellows_memory::partition::TargetError;
use bellows_memory::sync::{Condvar, Mutex};
use bellows_memory::threads::{self, ThreadRole};
use bellows_memory::{AdmissionError, ByteSize, PartitionId, Window};

use self::plan::Plan;
pub(super) use self::worker::Subject;
use self::worker::Worker;
use crate::deadline::Deadline;
use crate::end::EndSignal;
use crate::guest::agent::AgentClient;
use crate::model::{NotPrepared, PreparationReport};

/// Prepares the partitions of a VM.
pub(super) struct Preparer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A call for a partition, until this is dropped: no step begins meanwhile.
pub(super) struct Call<'a> {
    shared: &'a Shared,
    id: PartitionId,
    /// A step was in progress when it began.
    beside_step: bool,
}

/// The plan, and who waits for it to change. The lock is held for no more than a look or a change.
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

impl Preparer {
    /// Is going to prepare up to `most` of each of `windows`.
    pub(super) fn new(windows: &[Window], most: ByteSize, end: &EndSignal) -> Self {
        let shared = Arc::new(Shared { plan: Mutex::new(Plan::new(windows, most)), changed: Condvar::new() });
        let weak = Arc::downgrade(&shared);
        end.on_end(move || {
            if let Some(shared) = weak.upgrade() {
                shared.change(Plan::end);
            }
        });
        Self { shared, thread: Mutex::default() }
    }

    /// Begins, unless it has begun, or there is nothing to do. `find` gives a partition's device.
    pub(super) fn begin(
        &self,
        agent: &Arc<AgentClient>,
        end: &Arc<EndSignal>,
        find: impl Fn(PartitionId) -> Option<Subject> + Send + 'static,
    ) {
        let mut thread = self.thread.lock();
        if thread.is_some() || self.shared.plan.lock().is_done() {
            return;
        }
        let worker = Worker::new(self.shared.clone(), agent.clone(), end.clone(), Box::new(find));
        match threads::spawn(ThreadRole::Control, "prepare", None, move || worker.run()) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => self.give_up(&NotPrepared::Failed(format!("the host starts no thread: {error}"))),
        }
    }

    /// Prepares nothing any more, for this reason.
    pub(super) fn give_up(&self, reason: &NotPrepared) {
        tracing::debug!(%reason, "no partition is prepared");
        self.shared.change(|plan| plan.give_up(reason));
    }

    /// Lets a call for partition `id` through. It waits only while a target of that partition is being set.
    pub(super) fn call(&self, id: PartitionId) -> Call<'_> {
        let begun = self.shared.until(|plan| plan.begin_call(id));
        Call { shared: &self.shared, id, beside_step: begun.beside_step }
    }

    /// Waits until nothing is left to prepare, or the VM has ended. The error is how far it is when time is up.
    pub(super) fn wait(&self, timeout: Duration) -> Result<PreparationReport, PreparationReport> {
        let done = |plan: &mut Plan| (plan.is_done() || plan.has_ended()).then(|| plan.report());
        self.shared.until_deadline(Deadline::after(timeout), done).ok_or_else(|| self.shared.plan.lock().report())
    }
}

impl Call<'_> {
    /// Plugs a partition up to `size`. The VM's limit counts what a step has plugged, too: a plug that is refused beside one is
    /// tried again after it.
    pub(super) fn plug(&self, handle: &MemHandle, size: ByteSize, deadline: Deadline) -> Result<Plugged, PlugError> {
        match handle.plug(size, deadline.left()) {
            Err(PlugError::Refused(TargetError::Admission(AdmissionError::Limit { .. })))
                if self.outlasts_step(deadline) =>
            {
                handle.plug(size, deadline.left())
            }
            result => result,
        }
    }

    /// Waits until no step is in progress, if one was when the call began; what was admitted for it is free then. Returns whether
    /// it was so in time.
    fn outlasts_step(&self, deadline: Deadline) -> bool {
        let idle = |plan: &mut Plan| (!plan.is_busy()).then_some(());
        self.beside_step && self.shared.until_deadline(deadline, idle).is_some()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.change(|plan| plan.end_call(self.id));
    }
}

impl Drop for Preparer {
    /// The VM has ended, so its thread has nothing left to wait for.
    fn drop(&mut self) {
        self.shared.change(Plan::end);
        if let Some(thread) = self.thread.get_mut().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares partitions panicked");
        }
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        let result = change(&mut self.plan.lock());
        self.changed.notify_all();
        result
    }

    /// Calls `step` now and after each change, until it says something.
    fn until<T>(&self, mut step: impl FnMut(&mut Plan) -> Option<T>) -> T {
        let mut plan = self.plan.lock();
        loop {
            if let Some(result) = step(&mut plan) {
                return result;
            }
            plan = self.changed.wait(plan);
        }
    }

    /// The same until `deadline`; `None` if it has said nothing by then.
    fn until_deadline<T>(&self, deadline: Deadline, mut step: impl FnMut(&mut Plan) -> Option<T>) -> Option<T> {
        let mut plan = self.plan.lock();
        loop {
            if let Some(result) = step(&mut plan) {
                return Some(result);
            }
            let left = Some(deadline.left()).filter(|left| !left.is_zero())?;
            plan = self.changed.wait_timeout(plan, left);
        }
    }
}

#[cfg(test)]
#[path = "prepare_test.rs"]
mod tests;
