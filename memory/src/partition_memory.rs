//! One partition with everything around it: state, host memory, slots, the devices' view and discards.
//!
//! Three kinds of threads meet here. vCPU threads read figures and never wait. A device's thread brings the guest's
//! requests. Control threads ask for sizes and wait, always with a time-out.
//!
//! Operations exclude each other by a *turn* that is taken under the lock but held without it, because carrying out effects
//! takes a while and, where slots are replaced, waits for vCPUs to stop: a vCPU that reads figures meanwhile must not
//! block. For the same reason a device's thread never waits for the turn: a request that finds it taken is put off
//! ([`Handled::Later`]), and the device is woken when the turn ends. Slots are replaced on control threads and on the
//! discard thread only.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::admission::{Admission, AdmissionError, Charge};
use crate::blocks::{BLOCK, BlockRange};
use crate::discard::{DiscardQueue, Discarded};
use crate::effects::{EffectError, Effects, Spent};
use crate::layout::{PartitionId, Window};
use crate::mapping::{Backing, HostMapping, MapError};
use crate::partition::{Answer, Effect, Partition, Request, RequestedSizeError};
use crate::slots::SlotTable;
use crate::{ByteSize, GuestView};

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
    /// Signalled when a turn ends in which a request was put off.
    waker: Option<EventFd>,
    put_off: bool,
    /// What is to be discarded and has yet to be queued, the oldest first.
    to_discard: VecDeque<BlockRange>,
    settling: bool,
    retired: bool,
    /// Slots are not what they should be; nothing is done any more.
    broken: bool,
    /// Why the last operation failed, until a size is requested again.
    fault: Option<Arc<EffectError>>,
    unplugged: u64,
    discarded: u64,
    phases: Phases,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Handled {
    /// Give this answer.
    Answer(Answer),
    /// Bring the request again when woken.
    Later,
}

/// Where the time went since a size was last requested. Times of several requests add up.
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

/// A partition's figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// The partition.
    pub id: PartitionId,
    /// Size of its window: the most it can ever have.
    pub window: ByteSize,
    /// What the host wants plugged.
    pub requested: ByteSize,
    /// How far into the window the guest may plug; also what admission counts while anything is plugged.
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
    /// Of the last requested size.
    pub phases: Phases,
}

/// Why a size can't be requested.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The partition can't have that size.
    #[error("partition {0} can't have the size")]
    Size(PartitionId, #[source] RequestedSizeError),
    /// Nobody can back it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The partition was given up.
    #[error("partition {0} is being removed")]
    Retired(PartitionId),
    /// An earlier operation failed halfway.
    #[error("partition {0} is out of use because its memory slots are not what they should be")]
    Broken(PartitionId),
}

