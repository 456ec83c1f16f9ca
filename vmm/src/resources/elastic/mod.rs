//! Elastic base memory: it grows while the guest's instances wait for memory, and shrinks afterwards.
//!
//! [`Plan`] is the policy; [`worker`] looks at guest and host, and carries out what it says; [`ElasticBase`] is what the host sees of it.

mod plan;
mod report;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bellows_devices::event_loop::EventLoopHandle;
use bellows_devices::virtio::{Mem, MemHandle};
use bellows_memory::partition::TargetError;
use bellows_memory::sync::{Condvar, Mutex};
use bellows_memory::threads::{self, ThreadRole};
use bellows_memory::{ByteSize, PartitionMemory, PartitionSetup, Window};

use self::plan::Plan;
pub use self::report::{BaseCycle, ElasticBaseReport};
use self::worker::Worker;
use super::error::{PartitionError, of_target};
use crate::config::ElasticBaseConfig;
use crate::deadline::Deadline;
use crate::end::EndSignal;
use crate::guest::agent::AgentClient;
use crate::guest::session::Session;
use crate::kind::ErrorKind;
use crate::virtio_bus::VirtioBus;

/// The elastic part of a VM's base memory ([`Vm::elastic_base`](crate::Vm::elastic_base)). All methods may be called from any thread.
pub struct ElasticBase {
    handle: MemHandle,
    shared: Arc<Shared>,
    config: ElasticBaseConfig,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread has done, and who waits for it to do more. The lock is held for no more than a look or a change.
#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// What base memory has grown by, since boot, all growths together.
    grown: ByteSize,
    cycle: BaseCycle,
    /// Why the last look or step has failed.
    fault: Option<String>,
    ended: bool,
}

/// Why base memory was not asked to change.
#[derive(Debug, thiserror::Error)]
#[error("base memory cannot have {size} more than the guest has booted with")]
pub struct ElasticBaseError {
    /// What was asked for.
    pub size: ByteSize,
    /// The cause.
    #[source]
    pub source: TargetError,
}

impl ElasticBaseError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        of_target(&self.source)
    }
}

impl ElasticBase {
    /// Puts the device for the memory in `window` on the bus, before the guest boots.
    pub(crate) fn add(
        bus: &VirtioBus,
        window: Window,
        memory: PartitionSetup,
        event_loop: EventLoopHandle,
        config: ElasticBaseConfig,
        end: &EndSignal,
    ) -> Result<Self, PartitionError> {
        let device = Mem::new(PartitionMemory::new(window, memory)?);
        let handle = device.handle();
        bus.add("elastic base memory", device, event_loop)?;
        Ok(Self::new(handle, config, end))
    }

    fn new(handle: MemHandle, config: ElasticBaseConfig, end: &EndSignal) -> Self {
        let shared = Arc::<Shared>::default();
        end.on_end({
            let (memory, shared) = (handle.memory().clone(), Arc::downgrade(&shared));
            move || {
                memory.end();
                if let Some(shared) = shared.upgrade() {
                    shared.change(|progress| progress.ended = true);
                }
            }
        });
        Self { handle, shared, config, thread: Mutex::default() }
    }

    /// What the guest may have to make a memory map for: the window in whole memory blocks.
    pub(crate) fn span(&self) -> ByteSize {
        ByteSize::bytes(self.handle.memory().window().range().bytes())
    }

    /// Begins to follow the guest, unless it has begun, or is not to.
    pub(crate) fn begin(&self, session: &Session) {
        if !self.config.by_request
            && let Some(agent) = session.met()
        {
            self.follow(agent, session.end());
        }
    }

    fn follow(&self, agent: &Arc<AgentClient>, end: &Arc<EndSignal>) {
        let mut thread = self.thread.lock();
        if thread.is_some() {
            return;
        }
        let plan = Plan::new(&self.config, self.handle.memory().window().size());
        let limit = self.config.host_pressure_percent;
        let worker = Worker::new(self.handle.clone(), self.shared.clone(), plan, agent.clone(), end.clone(), limit);
        match threads::spawn(ThreadRole::Control, "elastic", None, move || worker.run()) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => {
                self.shared.change(|progress| progress.fault = Some(format!("the host starts no thread: {error}")));
            }
        }
    }

    /// Where base memory stands, and what has come and gone.
    #[must_use]
    pub fn report(&self) -> ElasticBaseReport {
        self.report_with(&self.shared.progress.lock())
    }

    /// Has the guest take up to `size` more than it has booted with, or give back what is beyond that, in its own time: the report
    /// shows when it has. The limits of instances stay. Where base memory follows the guest, another size may be wanted soon.
    ///
    /// # Errors
    /// It is no whole number of blocks of 2 MiB, more than may come, more than the VM's limit or the host has, or between what is
    /// wanted so far and what the guest still has.
    pub fn request(&self, size: ByteSize) -> Result<(), ElasticBaseError> {
        self.handle.set_target(size).map_err(|source| ElasticBaseError { size, source })?;
        Ok(())
    }

    /// Waits until the report is as `wanted`, which is asked after each step. The error is the report when `timeout` was over, or the
    /// VM had ended.
    ///
    /// # Errors
    /// It was not.
    pub fn wait(
        &self,
        timeout: Duration,
        wanted: impl Fn(&ElasticBaseReport) -> bool,
    ) -> Result<ElasticBaseReport, ElasticBaseReport> {
        let deadline = Deadline::after(timeout);
        let mut progress = self.shared.progress.lock();
        loop {
            let report = self.report_with(&progress);
            if wanted(&report) {
                return Ok(report);
            }
            let left = deadline.left();
            if left.is_zero() || progress.ended {
                return Err(report);
            }
            progress = self.shared.changed.wait_timeout(progress, left);
        }
    }

    fn report_with(&self, progress: &Progress) -> ElasticBaseReport {
        let memory = self.handle.memory().report();
        ElasticBaseReport {
            most: memory.window,
            target: memory.target,
            plugged: memory.plugged,
            grown: progress.grown,
            returned: memory.unplugged,
            discarded: memory.discarded,
            cycle: progress.cycle,
            fault: progress.fault.clone(),
        }
    }
}

impl Drop for ElasticBase {
    /// The VM has ended, so its thread has nothing left to wait for.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get_mut().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that resizes base memory panicked");
        }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.changed.notify_all();
    }
}

impl Progress {
    /// Base memory has grown from `before` to `now`.
    fn grew(&mut self, before: ByteSize, now: ByteSize) {
        let by = ByteSize::bytes(now.get().saturating_sub(before.get()));
        self.grown = self.grown.plus(by);
        // After a shrink it is another cycle.
        self.cycle = BaseCycle { peak: now, ..BaseCycle::default() };
        self.fault = None;
    }

    /// What has been taken back leaves `plugged`.
    fn shrank(&mut self, plugged: ByteSize) {
        self.cycle.peak = self.cycle.peak.max(plugged);
        self.cycle.kept = plugged;
        self.cycle.returned = ByteSize::bytes(self.cycle.peak.get() - plugged.get());
        self.fault = None;
    }
}

#[cfg(test)]
#[path = "elastic_test.rs"]
mod tests;
