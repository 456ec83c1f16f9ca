//! Waiting for what the guest and the discard thread do.

use std::sync::Arc;
use std::time::Duration;

use super::turn::Moment;
use super::{EffectError, Inner, PartitionMemory, Report, Target};
use crate::host::MapError;
use crate::layout::PartitionId;

impl PartitionMemory {
    /// Waits until all of `target` is plugged, and no more.
    ///
    /// # Errors
    /// It is not after `timeout`, another target is set, the VM ends, or the host could not do its part.
    pub fn wait_plugged(&self, target: Target, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("plugged", target, timeout, |report| report.plugged == report.target)
    }

    /// Waits until no more than `target` is plugged.
    ///
    /// # Errors
    /// There still is after `timeout`, another target is set, the VM ends, or the host could not do its part.
    pub fn wait_unplugged(&self, target: Target, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("unplugged", target, timeout, |report| report.plugged <= report.target)
    }

    /// Whether no other target has been set since `target`.
    #[must_use]
    pub fn stands(&self, target: Target) -> bool {
        self.turns.look(|inner| inner.generation == target.generation)
    }

    /// Waits until no preparation has the guest give memory back: a plug would meet that halfway. Where the guest does not, the
    /// end of `timeout` ends the wait.
    pub fn wait_prepared(&self, timeout: Duration) {
        let check = |inner: &Inner, moment: Moment| {
            let given_back = !inner.is_being_prepared() || inner.partition.target().get() != 0;
            (moment.ended || moment.free && given_back).then_some(())
        };
        self.turns.wait(timeout, check, |_| ());
    }

    /// Waits until everything that was unplugged has gone back to the host. What could not be discarded before is tried again.
    ///
    /// # Errors
    /// It has not after `timeout`, or the host refused: the memory stays charged, and cannot be plugged.
    pub fn wait_discarded(&self, timeout: Duration) -> Result<Report, WaitError> {
        self.discard_again();
        let id = self.window.id();
        let check = |inner: &Inner, moment: Moment| {
            let report = inner.report(self.window);
            if moment.free && report.discarding.get() == 0 {
                return Some(Ok(report));
            }
            inner.discard_fault.clone().map(|fault| Err(WaitError::NotDiscarded(id, fault)))
        };
        self.turns.wait(timeout, check, |inner| Err(self.late("discarded", timeout, inner)))
    }

    fn wait(
        &self,
        goal: &'static str,
        target: Target,
        timeout: Duration,
        reached: fn(&Report) -> bool,
    ) -> Result<Report, WaitError> {
        let id = self.window.id();
        let check = |inner: &Inner, moment: Moment| {
            // Not during a turn: what is true already may not have been answered yet.
            if moment.free {
                let report = inner.report(self.window);
                if target.generation != inner.generation {
                    return Some(Err(WaitError::Superseded(id)));
                }
                if reached(&report) {
                    return Some(Ok(report));
                }
            }
            if moment.ended {
                return Some(Err(WaitError::Ended(id)));
            }
            let fault = inner.fault.as_ref().filter(|fault| {
                // The guest was answered BUSY and tries again.
                let may_pass = matches!(***fault, EffectError::InFlight(_));
                moment.free && (moment.last || !may_pass)
            });
            fault.map(|fault| Err(WaitError::Failed(id, fault.clone())))
        };
        self.turns.wait(timeout, check, |inner| Err(self.late(goal, timeout, inner)))
    }

    fn late(&self, goal: &'static str, waited: Duration, inner: &Inner) -> WaitError {
        WaitError::Timeout { goal, waited, report: Box::new(inner.report(self.window)) }
    }
}

/// Why the wait for a partition ended too early.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Time is up.
    #[error(
        "partition {}: not {goal} after {waited:?}: {} plugged of a target of {}, {} being discarded",
        report.id, report.plugged, report.target, report.discarding
    )]
    Timeout {
        /// What was waited for.
        goal: &'static str,
        /// How long.
        waited: Duration,
        /// Where things stand.
        report: Box<Report>,
    },
    /// Another target stands.
    #[error("partition {0}: another target was set meanwhile")]
    Superseded(PartitionId),
    /// The guest does nothing any more.
    #[error("partition {0}: the VM has ended")]
    Ended(PartitionId),
    /// The host could not do what the guest asked for.
    #[error("partition {0}: the guest's request failed")]
    Failed(PartitionId, #[source] Arc<EffectError>),
    /// What the guest gave back still costs host memory.
    #[error("partition {0}: memory that the guest gave back cannot be discarded")]
    NotDiscarded(PartitionId, #[source] Arc<MapError>),
}
