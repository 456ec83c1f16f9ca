//! In which order partitions are prepared, and to whom that gives way: plain data.
//!
//! A partition is prepared in steps. Each plugs one memory block more than the last, which the guest adds, and then gives all
//! back, which the guest parks. So between two steps all is as before, but for the memory map, and nothing is admitted.
//!
//! ```text
//!          no call in progress          the guest has added it,              the guest has parked it
//!  idle ------------------------> adding --------------------------> parking --------------------------> idle
//!                                   |    no call for this partition
//!                                   |    in progress
//!                                   '----------------------------------> idle, and this partition is over
//!                                        a call has set another target
//! ```
//!
//! A call does not wait, so it meets one step at most; only while the step sets a target of the same partition, a call for it
//! begins after that. A call that sets a target takes the partition over as it stands at that moment.

use std::collections::BTreeMap;

use bellows_memory::{ByteSize, PartitionId, Window};

use crate::memory_map;
use crate::model::{NotPrepared, PreparationReport, PreparedPartition};

/// What is to be prepared, what has been, and who has to be let through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    parts: Vec<Part>,
    /// How many calls for each partition are in progress.
    calls: BTreeMap<PartitionId, u32>,
    step: Option<Step>,
    /// A target of the step's partition is about to be set.
    setting: bool,
    ended: bool,
}

/// One partition.
#[derive(Clone, Debug)]
struct Part {
    id: PartitionId,
    /// How much of it is to be prepared.
    wanted: ByteSize,
    granule: ByteSize,
    prepared: ByteSize,
    /// Why it is not prepared any further.
    over: Option<NotPrepared>,
}

/// To plug a partition with a size, and to give all of it back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    pub(crate) id: PartitionId,
    pub(crate) size: ByteSize,
    /// The partition has had no step before.
    pub(crate) first: bool,
}

/// What is next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// This step. It is in progress, and is about to set its target.
    Step(Step),
    /// A call is in progress.
    GiveWay,
    /// Nothing, now or later.
    Done,
}

/// A call that may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Begun {
    /// A step is in progress, with memory admitted for it. Until the call ends no other begins.
    pub(crate) beside_step: bool,
}

impl Plan {
    /// Prepares up to `most` of each of `windows`, one after the other.
    pub(crate) fn new(windows: &[Window], most: ByteSize) -> Self {
        let part = |window: &Window| Part {
            id: window.id(),
            wanted: most.min(window.size()),
            granule: ByteSize::bytes(window.granule()),
            prepared: ByteSize::bytes(0),
            over: None,
        };
        let windows = if most.get() == 0 { &[] } else { windows };
        Self { parts: windows.iter().map(part).collect(), ..Self::default() }
    }

    /// The next step, which begins with this.
    pub(crate) fn next(&mut self) -> Next {
        let Some(part) = self.parts.iter().find(|part| part.is_left()).filter(|_| !self.ended) else {
            return Next::Done;
        };
        if self.step.is_some() || !self.calls.is_empty() {
            return Next::GiveWay;
        }
        let step = part.next();
        (self.step, self.setting) = (Some(step), true);
        Next::Step(step)
    }

    /// Whether the step in progress may set the target 0; then it is about to.
    pub(crate) fn park(&mut self) -> bool {
        let called = self.step.is_some_and(|step| self.calls.contains_key(&step.id));
        self.setting = !called || self.ended;
        self.setting
    }

    /// The step in progress has set its target.
    pub(crate) fn was_set(&mut self) {
        self.setting = false;
    }

    /// The step in progress has ended: all that it added is parked; or that partition is over.
    pub(crate) fn end_step(&mut self, result: Result<(), NotPrepared>) {
        self.setting = false;
        let Some(step) = self.step.take() else { return };
        let Some(part) = self.parts.iter_mut().find(|part| part.id == step.id) else { return };
        match result {
            Ok(()) => part.prepared = step.size,
            Err(reason) => part.over = Some(reason),
        }
    }

    /// A call for `id` comes. `None`: a target of that partition is being set, so once more after that.
    pub(crate) fn begin_call(&mut self, id: PartitionId) -> Option<Begun> {
        if self.setting && self.step.is_some_and(|step| step.id == id) {
            return None;
        }
        *self.calls.entry(id).or_default() += 1;
        Some(Begun { beside_step: self.step.is_some() })
    }

    /// A call for `id` that has begun is over.
    pub(crate) fn end_call(&mut self, id: PartitionId) {
        if let Some(calls) = self.calls.get_mut(&id) {
            *calls -= 1;
            if *calls == 0 {
                self.calls.remove(&id);
            }
        }
    }

    /// Prepares nothing any more, for this reason.
    pub(crate) fn give_up(&mut self, reason: &NotPrepared) {
        for part in self.parts.iter_mut().filter(|part| part.is_left()) {
            part.over = Some(reason.clone());
        }
    }

    /// The VM has ended.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether the VM has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a step is in progress.
    pub(crate) fn is_busy(&self) -> bool {
        self.step.is_some()
    }

    /// Whether each partition is prepared, or is never going to be.
    pub(crate) fn is_done(&self) -> bool {
        self.step.is_none() && !self.parts.iter().any(Part::is_left)
    }

    /// How far it is.
    pub(crate) fn report(&self) -> PreparationReport {
        let partitions: Vec<_> = self.parts.iter().map(Part::report).collect();
        let memory_map = partitions.iter().fold(ByteSize::bytes(0), |sum, part| sum.plus(part.memory_map));
        PreparationReport { partitions, memory_map }
    }
}

impl Part {
    fn is_left(&self) -> bool {
        self.over.is_none() && self.prepared < self.wanted
    }

    fn next(&self) -> Step {
        let size = self.prepared.plus(self.granule).min(self.wanted);
        Step { id: self.id, size, first: self.prepared.get() == 0 }
    }

    fn report(&self) -> PreparedPartition {
        PreparedPartition {
            id: self.id,
            wanted: self.wanted,
            prepared: self.prepared,
            memory_map: memory_map::of(memory_map::added_for(self.prepared, self.granule.get())),
            reason: self.over.clone(),
        }
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
