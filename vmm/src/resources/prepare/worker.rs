//! The thread that carries steps out.

use std::sync::Arc;
use std::time::Duration;

use bellows_devices::virtio::MemHandle;
use bellows_memory::partition::{Target, TargetError, WaitError};
use bellows_memory::{ByteSize, PartitionId};

use super::Shared;
use super::plan::{Next, Plan, Step};
use crate::causes::chain;
use crate::config::PartitionMode;
use crate::end::EndSignal;
use crate::guest::agent::AgentClient;
use crate::guest::agent::AgentError;
use crate::memory_map::Added;
use crate::model::{GuestDriver, GuestState, NotPrepared};

/// How long the guest may take for each part of a step, pauses of the VM excepted: a partition for which it takes longer is
/// not prepared any further.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the guest may take to check memory that is there. With another size, of a call that has taken the partition over, the
/// check takes all of it.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// A partition's device, and the account of its memory map.
pub(in crate::resources) struct Subject {
    pub(in crate::resources) handle: MemHandle,
    pub(in crate::resources) added: Added,
}

/// Carries steps out until none is left, or the VM ends.
pub(super) struct Worker {
    shared: Arc<Shared>,
    agent: Arc<AgentClient>,
    end: Arc<EndSignal>,
    find: Box<dyn Fn(PartitionId) -> Option<Subject> + Send>,
}

/// Why a part of a step has not succeeded.
enum Miss {
    /// It has taken too long: it may yet succeed if the VM was paused meanwhile.
    Late(String),
    /// For good.
    Never(NotPrepared),
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        agent: Arc<AgentClient>,
        end: Arc<EndSignal>,
        find: Box<dyn Fn(PartitionId) -> Option<Subject> + Send>,
    ) -> Self {
        Self { shared, agent, end, find }
    }

    pub(super) fn run(self) {
        while let Some(step) = self.next() {
            let result = self.carry_out(step);
            match &result {
                Ok(()) => tracing::debug!(partition = %step.id, prepared = %step.size, "prepared"),
                Err(reason) => {
                    tracing::debug!(partition = %step.id, not = %step.size, %reason, "not prepared any further");
                }
            }
            self.shared.change(|plan| plan.end_step(result));
        }
    }

    /// Waits for the next step; `None` if none is left.
    fn next(&self) -> Option<Step> {
        // A pause that begins later is waited for by the parts of the step.
        self.end.await_running();
        self.shared.until(|plan| match plan.next() {
            Next::Step(step) => Some(Some(step)),
            Next::Done => Some(None),
            Next::GiveWay => None,
        })
    }

    fn carry_out(&self, step: Step) -> Result<(), NotPrepared> {
        let Some(subject) = (self.find)(step.id) else { return Err(NotPrepared::NoDevice) };
        let target = self.set(&subject, step.size)?;
        let added = self.add(&subject, step, target);
        if added == Err(NotPrepared::Used) {
            return added;
        }
        // What the guest has added by then it is to park.
        match self.park(&subject, step) {
            Err(NotPrepared::Used) => Err(NotPrepared::Used),
            parked => added.and(parked),
        }
    }

    /// Has the guest add memory up to the step's size.
    fn add(&self, subject: &Subject, step: Step, target: Target) -> Result<(), NotPrepared> {
        let memory = subject.handle.memory();
        self.patiently(|limit| Ok(memory.wait_plugged(target, limit)?))?;
        subject.added.plugged(memory.window(), step.size);
        let driver = self.driver(step, &subject.handle, target, GuestState::Online, GuestState::Plugging)?;
        if driver.mode == PartitionMode::Stock {
            return Err(NotPrepared::Stock);
        }
        if step.first {
            // As for a plug: it is on the right node, and movable.
            let address = memory.window().range().start().0;
            let node = step.id.get().into();
            self.patiently(|_| Ok(self.agent.await_partition(node, step.size.get(), address, CHECK_LIMIT)?))?;
        }
        Ok(())
    }

    /// Has the guest park all of it.
    fn park(&self, subject: &Subject, step: Step) -> Result<(), NotPrepared> {
        self.shared.until(|plan| plan.park().then_some(()));
        let target = self.set(subject, ByteSize::bytes(0))?;
        let memory = subject.handle.memory();
        self.patiently(|limit| Ok(memory.wait_unplugged(target, limit)?))?;
        self.driver(step, &subject.handle, target, GuestState::Parked, GuestState::Draining)?;
        self.patiently(|limit| Ok(memory.wait_discarded(limit)?)).map(drop)
    }

    /// Sets a target that the plan says may be set.
    fn set(&self, subject: &Subject, size: ByteSize) -> Result<Target, NotPrepared> {
        let target = subject.handle.prepare(size);
        self.shared.change(Plan::was_set);
        target.map_err(NotPrepared::from)
    }

    /// The driver, once it is in `state` for `target`; `before` is on the way to it.
    fn driver(
        &self,
        step: Step,
        handle: &MemHandle,
        target: Target,
        state: GuestState,
        before: GuestState,
    ) -> Result<GuestDriver, NotPrepared> {
        self.patiently(|limit| {
            let (driver, _) = self.agent.await_driver(step.id.get().into(), true, limit)?;
            let driver = driver.ok_or(Miss::Never(NotPrepared::Stock))?;
            if driver.state == state {
                return Ok(driver);
            }
            if !handle.memory().stands(target) {
                return Err(Miss::Never(NotPrepared::Used));
            }
            let text = format!("the guest's driver is {:?}: expected {state:?}", driver.state);
            Err(if driver.state == before { Miss::Late(text) } else { Miss::Never(NotPrepared::Failed(text)) })
        })
    }

    /// Has `part` wait for the guest, again if the VM was paused meanwhile.
    fn patiently<T>(&self, mut part: impl FnMut(Duration) -> Result<T, Miss>) -> Result<T, NotPrepared> {
        loop {
            let pauses = self.end.pauses();
            self.end.await_running();
            match part(LIMIT) {
                Ok(done) => return Ok(done),
                Err(Miss::Never(reason)) => return Err(reason),
                Err(Miss::Late(_)) if self.end.ended().is_some() => return Err(NotPrepared::Ended),
                Err(Miss::Late(text)) if self.end.pauses() == pauses => return Err(NotPrepared::Failed(text)),
                Err(Miss::Late(_)) => {}
            }
        }
    }
}

impl From<TargetError> for NotPrepared {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Superseded(_) => Self::Used,
            TargetError::Retired(_) => Self::NoDevice,
            TargetError::Admission(error) => Self::NotAdmitted(chain(&error)),
            error => Self::Failed(chain(&error)),
        }
    }
}

impl From<WaitError> for Miss {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Timeout { .. } => Self::Late(error.to_string()),
            WaitError::Superseded(_) => Self::Never(NotPrepared::Used),
            WaitError::Ended(_) => Self::Never(NotPrepared::Ended),
            WaitError::Failed(..) | WaitError::NotDiscarded(..) => Self::Never(NotPrepared::Failed(chain(&error))),
        }
    }
}

impl From<AgentError> for Miss {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Paused { .. } | AgentError::Timeout { .. } => Self::Late(error.to_string()),
            error => Self::Never(NotPrepared::Failed(chain(&error))),
        }
    }
}
