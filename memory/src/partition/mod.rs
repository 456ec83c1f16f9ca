//! Partitions: memory that a guest plugs and unplugs as a whole, or nearly so.
//!
//! | part | what it is |
//! |---|---|
//! | [`Partition`] | the pure state machine: what is plugged, and what has to happen around it |
//! | [`PartitionMemory`] | one partition with host memory, slots, the devices' view and discards around it |
//! | `turn` | how its threads exclude each other |
//! | `effects`, `window_view` | what carries an operation out, or undoes it |
//! | [`PartitionState`] | all of it as plain data, to save and to restore |
//!
//! Three kinds of threads meet in a [`PartitionMemory`]. vCPU threads read figures and never wait. A device's thread brings the
//! guest's requests, and does not wait for other operations either: a request that meets one is put off
//! ([`Handled::Later`]). Control threads set targets and wait, always with a time-out beside the turns of others. Carrying out
//! effects takes a while and, where slots are replaced, waits for vCPUs to stop: so slots are replaced on control threads and
//! on the discard thread only.

mod effects;
mod page_out;
mod plug_state;
mod prepare;
mod report;
mod request;
mod saved;
mod state;
mod target;
mod turn;
mod wait;
mod window_view;

pub use effects::EffectError;
pub use page_out::PagedOut;
pub use plug_state::{InvalidTarget, PlugState, PlugStateError};
pub use report::{Phases, Report};
pub use request::{Answer, BlockState, Request};
pub use saved::{PartitionState, RestoreError, SaveError};
pub use state::{Effect, Outcome, Partition};
pub use target::{Target, TargetError};
pub use wait::WaitError;
pub use window_view::ViewError;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use self::effects::{Effects, Failure, Spent};
use self::turn::{Turn, Turns, Waker};
use crate::admission::{Admission, Charge};
use crate::blocks::{BLOCK, BlockRange};
use crate::discard::{DiscardQueue, Discarded};
use crate::host::{Backing, MapError};
use crate::layout::{PartitionId, Window};
use crate::slots::SlotTable;
use crate::sync::Mutex;
use crate::{ByteSize, GuestView, limited};

/// One partition's memory. All methods may be called from any thread.
pub struct PartitionMemory {
    window: Window,
    effects: Effects,
    discards: DiscardQueue,
    turns: Turns<Inner>,
    /// What is to be discarded and has yet to be queued, the oldest first.
    outbox: Mutex<VecDeque<BlockRange>>,
    patience: Mutex<Patience>,
    this: Weak<Self>,
}

impl PartitionMemory {
    /// Reserves addresses for `window`; nothing is plugged.
    ///
    /// # Errors
    /// The host has no room for the window.
    pub fn new(window: Window, setup: PartitionSetup) -> Result<Arc<Self>, MapError> {
        let partition = Partition::new(blocks(window.size().get()), blocks(window.granule()));
        let charge = Charge::new(setup.admission.clone(), window.id(), setup.backing);
        let effects = Effects::reserve(window, &setup)?;
        Ok(Self::assemble(window, effects, setup.discards, Inner::new(partition, charge)))
    }

    /// Where the partition lies.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// Carries out a request of the guest, up to where it may be answered.
    ///
    /// The caller must not hold a snapshot of guest memory: an unplug waits, for some milliseconds at most, until every
    /// snapshot that shows the blocks is released and every pin of them gone. It is put off if that takes longer.
    #[must_use]
    pub fn handle(&self, request: Request) -> Handled {
        let Some(turn) = self.turns.try_take() else { return Handled::Later };
        let Some((partition, outcome)) = turn.with(|inner| self.plan(inner, request)) else {
            return Handled::Answer(Answer::Busy);
        };
        let failed = self.perform(&turn, partition, &outcome.effects).err();
        let answer = match &failed {
            None => outcome.answer,
            Some(Failed { error, .. }) if self.patience.lock().lasts(error) => {
                turn.put_off();
                self.finish(turn, failed);
                return Handled::Later;
            }
            Some(Failed { error, .. }) => {
                limited!(warn, partition = %self.window.id(), ?request, error = ?error, "a request of the guest failed");
                Answer::Busy
            }
        };
        self.patience.lock().since = None;
        if matches!(answer, Answer::Done | Answer::State(_)) {
            turn.with(|inner| self.granted(inner, request));
        }
        self.finish(turn, failed);
        Handled::Answer(answer)
    }

