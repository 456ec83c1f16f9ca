//! Carries out what a partition's state machine says, or undoes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::PartitionSetup;
use super::state::Effect;
use super::window_view::{ViewError, WindowView};
use crate::blocks::BlockRange;
use crate::host::{HostMapping, MapError};
use crate::layout::Window;
use crate::limited;
use crate::slots::{Slot, SlotError, SlotTable};

/// Carries out the effects of one partition on host memory, slots and view.
pub(super) struct Effects {
    start: GuestAddress,
    mapping: Arc<HostMapping>,
    slots: Arc<dyn SlotTable>,
    view: WindowView,
}

/// How long an unplug waits for device requests in flight before it is put off. They take microseconds; only a disk may take
/// longer, and its requests hold nothing but the memory that they use.
const DRAIN_LIMIT: Duration = Duration::from_millis(2);

impl Effects {
    /// Reserves host addresses for `window`.
    pub(super) fn reserve(window: Window, setup: &PartitionSetup) -> Result<Self, MapError> {
        let start = window.range().start();
        let mapping = Arc::new(HostMapping::reserve(window.range().bytes(), setup.backing)?);
        let view = WindowView::new(setup.view.clone(), start, mapping.clone());
        Ok(Self { start, mapping, slots: setup.slots.clone(), view })
    }

    /// Ends the VM because the guest has lost memory.
    pub(super) fn lost(&self, error: Arc<EffectError>) {
        self.slots.lost(Box::new(error));
    }

    pub(super) fn mapping(&self) -> &Arc<HostMapping> {
        &self.mapping
    }

    /// Carries out all but the discards, or nothing.
    pub(super) fn carry_out(&self, effects: &[Effect]) -> Result<Spent, Failure> {
        let mut spent = Spent::default();
        for (index, effect) in effects.iter().enumerate() {
            if let Err(error) = self.apply(effect, &mut spent) {
                let halfway = matches!(effect, Effect::ReplaceSlot { .. } | Effect::DeleteSlot(_));
                let undone = self.undo(&effects[..index]);
                let memory_lost = undone.memory_lost || matches!(effect, Effect::ReplaceSlot { .. });
                return Err(Failure { error, slots_in_doubt: halfway || !undone.all, memory_lost });
            }
        }
        Ok(spent)
    }

    fn apply(&self, effect: &Effect, spent: &mut Spent) -> Result<(), EffectError> {
        let start = Instant::now();
        match effect {
            Effect::Back(blocks) => {
                let backed = self.mapping.back(blocks.offset(), blocks.bytes());
                backed.map_err(|source| EffectError::Back(*blocks, source))?;
            }
            Effect::AddSlot(blocks) => self.slots.set(self.slot(*blocks))?,
            Effect::DeleteSlot(blocks) => self.slots.delete(self.slot(*blocks))?,
            Effect::ReplaceSlot { old, new } => {
                let new: Vec<_> = new.iter().map(|blocks| self.slot(*blocks)).collect();
                self.slots.replace(self.slot(*old), &new)?;
            }
            Effect::Reveal(blocks) => self.view.reveal(&[*blocks])?,
            Effect::Revoke(runs) => self.revoke(runs)?,
            // Queued by the caller, once the new state holds.
            Effect::Discard(_) => {}
        }
        match effect {
            Effect::Revoke(_) => spent.drain += start.elapsed(),
            Effect::AddSlot(_) | Effect::DeleteSlot(_) | Effect::ReplaceSlot { .. } => spent.slots += start.elapsed(),
            Effect::Back(_) | Effect::Reveal(_) | Effect::Discard(_) => {}
        }
        Ok(())
    }

    /// Waits once for all `runs`: a wait for each would also wait for requests that came after the one before.
    fn revoke(&self, runs: &[BlockRange]) -> Result<(), EffectError> {
        let Some(span) = runs.iter().copied().reduce(BlockRange::join) else { return Ok(()) };
        for run in runs {
            self.mapping.cut_out(run.offset(), run.bytes()).map_err(|source| EffectError::Cut(*run, source))?;
        }
        self.view.revoke(runs)?;
        if self.view.drain(span, DRAIN_LIMIT) {
            return Ok(());
        }
        self.view.reveal(runs)?;
        Err(EffectError::InFlight(span))
    }

    /// Undoes effects that were carried out, the last one first, as far as that can be done.
    fn undo(&self, effects: &[Effect]) -> Undone {
        let mut undone = Undone { all: true, memory_lost: false };
        for effect in effects.iter().rev() {
            let result = match effect {
                Effect::AddSlot(blocks) => self.slots.delete(self.slot(*blocks)).map_err(EffectError::from),
                Effect::DeleteSlot(blocks) => self.slots.set(self.slot(*blocks)).map_err(EffectError::from),
                Effect::Reveal(blocks) => self.view.revoke(&[*blocks]).map_err(EffectError::from),
                Effect::Revoke(runs) => self.view.reveal(runs).map_err(EffectError::from),
                Effect::Back(blocks) => {
                    if let Err(error) = self.mapping.discard(blocks.offset(), blocks.bytes()) {
                        limited!(warn, %blocks, error = ?error, "memory that is not plugged stays reserved");
                    }
                    Ok(())
                }
                Effect::Discard(_) => Ok(()),
                Effect::ReplaceSlot { .. } => {
                    undone.all = false;
                    Ok(())
                }
            };
            if let Err(error) = result {
                limited!(error, ?effect, error = ?error, "cannot undo half an operation");
                undone.all = false;
                undone.memory_lost |= matches!(effect, Effect::DeleteSlot(_));
            }
        }
        undone
    }

    /// Takes everything away at the end of the VM. Where a slot stays, its memory stays too.
    pub(super) fn tear_down(&self, slots: &[BlockRange]) {
        self.view.revoke_all();
        for &blocks in slots {
            if let Err(error) = self.slots.delete(self.slot(blocks)) {
                limited!(error, %blocks, error = ?error, "a slot outlives its partition: its memory stays mapped");
                std::mem::forget(self.mapping.clone());
            }
        }
    }

    fn slot(&self, blocks: BlockRange) -> Slot {
        Slot {
            guest: GuestAddress(self.start.0 + blocks.offset()),
            host: self.mapping.host_address(blocks.offset()),
            bytes: blocks.bytes(),
            read_only: false,
        }
    }
}

/// Why the host could not do its part of a plug or unplug.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The host has no memory for it.
    #[error("cannot back {0} with host memory")]
    Back(BlockRange, #[source] MapError),
    /// The host process may not have another mapping.
    #[error("cannot take {0} out of what lies beside it")]
    Cut(BlockRange, #[source] MapError),
    /// The hypervisor refused.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The devices' view could not be changed.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A device holds on to memory.
    #[error("a device still uses {0}")]
    InFlight(BlockRange),
}

/// An operation that failed and was undone as far as it goes.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: EffectError,
    /// It could not be undone.
    pub(super) slots_in_doubt: bool,
    /// The guest has lost a slot whose memory it takes to be there.
    pub(super) memory_lost: bool,
}

/// How far effects were undone.
struct Undone {
    all: bool,
    memory_lost: bool,
}

/// Time spent in effects.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) drain: Duration,
    pub(super) slots: Duration,
}