/// Why the wait for a partition ended without what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Time is up.
    #[error(
        "partition {}: not {goal} after {waited:?}: {} plugged of {} requested, {} being discarded",
        report.id, report.plugged, report.requested, report.discarding
    )]
    Timeout {
        /// What was waited for.
        goal: &'static str,
        /// How long.
        waited: Duration,
        /// Where things stand.
        report: Box<Report>,
    },
    /// The host could not do what the guest asked for.
    #[error("partition {0}: the guest's request failed")]
    Failed(PartitionId, #[source] Arc<EffectError>),
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
            partition: Partition::new(blocks(bytes), blocks(window.granule())),
            charge: Charge::new(admission, window.id(), backing),
            busy: false,
            waker: None,
            put_off: false,
            to_discard: VecDeque::new(),
            settling: false,
            retired: false,
            broken: false,
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
    /// The caller must not hold a snapshot of guest memory: an unplug waits, for a second at most, until nobody holds one in
    /// which the blocks are visible.
    #[must_use]
    pub fn handle(&self, request: Request) -> Handled {
        let mut inner = self.lock();
        if inner.busy {
            inner.put_off = true;
            return Handled::Later;
        }
        if inner.broken && !matches!(request, Request::State(_)) {
            return Handled::Answer(Answer::Busy);
        }
        let mut partition = inner.partition.clone();
        let outcome = partition.request(request);
        let (mut inner, result) = self.perform(inner, partition, &outcome.effects);
        let answer = match result {
            Ok(()) => outcome.answer,
            Err(error) => {
                tracing::warn!(partition = %self.window.id(), ?request, error = ?error, "a request of the guest failed");
                Answer::Busy
            }
        };
        if matches!(answer, Answer::Ack(_)) {
            inner.phases.requests = inner.phases.requests.saturating_add(1);
            // While the host wants everything back the slots go at the end, all at once.
            let gave_a_part = matches!(request, Request::Unplug(_)) && inner.partition.requested().get() != 0;
            if gave_a_part && inner.partition.is_unsettled() && !inner.settling {
                let this = self.this.clone();
                let settle = move || {
                    if let Some(this) = this.upgrade() {
                        this.lock().settling = false;
                        // A failure has been logged, and the partition does nothing any more.
                        let _ = this.settle();
                    }
                };
                inner.settling = self.discards.run(settle).is_ok();
            }
        }
        self.end_turn(inner);
        Handled::Answer(answer)
    }

    /// Has `waker` signalled when a request that was put off may be brought again; `None` ends that.
    pub fn set_waker(&self, waker: Option<EventFd>) {
        let mut inner = self.lock();
        inner.waker = waker;
        inner.put_off = false;
    }

    /// Changes what the host wants plugged, once it has been admitted. The caller tells the guest.
    ///
    /// # Errors
    /// The size is impossible or can't be backed, or the partition is out of use; nothing changed.
    pub fn request_size(&self, size: ByteSize) -> Result<(), RequestError> {
        let id = self.window.id();
        let mut inner = self.idle();
        if inner.retired {
            return Err(RequestError::Retired(id));
        }
        if inner.broken {
            return Err(RequestError::Broken(id));
        }
        let mut partition = inner.partition.clone();
        partition.set_requested(size).map_err(|source| RequestError::Size(id, source))?;
        inner.charge.resize(charge_of(&partition))?;
        inner.partition = partition;
        inner.fault = None;
        inner.phases = Phases::default();
        self.release(inner);
        Ok(())
    }

    /// Makes slots follow what is plugged, granule by granule. For when the guest has stopped giving memory back halfway.
    ///
    /// Not to be called on a vCPU's thread, which has to stop meanwhile, nor on one that a vCPU may wait for.
    ///
    /// # Errors
    /// The hypervisor refused; the partition is out of use.
    pub fn settle(&self) -> Result<(), Arc<EffectError>> {
        let inner = self.idle();
        if inner.broken {
            return inner.fault.clone().map_or(Ok(()), Err);
        }
        let mut partition = inner.partition.clone();
        let effects = partition.settle();
        let (mut inner, result) = self.perform(inner, partition, &effects);
        inner.broken |= result.is_err();
        self.end_turn(inner);
        result
    }

    /// Gives the partition up: no size can be requested any more, so its device may be taken away.
    ///
    /// # Errors
    /// Memory is still plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        let mut inner = self.idle();
        let (plugged, discarding) = (inner.partition.plugged(), inner.partition.discarding());
        if plugged.get() != 0 || discarding.get() != 0 {
            return Err(StillInUse { id: self.window.id(), plugged, discarding });
        }
        // Zero is a size that every partition can have.
        let _ = inner.partition.set_requested(ByteSize::bytes(0));
        let charge = charge_of(&inner.partition);
        let _ = inner.charge.resize(charge);
        inner.retired = true;
        self.release(inner);
        Ok(())
    }

    /// Waits until all that is requested is plugged.
    ///
    /// # Errors
    /// It is not after `timeout`, or the host could not do its part.
    pub fn wait_plugged(&self, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("plugged", timeout, true, |report| report.plugged >= report.requested)
    }

    /// Waits until no more than requested is plugged.
    ///
    /// # Errors
    /// There still is after `timeout`, or the host could not do its part.
    pub fn wait_unplugged(&self, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("unplugged", timeout, true, |report| report.plugged <= report.requested)
    }

    /// Waits until everything that was unplugged has gone back to the host.
    ///
    /// # Errors
    /// It has not after `timeout`.
    pub fn wait_discarded(&self, timeout: Duration) -> Result<Report, WaitError> {
        self.wait("discarded", timeout, false, |report| report.discarding.get() == 0)
    }

    fn wait(
        &self,
        goal: &'static str,
        timeout: Duration,
        heed_faults: bool,
        reached: fn(&Report) -> bool,
    ) -> Result<Report, WaitError> {
        let start = Instant::now();
        let mut inner = self.lock();
        loop {
            // Not during a turn: what is already true then may not have been answered yet.
            if !inner.busy {
                let report = self.figures(&inner);
                if reached(&report) {
                    return Ok(report);
                }
                if let Some(fault) = inner.fault.as_ref().filter(|_| heed_faults) {
                    return Err(WaitError::Failed(self.window.id(), fault.clone()));
                }
            }
            let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
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
                let charge = charge_of(&inner.partition);
                // It never grows here: only a larger requested size makes it.
                let _ = inner.charge.resize(charge);
                Ok(())
            }
            Err(failure) => {
                inner.broken |= failure.slots_in_doubt;
                let error = Arc::new(failure.error);
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
                    this.discarded(blocks, &discarded);
                }
            };
            let mapping = self.effects.mapping().clone();
            if self.discards.discard(mapping, blocks.offset(), blocks.bytes(), done).is_err() {
                // The VM is ending: its mappings go as a whole.
                tracing::debug!(partition = %self.window.id(), %blocks, "not discarded: the discard thread has ended");
            }
        }
    }

    /// Called on the discard thread.
    fn discarded(&self, blocks: BlockRange, discarded: &Discarded) {
        if let Some(error) = &discarded.error {
            tracing::error!(partition = %self.window.id(), %blocks, error = ?error, "cannot discard all of it");
        }
        let mut inner = self.idle();
        if !inner.partition.discard_done(blocks) {
            tracing::error!(partition = %self.window.id(), %blocks, "a discard was done out of order");
        }
        inner.discarded += discarded.freed.get();
        inner.phases.discard += discarded.took;
        inner.phases.discarded = ByteSize::bytes(inner.phases.discarded.get() + discarded.freed.get());
        let charge = charge_of(&inner.partition);
        let _ = inner.charge.resize(charge);
        self.release(inner);
    }

    /// Lets others have the turn. Who waits for an unplug is woken before the thread that frees the memory: where they share a
    /// processor they would have to wait for that.
    fn end_turn(&self, mut inner: MutexGuard<'_, Inner>) {
        let discards = !inner.to_discard.is_empty();
        if std::mem::take(&mut inner.put_off)
            && let Some(waker) = &inner.waker
            && let Err(error) = waker.write(1)
        {
            tracing::error!(partition = %self.window.id(), %error, "cannot wake the device");
        }
        self.release(inner);
        if discards {
            self.queue_discards();
        }
    }

    /// Gives the lock back and wakes who waits for a change: in this order, or they would wake only to wait for the lock.
    fn release(&self, inner: MutexGuard<'_, Inner>) {
        drop(inner);
        self.changed.notify_all();
    }

    fn figures(&self, inner: &Inner) -> Report {
        let partition = &inner.partition;
        Report {
            id: self.window.id(),
            window: partition.window(),
            requested: partition.requested(),
            usable: partition.usable(),
            plugged: partition.plugged(),
            discarding: partition.discarding(),
            slots: partition.slots().len(),
            unplugged: ByteSize::bytes(inner.unplugged),
            discarded: ByteSize::bytes(inner.discarded),
            phases: inner.phases,
        }
    }

    /// The lock, once nobody has the turn. Whoever keeps it has the turn. Turns are short: a drain is limited.
    fn idle(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        while inner.busy {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
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

/// What admission counts: all that the guest can reach, and what has not gone back yet.
fn charge_of(partition: &Partition) -> ByteSize {
    partition.usable().max(partition.discarding())
}

#[cfg(test)]
#[path = "partition_memory_test.rs"]
mod tests;
