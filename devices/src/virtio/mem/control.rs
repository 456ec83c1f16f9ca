//! The host's control of a memory device: it sets targets, notifies the driver and waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_memory::partition::{PartitionMemory, Report, StillInUse, Target, TargetError, WaitError};
use bellows_memory::{ByteSize, EffectError, limited};

use crate::virtio::driver::Driver;

/// The host's control of a memory device. Cheap to clone; usable whether or not a driver has bound.
///
/// Its methods wait: call them from control threads, never from vCPU threads or event loops.
#[derive(Clone)]
pub struct MemHandle {
    memory: Arc<PartitionMemory>,
    driver: Arc<Driver>,
}

impl MemHandle {
    pub(super) const fn new(memory: Arc<PartitionMemory>, driver: Arc<Driver>) -> Self {
        Self { memory, driver }
    }

    /// The partition.
    #[must_use]
    pub fn memory(&self) -> &Arc<PartitionMemory> {
        &self.memory
    }

    /// Has the guest plug memory up to `size`, which must be non-zero and at least the plugged size. First waits until earlier
    /// unplugged memory has been discarded: a plug during a discard is answered BUSY, and Linux then waits most of a minute
    /// before it tries again.
    ///
    /// # Errors
    /// The size is refused, or not plugged within `timeout`; then the old target is set again.
    pub fn plug(&self, size: ByteSize, timeout: Duration) -> Result<Plugged, PlugError> {
        let start = Instant::now();
        // A guest that keeps what was only prepared may still take more.
        self.memory.wait_prepared(timeout / 2);
        self.memory.wait_discarded(timeout.saturating_sub(start.elapsed()))?;
        let target = self.tell(self.memory.raise_target(size))?;
        match self.memory.wait_plugged(target, timeout.saturating_sub(start.elapsed())) {
            Ok(report) => Ok(Plugged { report, target }),
            Err(error) => {
                if let Err(error) = self.tell(self.memory.take_back(target)) {
                    limited!(warn, %error, "cannot take back a target that was not plugged");
                }
                Err(PlugError::Incomplete(error))
            }
        }
    }

    /// Has the guest plug memory up to `size`, or give back what is beyond it, in its own time. Does not wait.
    ///
    /// # Errors
    /// The size is refused, or between what should be plugged and what still is.
    pub fn set_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        let is_more = size > self.memory.report().target;
        self.tell(if is_more { self.memory.raise_target(size) } else { self.memory.lower_target(size) })
    }

    /// Has the guest plug memory up to `size` or, with 0, give all of it back, only so that it has a memory map for it. Whoever
    /// sets another target ends that. Does not wait.
    ///
    /// # Errors
    /// The size is refused, or the partition has had a target for another purpose.
    pub fn prepare(&self, size: ByteSize) -> Result<Target, TargetError> {
        self.tell(self.memory.prepare(size))
    }

    /// Ends a preparation that is under way, and waits until its memory is discarded.
    ///
    /// # Errors
    /// As for [`MemHandle::unplug`].
    pub fn end_preparation(&self, timeout: Duration) -> Result<(), UnplugError> {
        let start = Instant::now();
        if let Some(target) = self.memory.end_preparation()? {
            self.driver.config_changed();
            self.await_unplug(target, timeout)?;
            self.memory.wait_discarded(timeout.saturating_sub(start.elapsed()))?;
        }
        Ok(())
    }

    /// Has the guest give back the memory that [`MemHandle::plug`] added.
    ///
    /// # Errors
    /// Another target was set since, and stands; otherwise as for [`MemHandle::unplug`].
    pub fn undo(&self, plugged: &Plugged, timeout: Duration) -> Result<Report, UnplugError> {
        let target = self.tell(self.memory.take_back(plugged.target))?;
        self.await_unplug(target, timeout)
    }

    /// Has the guest give all memory back. Discards may go on after this returns: [`PartitionMemory::wait_discarded`].
    ///
    /// # Errors
    /// Memory is still plugged after `timeout`.
    pub fn unplug(&self, timeout: Duration) -> Result<Report, UnplugError> {
        self.shrink(ByteSize::bytes(0), timeout)
    }

    /// Has the guest give back the memory beyond `size`, which is at most the current target; the guest chooses the
    /// blocks. See [`MemHandle::unplug`].
    ///
    /// # Errors
    /// More than `size` is still plugged after `timeout`.
    pub fn shrink(&self, size: ByteSize, timeout: Duration) -> Result<Report, UnplugError> {
        let target = self.tell(self.memory.lower_target(size))?;
        self.await_unplug(target, timeout)
    }

    fn await_unplug(&self, target: Target, timeout: Duration) -> Result<Report, UnplugError> {
        self.memory.wait_unplugged(target, timeout).map_err(|error| match error {
            WaitError::Superseded(_) | WaitError::Ended(_) | WaitError::NotDiscarded(..) => {
                UnplugError::Incomplete(error)
            }
            WaitError::Timeout { .. } | WaitError::Failed(..) => match self.memory.trim_slots() {
                Ok(()) => UnplugError::Incomplete(error),
                Err(error) => UnplugError::Slots(error),
            },
        })
    }

    /// Gives the partition up, so that its device may be taken off the bus. A driver cannot refuse that, and Linux's
    /// driver cannot recover while memory is plugged, so the host refuses then.
    ///
    /// # Errors
    /// Memory is plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        self.memory.retire()?;
        // A target that was never plugged may still have been set.
        self.driver.config_changed();
        Ok(())
    }

    /// Notifies the guest if the target was set.
    fn tell(&self, target: Result<Target, TargetError>) -> Result<Target, TargetError> {
        target.inspect(|_| self.driver.config_changed())
    }
}

/// The result of a plug.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    /// The partition's figures after it.
    pub report: Report,
    target: Target,
}

/// Why memory was not plugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// It was not admitted; the guest was not notified.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The guest did not plug it, or earlier memory is still being discarded. The old target is set again, unless
    /// another one was set since.
    #[error(transparent)]
    Incomplete(#[from] WaitError),
}

/// Why memory was not unplugged.
#[derive(Debug, thiserror::Error)]
pub enum UnplugError {
    /// The partition is out of use.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The guest kept some memory. The target stands, and the slots follow the memory that it kept.
    #[error(transparent)]
    Incomplete(#[from] WaitError),
    /// The guest kept some memory, and the slots cannot follow.
    #[error("the guest kept memory, and its slots cannot follow")]
    Slots(#[source] Arc<EffectError>),
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
