//! How the host says what it wants plugged.

use std::time::Instant;

use super::{Inner, InvalidTarget, PartitionMemory, Phases, Service};
use crate::ByteSize;
use crate::admission::AdmissionError;
use crate::blocks::BLOCK;
use crate::layout::PartitionId;

impl PartitionMemory {
    /// Changes what the host wants plugged, once it has been admitted. The caller tells the guest.
    ///
    /// # Errors
    /// The size is impossible or cannot be backed, or the partition is out of use; nothing changed.
    pub fn set_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        self.set_if(size, |_| Ok(()))
    }

    /// [`PartitionMemory::set_target`] for growth to `size`: at least one block, what is plugged and the target now. What is
    /// plugged for preparing does not count, and ends with it.
    ///
    /// # Errors
    /// As for that, or the size is too small.
    pub fn raise_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.set_if(size, |inner| {
            let floor = inner.told_plugged().max(inner.told_target()).max(BLOCK);
            if size < floor { Err(TargetError::NoGrowth { id, size, floor }) } else { Ok(()) }
        })
    }

    /// [`PartitionMemory::set_target`] for a size of at most the target now.
    ///
    /// # Errors
    /// As for that, or the size is too large.
    pub fn lower_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.set_if(size, |inner| {
            let target = inner.told_target();
            if size > target { Err(TargetError::NoShrinking { id, size, target }) } else { Ok(()) }
        })
    }

    /// Sets the target that stood before `target`.
    ///
    /// # Errors
    /// As for [`PartitionMemory::set_target`], or another target was set since, which stands.
    pub fn take_back(&self, target: Target) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.set_if(target.before, |inner| {
            if inner.generation == target.generation { Ok(()) } else { Err(TargetError::Superseded(id)) }
        })
    }

    /// How many targets were set so far: changes whenever the host changes the device's configuration.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.turns.look(|inner| inner.generation)
    }

    fn set_if(
        &self,
        size: ByteSize,
        check: impl FnOnce(&Inner) -> Result<(), TargetError>,
    ) -> Result<Target, TargetError> {
        self.turns.take().with(|inner| {
            check(inner)?;
            inner.set_target(self.window.id(), size)
        })
    }
}

impl Inner {
    pub(super) fn set_target(&mut self, id: PartitionId, size: ByteSize) -> Result<Target, TargetError> {
        match self.service {
            Service::InUse => {}
            Service::Broken(_) => return Err(TargetError::Broken(id)),
            Service::Retired => return Err(TargetError::Retired(id)),
        }
        let (before, target) = (self.told_target(), self.partition.target());
        let mut partition = self.partition.clone();
        partition.set_target(size).map_err(|source| TargetError::Size(id, source))?;
        // What is being discarded will be there by the time that it is plugged again.
        let there = partition.plugged().get().saturating_add(partition.discarding().get());
        let growth = if size > target { size.get().saturating_sub(there) } else { 0 };
        self.charge.admit(partition.reach(), ByteSize::bytes(growth))?;
        self.partition = partition;
        self.fault = None;
        self.phases = Phases::default();
        self.target_set = Instant::now();
        self.generation += 1;
        Ok(Target { generation: self.generation, before })
    }
}

/// A target that was set, to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub(super) generation: u64,
    before: ByteSize,
}

/// Why a target was not set.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The partition cannot have that size.
    #[error("partition {0} cannot have the size")]
    Size(PartitionId, #[source] InvalidTarget),
    /// The VM's limit or the host cannot back it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The partition was given up.
    #[error("partition {0} is being removed")]
    Retired(PartitionId),
    /// The size is less than the partition has or should have.
    #[error("partition {id} cannot be plugged with {size}: expected at least {floor}, or a call that shrinks it")]
    NoGrowth {
        /// The partition.
        id: PartitionId,
        /// What was asked for.
        size: ByteSize,
        /// What it has or should have, at least a block.
        floor: ByteSize,
    },
    /// The size is more than the partition should have.
    #[error("partition {id} cannot be shrunk to {size}: expected at most {target}, which it should have now")]
    NoShrinking {
        /// The partition.
        id: PartitionId,
        /// What was asked for.
        size: ByteSize,
        /// What it should have.
        target: ByteSize,
    },
    /// Another target stands.
    #[error("partition {0}: another target was set meanwhile")]
    Superseded(PartitionId),
    /// An earlier operation failed halfway.
    #[error("partition {0} is out of use because its memory slots are not what they should be")]
    Broken(PartitionId),
}
