//! The host's control of a memory device: plug and unplug, told to the driver and waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_memory::partition::{PartitionMemory, Report, StillInUse, Target, TargetError, WaitError};
use bellows_memory::sync::Mutex;
use bellows_memory::{ByteSize, EffectError, limited};

use crate::interrupt::Interrupt;

/// The host's control of a memory device. Cheap to clone; usable whether or not a driver has bound.
///
/// Its methods wait and are for control threads: neither for vCPU threads nor for an event loop's.
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

    /// Has the guest plug memory until it has `size`, which is more than nothing and no less than it has. Waits first until what
    /// was unplugged before has been discarded: a plug that meets a discard is answered BUSY, and Linux tries again only after
    /// the better part of a minute.
    ///
    /// # Errors
    /// The size is refused, or not plugged after `timeout`; the target before it is set again.
    pub fn plug(&self, size: ByteSize, timeout: Duration) -> Result<Plugged, PlugError> {
        let start = Instant::now();
        self.memory.wait_discarded(timeout)?;
        let target = self.tell(self.memory.raise_target(size))?;
        match self.memory.wait_plugged(target, timeout.saturating_sub(start.elapsed())) {
            Ok(report) => Ok(Plugged { report, target }),
            Err(error) => {
                if let Err(error) = self.tell(self.memory.take_back(target)) {
                    limited!(warn, %error, "a size that was not plugged is not taken back");
                }
                Err(PlugError::Incomplete(error))
            }
        }
    }

    /// Has the guest give back what [`MemHandle::plug`] added.
    ///
    /// # Errors
    /// Another target was set since, which stands; otherwise as for [`MemHandle::unplug`].
    pub fn undo(&self, plugged: &Plugged, timeout: Duration) -> Result<Report, UnplugError> {
        let target = self.tell(self.memory.take_back(plugged.target))?;
        self.await_unplug(target, timeout)
    }

    /// Has the guest give everything back. Discards go on when this returns: [`PartitionMemory::wait_discarded`].
    ///
    /// # Errors
    /// Something is still plugged after `timeout`.
    pub fn unplug(&self, timeout: Duration) -> Result<Report, UnplugError> {
        self.shrink(ByteSize::bytes(0), timeout)
    }

    /// Has the guest give back what is beyond `size`, no more than the target now; which blocks is its choice. See
    /// [`MemHandle::unplug`].
    ///
    /// # Errors
    /// More is still plugged after `timeout`.
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

    /// Gives the partition up, so that its device may be taken off the bus. A driver can't refuse that, and Linux's has no
    /// way back when memory is plugged: so the host refuses.
    ///
    /// # Errors
    /// Memory is plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        self.memory.retire()?;
        // A target that was never plugged may have stood until now.
        self.driver.config_changed();
        Ok(())
    }

    /// Tells the guest of the target, if it was set.
    fn tell(&self, target: Result<Target, TargetError>) -> Result<Target, TargetError> {
        target.inspect(|_| self.driver.config_changed())
    }
}

/// Memory that was plugged.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    /// The partition's figures then.
    pub report: Report,
    target: Target,
}

/// Why memory was not plugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// It was not admitted; the guest never heard of it.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The guest did not plug it, or what was there before is still being discarded. The old target is set again, unless
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
    /// The guest kept some. It is still asked for the rest, and slots follow what it kept.
    #[error(transparent)]
    Incomplete(#[from] WaitError),
    /// The guest kept some, and slots can't follow.
    #[error("the guest kept memory, and its slots could not be made to fit")]
    Slots(#[source] Arc<EffectError>),
}

/// The way to the driver, while there is one.
#[derive(Default)]
pub(super) struct Driver {
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Driver {
    pub(super) fn set(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.interrupt.lock() = interrupt;
    }

    fn config_changed(&self) {
        let interrupt = self.interrupt.lock().clone();
        // A driver that has yet to bind reads the configuration when it does.
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }
}
