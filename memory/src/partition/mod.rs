//! One partition with everything around it: state, host memory, slots, the devices' view and discards.
//!
//! Three kinds of threads meet here. vCPU threads read figures and never wait. A device's thread brings the guest's
//! requests. Control threads ask for sizes and wait, always with a time-out beside the turns of others.
//!
//! Operations exclude each other by a *turn* that is taken under the lock but held without it, because carrying out effects
//! takes a while and, where slots are replaced, waits for vCPUs to stop: a vCPU that reads figures meanwhile must not
//! block. For the same reason a device's thread never waits for the turn: a request that finds it taken is put off
//! ([`Handled::Later`]), and the device is woken when the turn ends. Other threads that wait for the turn come first, so that
//! a guest that asks all the time keeps none of them waiting for more than one request. Slots are replaced on control threads
//! and on the discard thread only.

mod effects;
mod state;
mod window_view;

pub use effects::EffectError;
pub use state::{Answer, BlockState, Effect, InvalidTarget, Outcome, Partition, Request};
pub use window_view::ViewError;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use self::effects::{Effects, Spent};
use crate::admission::{Admission, AdmissionError, Charge};
use crate::blocks::{BLOCK, BlockRange};
use crate::discard::{DiscardQueue, Discarded};
use crate::host::{Backing, HostMapping, MapError};
use crate::layout::{PartitionId, Window};
use crate::slots::SlotTable;
use crate::{ByteSize, GuestView, limited};

/// How long a request of the guest is put off because a device uses the memory that is to go. Then it is answered BUSY: a
/// driver tries again, and can ask for something else until then.
const DEVICE_LIMIT: Duration = Duration::from_secs(30);

/// What a partition's memory is made with.
pub struct PartitionSetup {
    /// Where it lies.
    pub window: Window,
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

/// One partition's memory. All methods may be called from any thread.
pub struct PartitionMemory {
    window: Window,
    effects: Effects,
    discards: DiscardQueue,
    inner: Mutex<Inner>,
    changed: Condvar,
    this: Weak<Self>,
}

struct Inner {
    partition: Partition,
    charge: Charge,
    /// Somebody has the turn.
    busy: bool,
    /// Threads that wait for the turn.
    waiting: u32,
    /// Signalled when a turn ends in which a request was put off.
    waker: Option<Arc<EventFd>>,
    put_off: bool,
    /// Since when the guest's request waits for devices that use the memory.
    waits_since: Option<Instant>,
    device_limit: Duration,
    /// What is to be discarded and has yet to be queued, the oldest first.
    to_discard: VecDeque<BlockRange>,
    trimming: bool,
    retired: bool,
    /// The guest does nothing any more.
    ended: bool,
    /// How many targets were set so far.
    generation: u64,
    /// Slots are not what they should be; nothing is done any more.
    broken: bool,
    /// By what the guest has lost memory, until the VM has been told to end.
    lost: Option<Arc<EffectError>>,
    /// What could not be discarded, and why.
    not_discarded: Vec<BlockRange>,
    discard_fault: Option<Arc<MapError>>,
    /// Why the last operation failed, until a target is set again.
    fault: Option<Arc<EffectError>>,
    unplugged: u64,
    discarded: u64,
    phases: Phases,
}

impl Inner {
    /// Charges no more than the state says; only a larger target charges more.
    fn lower_charge(&mut self) {
        self.charge.lower(self.partition.reach());
    }

    /// Whether a request that failed with `error` may still come to be granted, if it is brought again.
    fn is_worth_waiting(&mut self, error: &EffectError) -> bool {
        matches!(error, EffectError::InFlight(_))
            && self.waits_since.get_or_insert_with(Instant::now).elapsed() < self.device_limit
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handled {
    /// Give this answer.
    Answer(Answer),
    /// Bring the request again when woken.
    Later,
}

/// Where the time went since a target was last set. Times of several requests add up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Phases {
    /// Requests of the guest that were granted.
    pub requests: u32,
    /// Taking memory out of the devices' view and waiting for requests in flight.
    pub drain: Duration,
    /// Setting, replacing and deleting slots.
    pub slots: Duration,
    /// Freeing memory, on the discard thread.
    pub discard: Duration,
    /// Bytes that had pages and went back to the host.
    pub discarded: ByteSize,
}

/// A target that was set, to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    generation: u64,
    before: ByteSize,
}

/// A partition's figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// The partition.
    pub id: PartitionId,
    /// Size of its window: the most it can ever have.
    pub window: ByteSize,
    /// What the host wants plugged.
    pub target: ByteSize,
    /// How far into its addresses the guest may plug. It never shrinks but when the guest gives everything back at once.
    pub usable: ByteSize,
    /// What is plugged now.
    pub plugged: ByteSize,
    /// What the guest has given back and the host has not yet freed.
    pub discarding: ByteSize,
    /// Slots there are now.
    pub slots: usize,
    /// Blocks the guest has ever given back, in bytes.
    pub unplugged: ByteSize,
    /// Bytes with pages that ever went back to the host.
    pub discarded: ByteSize,
    /// Of the last target.
    pub phases: Phases,
}