    /// Makes slots follow what is plugged, granule by granule. For when the guest has stopped giving memory back halfway.
    ///
    /// Not to be called on a vCPU's thread, which has to stop meanwhile, nor on one that a vCPU may wait for.
    ///
    /// # Errors
    /// The hypervisor refused; the partition is out of use.
    pub fn trim_slots(&self) -> Result<(), Arc<EffectError>> {
        self.trim_in(self.turns.take())
    }

    /// Has `waker` signalled when a request that was put off may be brought again; `None` ends that.
    pub fn set_waker(&self, waker: Option<Arc<EventFd>>) {
        let id = self.window.id();
        let waker = waker.map(|waker| -> Waker {
            Arc::new(move || {
                if let Err(error) = waker.write(1) {
                    limited!(warn, partition = %id, %error, "cannot wake the device");
                }
            })
        });
        self.turns.set_waker(waker);
        self.patience.lock().since = None;
    }

    /// Ends all waits for the guest, now and later: it has ended.
    pub fn end(&self) {
        self.turns.end();
    }

    /// Gives the partition up: no target can be set any more, so its device may be taken away.
    ///
    /// # Errors
    /// Memory is still plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        self.turns.take().with(|inner| {
            let (plugged, discarding) = (inner.partition.plugged(), inner.partition.discarding());
            if plugged.get() != 0 || discarding.get() != 0 {
                return Err(StillInUse { id: self.window.id(), plugged, discarding });
            }
            inner.generation += 1;
            // Zero is a target that every partition can have.
            let _ = inner.partition.set_target(ByteSize::bytes(0));
            inner.lower_charge();
            inner.service = Service::Retired;
            Ok(())
        })
    }

    /// What `request` makes of the partition, if it may be tried at all.
    fn plan(&self, inner: &mut Inner, request: Request) -> Option<(Partition, Outcome)> {
        if matches!(inner.service, Service::Broken(_)) && !matches!(request, Request::State(_)) {
            return None;
        }
        let mut partition = inner.partition.clone();
        let outcome = partition.request(request);
        // Only a guest that plugs blocks here and there comes to reach more than was admitted with the target.
        if let Err(error) = inner.charge.raise(partition.reach()) {
            limited!(warn, partition = %self.window.id(), ?request, %error, "a request of the guest was not admitted");
            return None;
        }
        Some((partition, outcome))
    }

    /// Carries out `effects` and on success makes `partition` the state.
    fn perform(&self, turn: &Turn<'_, Inner>, partition: Partition, effects: &[Effect]) -> Result<(), Failed> {
        let result = self.effects.carry_out(effects);
        turn.with(|inner| {
            let spent = result.map_err(|failure| inner.failed(failure))?;
            inner.succeeded(partition, spent, effects);
            self.outbox.lock().extend(effects.iter().filter_map(|effect| match effect {
                Effect::Discard(blocks) => Some(*blocks),
                _ => None,
            }));
            Ok(())
        })
    }

    /// A request was granted: slots follow it soon.
    fn granted(&self, inner: &mut Inner, request: Request) {
        inner.phases.requests = inner.phases.requests.saturating_add(1);
        // While the host wants everything back the slots go at the end, all at once.
        let gave_a_part = matches!(request, Request::Unplug(_)) && inner.partition.target().get() != 0;
        if gave_a_part && inner.partition.can_trim_slots() && !inner.trim_queued {
            let this = self.this.clone();
            let trim = move || {
                let Some(this) = this.upgrade() else { return };
                let turn = this.turns.take();
                turn.with(|inner| inner.trim_queued = false);
                // A failure has been logged, and the partition does nothing any more.
                let _ = this.trim_in(turn);
            };
            inner.trim_queued = self.discards.run(trim).is_ok();
        }
    }

    fn trim_in(&self, turn: Turn<'_, Inner>) -> Result<(), Arc<EffectError>> {
        let (partition, effects) = turn.with(|inner| {
            if let Service::Broken(error) = &inner.service {
                return Err(error.clone());
            }
            let mut partition = inner.partition.clone();
            let effects = partition.trim_slots();
            Ok((partition, effects))
        })?;
        let failed = self.perform(&turn, partition, &effects).err();
        let result = failed.as_ref().map_or(Ok(()), |failed| Err(failed.error.clone()));
        if let Err(error) = &result {
            turn.with(|inner| inner.service = Service::Broken(error.clone()));
        }
        self.finish(turn, failed);
        result
    }

    /// Ends a turn, then does what others need not wait for: on one processor threads that wait for an unplug would otherwise
    /// wait for the discard, too.
    fn finish(&self, turn: Turn<'_, Inner>, failed: Option<Failed>) {
        drop(turn);
        if let Some(Failed { error, memory_lost: true }) = failed {
            self.effects.lost(error);
        }
        self.queue_discards();
    }

    /// Queues what is to be discarded. Under the lock, so that it is queued in the order the state knows it in.
    fn queue_discards(&self) {
        let mut outbox = self.outbox.lock();
        while let Some(blocks) = outbox.pop_front() {
            let this = self.this.clone();
            let done = move |discarded| {
                if let Some(this) = this.upgrade() {
                    this.discarded(blocks, discarded);
                }
            };
            let mapping = self.effects.mapping().clone();
            if self.discards.discard(mapping, blocks.offset(), blocks.bytes(), done).is_err() {
                // The VM is ending: its mappings go as a whole.
                limited!(debug, partition = %self.window.id(), %blocks, "not discarded: the discard thread has ended");
            }
        }
    }

    /// Queues again what could not be discarded.
    fn discard_again(&self) {
        self.turns.take().with(|inner| {
            inner.discard_fault = None;
            self.outbox.lock().extend(inner.not_discarded.drain(..));
        });
        self.queue_discards();
    }

    /// Called on the discard thread.
    fn discarded(&self, blocks: BlockRange, discarded: Discarded) {
        let id = self.window.id();
        if let Some(error) = &discarded.error {
            limited!(error, partition = %id, %blocks, error = ?error, "cannot discard all of it");
        }
        self.turns.take().with(|inner| {
            if let Some(error) = discarded.error {
                inner.not_discarded.push(blocks);
                inner.discard_fault = Some(Arc::new(error));
            } else if !inner.partition.discard_done(blocks) {
                limited!(error, partition = %id, %blocks, "a discard is done that the partition did not ask for");
            }
            inner.discarded = inner.discarded.plus(discarded.freed);
            inner.phases.discard += discarded.took;
            inner.phases.discarded = inner.phases.discarded.plus(discarded.freed);
            inner.lower_charge();
        });
    }

    fn assemble(window: Window, effects: Effects, discards: DiscardQueue, inner: Inner) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            window,
            effects,
            discards,
            turns: Turns::new(inner),
            outbox: Mutex::default(),
            patience: Mutex::new(Patience { limit: DEVICE_LIMIT, since: None }),
            this: this.clone(),
        })
    }
}

