//! Preparing a partition: it is plugged and given back before anybody uses it, so that the guest has made its memory map by the
//! time that somebody does.
//!
//! Nobody else sees such a target: until another one is set, the partition is as one that never had any. So a caller who plugs
//! takes the partition over at once, whatever is plugged for preparing at that moment and whatever size it is to have, and what
//! stood before, for a plug that is taken back, is nothing.

use super::{Inner, PartitionMemory, Target, TargetError};
use crate::ByteSize;

impl PartitionMemory {
    /// Sets a target that prepares: to add memory to the guest, then 0 for it to park what it has. The caller tells the guest.
    ///
    /// # Errors
    /// As for [`PartitionMemory::set_target`]; or a target of another kind was set since boot, and stands.
    pub fn prepare(&self, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.turns.take().with(|inner| {
            if !inner.is_unused() {
                return Err(TargetError::Superseded(id));
            }
            let target = inner.set_target(id, size)?;
            inner.prepared = inner.generation;
            Ok(target)
        })
    }

    /// Ends a preparation that is under way: the target that it has set becomes 0, and it can set no other. `None` if none is
    /// under way.
    ///
    /// # Errors
    /// The partition is out of use.
    pub fn end_preparation(&self) -> Result<Option<Target>, TargetError> {
        let id = self.window.id();
        self.turns.take().with(|inner| match inner.is_being_prepared() {
            true => inner.set_target(id, ByteSize::bytes(0)).map(Some),
            false => Ok(None),
        })
    }
}

impl Inner {
    /// Whether all targets so far, if any, were for preparing.
    fn is_unused(&self) -> bool {
        self.prepared == self.generation
    }

    /// Whether what is plugged, or is to be, is for preparing.
    pub(super) fn is_being_prepared(&self) -> bool {
        self.is_unused() && (self.partition.target().get() != 0 || self.partition.plugged().get() != 0)
    }

    /// The target as far as everybody but a preparation is concerned.
    pub(super) fn told_target(&self) -> ByteSize {
        if self.is_unused() { ByteSize::bytes(0) } else { self.partition.target() }
    }

    /// What is plugged as far as everybody but a preparation is concerned.
    pub(super) fn told_plugged(&self) -> ByteSize {
        if self.is_unused() { ByteSize::bytes(0) } else { self.partition.plugged() }
    }
}

#[cfg(test)]
#[path = "prepare_test.rs"]
mod tests;