/// Why a target was not set.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The partition can't have that size.
    #[error("partition {0} can't have the size")]
    Size(PartitionId, #[source] InvalidTarget),
    /// Nobody can back it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The partition was given up.
    #[error("partition {0} is being removed")]
    Retired(PartitionId),
    /// More is wanted than that, or is there.
    #[error("partition {id} can't be plugged with {size}: expected at least {floor}, or a call that shrinks it")]
    NoGrowth {
        /// The partition.
        id: PartitionId,
        /// What was asked for.
        size: ByteSize,
        /// What it has or should have, at least a block.
        floor: ByteSize,
    },
    /// Less is wanted than that.
    #[error("partition {id} can't be shrunk to {size}: expected at most {target}, which it should have now")]
    NoShrinking {
        /// The partition.
        id: PartitionId,
        /// What was asked for.
        size: ByteSize,
        /// What it should have.
        target: ByteSize,
    },
    /// Another target was set since.
    #[error("partition {0}: another target was set meanwhile")]
    Superseded(PartitionId),
    /// An earlier operation failed halfway.
    #[error("partition {0} is out of use because its memory slots are not what they should be")]
    Broken(PartitionId),
}

/// Why the wait for a partition ended without what was waited for.
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
    /// Somebody else wants another size.
    #[error("partition {0}: another target was set meanwhile")]
    Superseded(PartitionId),
    /// The guest is no more.
    #[error("partition {0}: the VM has ended")]
    Ended(PartitionId),
    /// The host could not do what the guest asked for.
    #[error("partition {0}: the guest's request failed")]
    Failed(PartitionId, #[source] Arc<EffectError>),
    /// What the guest gave back is still the VM's.
    #[error("partition {0}: memory that the guest gave back can't be discarded")]
    NotDiscarded(PartitionId, #[source] Arc<MapError>),
}

/// The partition still holds memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("partition {id} can't be removed: {plugged} are plugged and {discarding} being discarded")]
pub struct StillInUse {
    /// The partition.
    pub id: PartitionId,
    /// What is plugged.
    pub plugged: ByteSize,
    /// What is being discarded.
    pub discarding: ByteSize,
}

impl PartitionMemory {
    /// Reserves addresses for the window; nothing is plugged.
    ///
    /// # Errors
    /// The host has no room for the window.
    pub fn new(setup: PartitionSetup) -> Result<Arc<Self>, MapError> {
        let PartitionSetup { window, backing, view, slots, admission, discards } = setup;
        let bytes = window.range().bytes();
        let mapping = Arc::new(HostMapping::reserve(bytes, backing)?);
        // A layout's window is far below 2^32 blocks.
        let blocks = |bytes: u64| u32::try_from(bytes / BLOCK.get()).unwrap_or(u32::MAX);
        let inner = Inner {
            partition: Partition::new(blocks(window.size().get()), blocks(window.granule())),
            charge: Charge::new(admission, window.id(), backing),
            busy: false,
            waiting: 0,
            waker: None,
            put_off: false,
            waits_since: None,
            device_limit: DEVICE_LIMIT,
            to_discard: VecDeque::new(),
            trimming: false,
            retired: false,
            ended: false,
            generation: 0,
            broken: false,
            lost: None,
            not_discarded: Vec::new(),
            discard_fault: None,
            fault: None,
            unplugged: 0,
            discarded: 0,
            phases: Phases::default(),
        };
        let effects = Effects::new(window.range().start(), mapping, slots, view);
        Ok(Arc::new_cyclic(|this| Self {
            window,
            effects,
            discards,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            this: this.clone(),
        }))
    }

    /// Where the partition lies.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// The figures now. Never waits for an operation.
    #[must_use]
    pub fn report(&self) -> Report {
        self.figures(&self.lock())
    }

    /// Carries out a request of the guest, up to where it may be answered.
    ///
    /// The caller must not hold a snapshot of guest memory: an unplug waits, for some milliseconds at most, until nobody holds
    /// one in which the blocks are visible, nor has pinned any of them. It is put off where that takes longer.
    #[must_use]
    pub fn handle(&self, request: Request) -> Handled {
        let mut inner = self.lock();
        if inner.busy || inner.waiting != 0 {
            inner.put_off = true;
            return Handled::Later;
        }
        if inner.broken && !matches!(request, Request::State(_)) {
            return Handled::Answer(Answer::Busy);
        }
        let mut partition = inner.partition.clone();
        let outcome = partition.request(request);
        // Only a guest that plugs blocks here and there comes to reach more than was admitted with the size.
        if let Err(error) = inner.charge.raise(partition.reach()) {
            limited!(warn, partition = %self.window.id(), ?request, %error, "a request of the guest was not admitted");
            self.end_turn(inner);
            return Handled::Answer(Answer::Busy);
        }
        let (mut inner, result) = self.perform(inner, partition, &outcome.effects);
        let answer = match result {
            Ok(()) => outcome.answer,
            Err(error) if inner.is_worth_waiting(&error) => {
                inner.put_off = true;
                self.end_turn(inner);
                return Handled::Later;
            }
            Err(error) => {
                limited!(warn, partition = %self.window.id(), ?request, error = ?error, "a request of the guest failed");
                Answer::Busy
            }
        };
        inner.waits_since = None;
        if matches!(answer, Answer::Done | Answer::State(_)) {
            inner.phases.requests = inner.phases.requests.saturating_add(1);
            // While the host wants everything back the slots go at the end, all at once.
            let gave_a_part = matches!(request, Request::Unplug(_)) && inner.partition.target().get() != 0;
            if gave_a_part && inner.partition.can_trim_slots() && !inner.trimming {
                let this = self.this.clone();
                let trim = move || {
                    if let Some(this) = this.upgrade() {
                        this.lock().trimming = false;
                        // A failure has been logged, and the partition does nothing any more.
                        let _ = this.trim_slots();
                    }
                };
                inner.trimming = self.discards.run(trim).is_ok();
            }
        }
        self.end_turn(inner);
        Handled::Answer(answer)
    }

    /// Has `waker` signalled when a request that was put off may be brought again; `None` ends that.
    pub fn set_waker(&self, waker: Option<Arc<EventFd>>) {
        let mut inner = self.lock();
        inner.waker = waker;
        inner.put_off = false;
        inner.waits_since = None;
    }

    /// How many targets were set so far: changes whenever the host changes the device's configuration.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Changes what the host wants plugged, once it has been admitted. The caller tells the guest.
    ///
    /// # Errors
    /// The size is impossible or can't be backed, or the partition is out of use; nothing changed.
    pub fn set_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        self.set_if(size, |_| Ok(()))
    }

    /// [`PartitionMemory::set_target`] for growth to `size`: not zero, and at least what is plugged and the target now.
    ///
    /// # Errors
    /// As for that, or the size is too small.
    pub fn raise_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.set_if(size, |inner| {
            let floor = inner.partition.plugged().max(inner.partition.target()).max(BLOCK);
            if size < floor { Err(TargetError::NoGrowth { id, size, floor }) } else { Ok(()) }
        })
    }

    /// [`PartitionMemory::set_target`] for a target no higher than the one now.
    ///
    /// # Errors
    /// As for that, or the target is lower already.
    pub fn lower_target(&self, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        self.set_if(size, |inner| {
            let target = inner.partition.target();
            if size > target { Err(TargetError::NoShrinking { id, size, target }) } else { Ok(()) }
        })
    }

    /// Sets the target that stood before `target`.
    ///
    /// # Errors
    /// As for [`PartitionMemory::set_target`], or another target was set since, which stands.
    pub fn take_back(&self, target: Target) -> Result<Target, TargetError> {
        let id = self.window.id();
        let still = |inner: &Inner| {
            if inner.generation == target.generation { Ok(()) } else { Err(TargetError::Superseded(id)) }
        };
        self.set_if(target.before, still)
    }

    fn set_if(
        &self,
        size: ByteSize,
        may: impl FnOnce(&Inner) -> Result<(), TargetError>,
    ) -> Result<Target, TargetError> {
        let mut inner = self.idle();
        let result = may(&inner).and_then(|()| self.set_in(&mut inner, size));
        self.release(inner);
        result
    }

    fn set_in(&self, inner: &mut Inner, size: ByteSize) -> Result<Target, TargetError> {
        let id = self.window.id();
        if inner.retired {
            return Err(TargetError::Retired(id));
        }
        if inner.broken {
            return Err(TargetError::Broken(id));
        }
        let before = inner.partition.target();
        let mut partition = inner.partition.clone();
        partition.set_target(size).map_err(|source| TargetError::Size(id, source))?;
        // What is being discarded will be there by the time that it is plugged again.
        let there = partition.plugged().get().saturating_add(partition.discarding().get());
        let growth = if size > before { size.get().saturating_sub(there) } else { 0 };
        inner.charge.admit(partition.reach(), ByteSize::bytes(growth))?;
        inner.partition = partition;
        inner.fault = None;
        inner.phases = Phases::default();
        inner.generation += 1;
        Ok(Target { generation: inner.generation, before })
    }

    /// Ends all waits for the guest, now and later: it has ended.
    pub fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        drop(inner);
        self.changed.notify_all();
    }

    /// Makes slots follow what is plugged, granule by granule. For when the guest has stopped giving memory back halfway.
    ///
    /// Not to be called on a vCPU's thread, which has to stop meanwhile, nor on one that a vCPU may wait for.
    ///
    /// # Errors
    /// The hypervisor refused; the partition is out of use.
    pub fn trim_slots(&self) -> Result<(), Arc<EffectError>> {
        let inner = self.idle();
        if inner.broken {
            let result = inner.fault.clone().map_or(Ok(()), Err);
            self.release(inner);
            return result;
        }
        let mut partition = inner.partition.clone();
        let effects = partition.trim_slots();
        let (mut inner, result) = self.perform(inner, partition, &effects);
        inner.broken |= result.is_err();
        self.end_turn(inner);
        result
    }

    /// Gives the partition up: no target can be set any more, so its device may be taken away.
    ///
    /// # Errors
    /// Memory is still plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        let mut inner = self.idle();
        let (plugged, discarding) = (inner.partition.plugged(), inner.partition.discarding());
        if plugged.get() != 0 || discarding.get() != 0 {
            self.release(inner);
            return Err(StillInUse { id: self.window.id(), plugged, discarding });
        }
        inner.generation += 1;
        // Zero is a size that every partition can have.
        let _ = inner.partition.set_target(ByteSize::bytes(0));
        inner.lower_charge();
        inner.retired = true;
        self.release(inner);
        Ok(())
    }

    /// Waits until all of `target` is plugged.
    ///
    /// # Errors
    /// It is not after `timeout`, another target is set, the VM ends, or the host could not do its part.
    pub fn wait_plugged(&self, target: Target, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("plugged", timeout, Some(target), |report| report.plugged >= report.target)
    }

    /// Waits until no more than `target` is plugged.
    ///
    /// # Errors
    /// There still is after `timeout`, another target is set, the VM ends, or the host could not do its part.
    pub fn wait_unplugged(&self, target: Target, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("unplugged", timeout, Some(target), |report| report.plugged <= report.target)
    }

    /// Waits until everything that was unplugged has gone back to the host. What could not be discarded before is tried again.
    ///
    /// # Errors
    /// It has not after `timeout`, or the host refused: the memory stays charged, and can't be plugged.
    pub fn wait_discarded(&self, timeout: Duration) -> Result<Report, WaitError> {
        let mut inner = self.lock();
        inner.discard_fault = None;
        let again = std::mem::take(&mut inner.not_discarded);
        inner.to_discard.extend(again);
        drop(inner);
        self.queue_discards();
        self.wait("discarded", timeout, None, |report| report.discarding.get() == 0)
    }

    fn wait(
        &self,
        goal: &'static str,
        timeout: Duration,
        target: Option<Target>,
        reached: fn(&Report) -> bool,
    ) -> Result<Report, WaitError> {
        let id = self.window.id();
        let start = Instant::now();
        let mut inner = self.lock();
        loop {
            // Not during a turn: what is already true then may not have been answered yet.
            if !inner.busy {
                let report = self.figures(&inner);
                if target.is_some_and(|target| target.generation != inner.generation) {
                    return Err(WaitError::Superseded(id));
                }
                if reached(&report) {
                    return Ok(report);
                }
            }
            if target.is_none()
                && let Some(fault) = &inner.discard_fault
            {
                return Err(WaitError::NotDiscarded(id, fault.clone()));
            }
            if target.is_some() && inner.ended {
                return Err(WaitError::Ended(id));
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let fault = inner.fault.as_ref().filter(|fault| {
                // The guest was answered BUSY and tries again.
                let may_pass = matches!(***fault, EffectError::InFlight(_));
                target.is_some() && !inner.busy && (left.is_none() || !may_pass)
            });
            if let Some(fault) = fault {
                return Err(WaitError::Failed(id, fault.clone()));
            }
            let Some(left) = left else {
                let report = Box::new(self.figures(&inner));
                return Err(WaitError::Timeout { goal, waited: timeout, report });
            };
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the turn, carries out `effects`, and on success makes `partition` the state. The caller ends the turn:
    /// [`PartitionMemory::end_turn`].
    fn perform<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        partition: Partition,
        effects: &[Effect],
    ) -> (MutexGuard<'a, Inner>, Result<(), Arc<EffectError>>) {
        let mut result = Ok(Spent::default());
        if !effects.is_empty() {
            inner.busy = true;
            drop(inner);
            result = self.effects.carry_out(effects);
            inner = self.lock();
            inner.busy = false;
        }
        let result = match result {
            Ok(spent) => {
                inner.unplugged += inner.partition.plugged().get().saturating_sub(partition.plugged().get());
                inner.partition = partition;
                if !effects.is_empty() {
                    inner.fault = None;
                }
                inner.phases.drain += spent.drain;
                inner.phases.slots += spent.slots;
                inner.to_discard.extend(effects.iter().filter_map(|effect| match effect {
                    Effect::Discard(blocks) => Some(*blocks),
                    _ => None,
                }));
                inner.lower_charge();
                Ok(())
            }
            Err(failure) => {
                inner.broken |= failure.slots_in_doubt;
                inner.lower_charge();
                let error = Arc::new(failure.error);
                inner.lost = failure.memory_lost.then(|| error.clone());
                inner.fault = Some(error.clone());
                Err(error)
            }
        };
        (inner, result)
    }

    /// Queues what is to be discarded. Under the lock, so that it is queued in the order the state knows it in.
    fn queue_discards(&self) {
        let mut inner = self.lock();
        while let Some(blocks) = inner.to_discard.pop_front() {
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

    /// Called on the discard thread.
    fn discarded(&self, blocks: BlockRange, discarded: Discarded) {
        if let Some(error) = &discarded.error {
            limited!(error, partition = %self.window.id(), %blocks, error = ?error, "cannot discard all of it");
        }
        let mut inner = self.idle();
        if let Some(error) = discarded.error {
            inner.not_discarded.push(blocks);
            inner.discard_fault = Some(Arc::new(error));
        } else if !inner.partition.discard_done(blocks) {
            limited!(error, partition = %self.window.id(), %blocks, "a discard was done that nobody asked for");
        }
        inner.discarded += discarded.freed.get();
        inner.phases.discard += discarded.took;
        inner.phases.discarded = ByteSize::bytes(inner.phases.discarded.get() + discarded.freed.get());
        inner.lower_charge();
        self.release(inner);
    }

    /// Lets others have the turn. Who waits for an unplug is woken before the thread that frees the memory: where they share a
    /// processor they would have to wait for that.
    fn end_turn(&self, mut inner: MutexGuard<'_, Inner>) {
        let discards = !inner.to_discard.is_empty();
        let lost = inner.lost.take();
        self.release(inner);
        if let Some(error) = lost {
            self.effects.lost(error);
        }
        if discards {
            self.queue_discards();
        }
    }

    /// Brings the device back if a request was put off, unless others wait for the turn: then the last of them does.
    fn wake_device(&self, inner: &mut Inner) {
        if inner.waiting == 0
            && std::mem::take(&mut inner.put_off)
            && let Some(waker) = &inner.waker
            && let Err(error) = waker.write(1)
        {
            limited!(error, partition = %self.window.id(), %error, "cannot wake the device");
        }
    }

    /// Gives the lock back and wakes who waits for a change: in this order, or they would wake only to wait for the lock.
    fn release(&self, mut inner: MutexGuard<'_, Inner>) {
        self.wake_device(&mut inner);
        drop(inner);
        self.changed.notify_all();
    }

    fn figures(&self, inner: &Inner) -> Report {
        let partition = &inner.partition;
        Report {
            id: self.window.id(),
            window: partition.window(),
            target: partition.target(),
            usable: partition.usable(),
            plugged: partition.plugged(),
            discarding: partition.discarding(),
            slots: partition.slots().len(),
            unplugged: ByteSize::bytes(inner.unplugged),
            discarded: ByteSize::bytes(inner.discarded),
            phases: inner.phases,
        }
    }

    /// The lock, once nobody has the turn. Whoever keeps it has the turn, and [`PartitionMemory::release`]s it. Turns are short:
    /// a drain is limited.
    fn idle(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        inner.waiting += 1;
        while inner.busy {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.waiting -= 1;
        inner
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves figures that are whole: the state is only ever replaced.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PartitionMemory {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.effects.tear_down(inner.partition.slots());
    }
}

#[cfg(test)]
#[path = "partition_test.rs"]
mod tests;