impl Drop for PartitionMemory {
    fn drop(&mut self) {
        self.effects.tear_down(self.turns.get_mut().partition.slots());
    }
}

/// What all partitions of a VM are made with.
#[derive(Clone)]
pub struct PartitionSetup {
    /// What host memory is made of.
    pub backing: Backing,
    /// The view that all devices of the VM share.
    pub view: GuestView,
    /// The hypervisor's slots.
    pub slots: Arc<dyn SlotTable>,
    /// The VM's account.
    pub admission: Arc<Admission>,
    /// Where memory is discarded.
    pub discards: DiscardQueue,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handled {
    /// Give this answer.
    Answer(Answer),
    /// Bring the request again when woken.
    Later,
}

/// The partition still holds memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("partition {id} cannot be removed: {plugged} are plugged and {discarding} being discarded")]
pub struct StillInUse {
    /// The partition.
    pub id: PartitionId,
    /// What is plugged.
    pub plugged: ByteSize,
    /// What is being discarded.
    pub discarding: ByteSize,
}

/// What changes in turns.
struct Inner {
    partition: Partition,
    charge: Charge,
    /// How many targets were set so far.
    generation: u64,
    /// `generation` as the last target that only prepares has made it.
    prepared: u64,
    service: Service,
    /// A trim of the slots is on its way to the discard thread.
    trim_queued: bool,
    /// What could not be discarded, and why.
    not_discarded: Vec<BlockRange>,
    discard_fault: Option<Arc<MapError>>,
    /// Why the last operation failed, until a target is set again.
    fault: Option<Arc<EffectError>>,
    unplugged: ByteSize,
    discarded: ByteSize,
    phases: Phases,
    /// When the last target was set.
    target_set: Instant,
}

/// Whether a partition can be used.
enum Service {
    InUse,
    /// Slots are not what they should be since this happened; the partition does nothing any more.
    Broken(Arc<EffectError>),
    /// The partition was given up.
    Retired,
}

/// An operation that failed.
struct Failed {
    error: Arc<EffectError>,
    /// The VM has to end: the guest has lost memory that it takes to be there.
    memory_lost: bool,
}

impl Inner {
    fn new(partition: Partition, charge: Charge) -> Self {
        Self {
            partition,
            charge,
            generation: 0,
            prepared: 0,
            service: Service::InUse,
            trim_queued: false,
            not_discarded: Vec::new(),
            discard_fault: None,
            fault: None,
            unplugged: ByteSize::bytes(0),
            discarded: ByteSize::bytes(0),
            phases: Phases::default(),
            target_set: Instant::now(),
        }
    }

