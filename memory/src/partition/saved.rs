//! A partition as plain data, to save and to restore.
//!
//! What is saved is what the guest and the host agreed on: what is plugged, how far slots reach, which discards are due, the
//! target. The contents of the memory are not part of it: after [`PartitionMemory::restore`] they are zeros, for the caller to
//! fill before a vCPU runs. Threads that wait, a request that was put off and the reason why the last operation failed
//! belong to the process that saved, and stay there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::effects::Effects;
use super::{
    EffectError, Inner, Partition, PartitionMemory, PartitionSetup, Phases, PlugState, PlugStateError, Service, blocks,
};
use crate::admission::{AdmissionError, Charge};
use crate::host::MapError;
use crate::layout::{PartitionId, Window};
use crate::{ByteSize, Version};

impl PartitionMemory {
    /// The state now, once no operation is under way.
    ///
    /// # Errors
    /// The partition's slots are not what they should be.
    pub fn save(&self) -> Result<PartitionState, SaveError> {
        self.turns.take().with(|inner| {
            if let Service::Broken(error) = &inner.service {
                return Err(SaveError { id: self.window.id(), source: error.clone() });
            }
            Ok(PartitionState {
                version: Version,
                id: self.window.id(),
                plug: inner.partition.save(),
                generation: inner.generation,
                prepared: inner.prepared,
                retired: matches!(inner.service, Service::Retired),
                unplugged: inner.unplugged,
                discarded: inner.discarded,
                phases: inner.phases,
            })
        })
    }

    /// A partition that goes on where `state` was saved: its memory admitted, its slots set, what is plugged in the devices'
    /// view, the discards that were due queued.
    ///
    /// # Errors
    /// The state is not one that this partition can have, or the host cannot do its part; nothing is left behind.
    pub fn restore(window: Window, setup: PartitionSetup, state: &PartitionState) -> Result<Arc<Self>, RestoreError> {
        let id = window.id();
        if state.id != id {
            return Err(RestoreError::OtherPartition { id, found: state.id });
        }
        let partition = Partition::restore(blocks(window.size().get()), blocks(window.granule()), &state.plug)
            .map_err(|source| RestoreError::Plug { id, source })?;
        let mut inner = Inner::new(partition, Charge::new(setup.admission.clone(), id, setup.backing));
        inner.charge.admit(inner.partition.reach(), inner.partition.plugged())?;
        inner.generation = state.generation;
        inner.prepared = state.prepared;
        inner.unplugged = state.unplugged;
        inner.discarded = state.discarded;
        inner.phases = state.phases;
        if state.retired {
            inner.service = Service::Retired;
        }
        let effects = Effects::reserve(window, &setup).map_err(|source| RestoreError::Map { id, source })?;
        effects
            .carry_out(&inner.partition.arrival())
            .map_err(|failure| RestoreError::Effect { id, source: failure.error })?;
        let restored = Self::assemble(window, effects, setup.discards, inner);
        restored.outbox.lock().extend(&state.plug.discards);
        restored.queue_discards();
        Ok(restored)
    }
}

/// One partition.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionState {
    /// Version of this type.
    pub version: Version<1>,
    /// The partition.
    pub id: PartitionId,
    /// What is plugged, and what has to happen around it.
    pub plug: PlugState,
    /// How many targets were set so far.
    pub generation: u64,
    /// `generation` as the last target that only prepares has made it.
    pub prepared: u64,
    /// The partition was given up.
    pub retired: bool,
    /// Blocks the guest has ever given back, in bytes.
    pub unplugged: ByteSize,
    /// Bytes with pages that ever went back to the host.
    pub discarded: ByteSize,
    /// Of the last target.
    pub phases: Phases,
}

/// Why a partition was not saved.
#[derive(Debug, thiserror::Error)]
#[error("partition {id} cannot be saved: its memory slots are not what they should be")]
pub struct SaveError {
    /// The partition.
    pub id: PartitionId,
    /// What happened to its slots.
    #[source]
    pub source: Arc<EffectError>,
}

/// Why a partition was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs elsewhere.
    #[error("the state is partition {found}'s: expected partition {id}'s")]
    OtherPartition {
        /// The partition.
        id: PartitionId,
        /// The partition that was saved.
        found: PartitionId,
    },
    /// The state machine cannot have that state.
    #[error("the state of partition {id} is invalid")]
    Plug {
        /// The partition.
        id: PartitionId,
        /// The cause.
        #[source]
        source: PlugStateError,
    },
    /// The VM's limit or the host cannot back it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The host has no room for the window.
    #[error("no host addresses for partition {id}")]
    Map {
        /// The partition.
        id: PartitionId,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// Memory or slots could not be brought back.
    #[error("cannot bring back what was plugged in partition {id}")]
    Effect {
        /// The partition.
        id: PartitionId,
        /// The cause.
        #[source]
        source: EffectError,
    },
}

#[cfg(test)]
#[path = "saved_test.rs"]
mod tests;