    fn succeeded(&mut self, partition: Partition, spent: Spent, effects: &[Effect]) {
        let less = self.partition.plugged().get().saturating_sub(partition.plugged().get());
        self.unplugged = self.unplugged.plus(ByteSize::bytes(less));
        self.partition = partition;
        if !effects.is_empty() {
            self.fault = None;
        }
        self.phases.drain += spent.drain;
        self.phases.slots += spent.slots;
        if self.phases.reached.is_zero() && self.partition.plugged() == self.partition.target() {
            self.phases.reached = self.target_set.elapsed();
        }
        self.lower_charge();
    }

    fn failed(&mut self, failure: Failure) -> Failed {
        let error = Arc::new(failure.error);
        if failure.slots_in_doubt {
            self.service = Service::Broken(error.clone());
        }
        self.fault = Some(error.clone());
        self.lower_charge();
        Failed { error, memory_lost: failure.memory_lost }
    }

    /// Charges no more than the state says; only a larger target charges more.
    fn lower_charge(&mut self) {
        self.charge.lower(self.partition.reach());
    }
}

/// How long a request of the guest is put off because a device uses the memory that is to go. Then it is answered BUSY: a
/// driver tries again, and can ask for something else until then.
const DEVICE_LIMIT: Duration = Duration::from_secs(30);

/// The patience with devices that use the memory which a request wants to unplug.
struct Patience {
    limit: Duration,
    /// Since when the request waits.
    since: Option<Instant>,
}

impl Patience {
    /// Whether a request that failed with `error` may still come to be granted, if it is brought again.
    fn lasts(&mut self, error: &EffectError) -> bool {
        matches!(error, EffectError::InFlight(_)) && self.since.get_or_insert_with(Instant::now).elapsed() < self.limit
    }
}

/// `bytes` in blocks. A layout's window is far below 2^32 of them.
fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes / BLOCK.get()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod failure_test;
#[cfg(test)]
mod page_out_test;
#[cfg(test)]
mod partition_test;
#[cfg(test)]
mod turn_model_test;
