//! What is plugged in one partition, and what has to happen around it.
//!
//! A block is `Unplugged -> Plugged -> Discarding -> Unplugged`:
//!
//! ```text
//!               PLUG                    UNPLUG, UNPLUG_ALL                discard_done
//!   Unplugged ---------> Plugged ---------------------------> Discarding --------------> Unplugged
//! ```
//!
//! A PLUG that meets `Discarding` is answered BUSY: a discard that comes late must never destroy new data.
//!
//! The partition answers the guest's requests (VIRTIO 1.2 section 5.15.6) and says in [`Effect`]s what the shell around
//! it has to do before the answer may be given. It touches nothing itself: to try an operation and drop it, clone.
//!
//! # Slots
//!
//! - A partition of which nothing is plugged has no slot. The first PLUG makes one as large as the target, in whole
//!   granules, so that filling a partition costs one slot.
//! - While the host wants everything back (target 0) slots stay until the last block is gone, and then go as a
//!   whole. UNPLUG_ALL and the last UNPLUG do the same whatever the target is.
//! - [`Partition::trim_slots`] makes slots follow granules (the guest's memory blocks) where the guest stopped halfway or keeps
//!   a part: a granule without a plugged block loses its slot.
//! - Where a guest plugs blocks here and there, so that whole granules would let it reach more than the target, a slot
//!   covers just the blocks. All that slots cover is in [`Partition::reach`], which admission counts.
//! - An unplugged block in a granule that is still partly plugged was discarded but can be touched again through the slot.
//!   Whenever a slot goes, all of it is discarded once more, so nothing that was touched in between stays behind.

use std::collections::VecDeque;

use super::plug_state::{InvalidTarget, PlugState, PlugStateError, check_order};
use super::request::{Answer, BlockState, Request};
use crate::ByteSize;
use crate::blocks::{BLOCK, BlockRange, BlockSet};

/// The state of one partition.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Blocks that the host may want plugged at most.
    window: u32,
    /// Blocks that the guest has addresses for: the window in whole granules.
    blocks: u32,
    /// Blocks of a granule.
    granule: u32,
    plugged: BlockSet,
    discarding: BlockSet,
    /// Discards that were asked for and not yet done. They may overlap.
    pending: VecDeque<BlockRange>,
    /// Disjoint, in order of address.
    slots: Vec<BlockRange>,
    /// Blocks that the host wants plugged.
    target: u32,
    /// Blocks from the start of the window that the guest may plug.
    usable: u32,
}

impl Partition {
    /// A partition that may have `window` blocks plugged and has none, whose slots follow granules of `granule` blocks (at
    /// least one). The guest has addresses for whole granules.
    #[must_use]
    pub fn new(window: u32, granule: u32) -> Self {
        let granule = granule.max(1);
        let blocks = window.div_ceil(granule).saturating_mul(granule);
        Self {
            window,
            blocks,
            granule,
            plugged: BlockSet::new(blocks),
            discarding: BlockSet::new(blocks),
            pending: VecDeque::new(),
            slots: Vec::new(),
            target: 0,
            usable: 0,
        }
    }

    /// Answers a request of the guest.
    #[must_use]
    pub fn request(&mut self, request: Request) -> Outcome {
        match request {
            Request::Plug(range) => self.plug(range),
            Request::Unplug(range) => self.unplug(range),
            Request::UnplugAll => self.unplug_all(),
            Request::State(range) => self.state(range),
        }
    }

    /// PLUG: all of `range` must be unplugged and usable (section 5.15.6.1), and no more plugged in the end than the target.
    #[must_use]
    pub fn plug(&mut self, range: BlockRange) -> Outcome {
        if !self.is_usable(range) {
            return answer(Answer::Error);
        }
        if self.plugged.any(range) {
            return answer(Answer::Error);
        }
        if range.count() > self.target.saturating_sub(self.plugged.len()) {
            return answer(Answer::Nack);
        }
        if self.discarding.any(range) {
            return answer(Answer::Busy);
        }
        let mut effects = vec![Effect::Back(range)];
        self.plugged.insert(range);
        self.add_slots(range, &mut effects);
        effects.push(Effect::Reveal(range));
        Outcome { answer: Answer::Done, effects }
    }

    /// UNPLUG: all of `range` must be plugged.
    #[must_use]
    pub fn unplug(&mut self, range: BlockRange) -> Outcome {
        if !self.is_usable(range) || !self.plugged.all(range) {
            return answer(Answer::Error);
        }
        let mut effects = vec![Effect::Revoke(vec![range])];
        self.plugged.remove(range);
        if self.plugged.is_empty() {
            self.withdraw(&mut effects);
        } else {
            self.discard(range, &mut effects);
        }
        Outcome { answer: Answer::Done, effects }
    }

    /// UNPLUG_ALL: whatever is plugged. Only here may the usable region shrink (section 5.15.4.2): the driver reads the
    /// configuration again afterwards. At any other time a PLUG may be under way that the driver chose by the old size, and
    /// Linux gives a device up that answers it with an error.
    #[must_use]
    pub fn unplug_all(&mut self) -> Outcome {
        let mut effects = Vec::new();
        if !self.plugged.is_empty() {
            // One effect for all, so that devices are waited for once.
            effects.push(Effect::Revoke(self.plugged.runs().collect()));
        }
        self.plugged = BlockSet::new(self.blocks);
        self.withdraw(&mut effects);
        self.usable = self.whole_granules(self.target);
        Outcome { answer: Answer::Done, effects }
    }

    /// STATE of `range`. A block that waits for its discard is unplugged as far as the guest is concerned.
    #[must_use]
    pub fn state(&self, range: BlockRange) -> Outcome {
        if !self.is_usable(range) {
            return answer(Answer::Error);
        }
        let state = match self.plugged.count(range) {
            0 => BlockState::Unplugged,
            n if n == range.count() => BlockState::Plugged,
            _ => BlockState::Mixed,
        };
        answer(Answer::State(state))
    }

    /// Sets how much the host wants plugged. Nothing happens until the guest asks.
    ///
    /// # Errors
    /// `size` is not made of whole blocks or larger than the window; nothing changed.
    pub fn set_target(&mut self, size: ByteSize) -> Result<(), InvalidTarget> {
        let window = self.window();
        if !size.is_multiple_of(BLOCK) {
            return Err(InvalidTarget::Unaligned(size));
        }
        self.target = match u32::try_from(size.get() / BLOCK.get()) {
            Ok(blocks) if blocks <= self.window => blocks,
            _ => return Err(InvalidTarget::BeyondWindow { target: size, window }),
        };
        self.usable = self.usable.max(self.whole_granules(self.target));
        Ok(())
    }

    /// Makes slots follow granules. Nothing to do unless [`Partition::can_trim_slots`].
    #[must_use]
    pub fn trim_slots(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut dropped = Vec::new();
        let mut trimmed = Vec::with_capacity(self.slots.len());
        for slot in std::mem::take(&mut self.slots) {
            let kept = self.plugged_granules(slot);
            if kept.as_slice() == [slot] {
                trimmed.push(slot);
                continue;
            }
            let mut at = slot.first();
            for part in &kept {
                dropped.extend(BlockRange::between(at, part.first()));
                at = part.end();
            }
            dropped.extend(BlockRange::between(at, slot.end()));
            effects.push(match kept.as_slice() {
                [] => Effect::DeleteSlot(slot),
                _ => Effect::ReplaceSlot { old: slot, new: kept.clone() },
            });
            trimmed.extend(kept);
        }
        self.slots = trimmed;
        for range in dropped {
            self.discard(range, &mut effects);
        }
        effects
    }

    /// Whether a granule has a slot but no plugged block, so that [`Partition::trim_slots`] has something to do.
    #[must_use]
    pub fn can_trim_slots(&self) -> bool {
        self.slots.iter().any(|&slot| self.plugged_granules(slot).as_slice() != [slot])
    }

    /// A discard of `range` is done. One that is never reported keeps its blocks from being plugged.
    ///
    /// Returns false, and changes nothing, if there was none to be done.
    #[must_use]
    pub fn discard_done(&mut self, range: BlockRange) -> bool {
        let Some(index) = self.pending.iter().position(|pending| *pending == range) else { return false };
        self.pending.remove(index);
        self.discarding.remove(range);
        for again in &self.pending {
            if again.overlaps(range) {
                self.discarding.insert(*again);
            }
        }
        true
    }

    /// The plugged blocks from block `from` on: the first run of them, or as much of it as `most` blocks.
    #[must_use]
    pub fn plugged_from(&self, from: u32, most: u32) -> Option<BlockRange> {
        let rest = |run: BlockRange| BlockRange::between(run.first().max(from), run.end());
        let run = self.plugged.runs().find_map(rest)?;
        BlockRange::new(run.first(), run.count().min(most))
    }

    /// The state as plain data.
    #[must_use]
    pub fn save(&self) -> PlugState {
        PlugState {
            target: self.target(),
            usable: self.usable(),
            plugged: self.plugged.runs().collect(),
            slots: self.slots.clone(),
            discards: self.pending.iter().copied().collect(),
        }
    }

    /// A partition as [`Partition::new`] makes it that goes on where `state` was saved.
    ///
    /// # Errors
    /// No such partition can be in this state.
    pub fn restore(window: u32, granule: u32, state: &PlugState) -> Result<Self, PlugStateError> {
        let mut partition = Self::new(window, granule);
        partition.set_target(state.target)?;
        partition.usable = partition.checked_usable(state.usable)?;
        let (usable, blocks) = (partition.usable, partition.blocks);
        check_order("plugged", &state.plugged, usable)?;
        check_order("slot", &state.slots, usable)?;
        state.plugged.iter().for_each(|&run| partition.plugged.insert(run));
        partition.slots.clone_from(&state.slots);
        for &run in &state.plugged {
            let covered: u32 =
                state.slots.iter().filter_map(|slot| slot.intersection(run)).map(BlockRange::count).sum();
            if covered != run.count() {
                return Err(PlugStateError::NoSlot(run));
            }
        }
        if let (Some(&slot), true) = (state.slots.first(), partition.plugged.is_empty()) {
            return Err(PlugStateError::IdleSlot(slot));
        }
        for &range in &state.discards {
            if range.end() > blocks {
                return Err(PlugStateError::Beyond { what: "discard", range, limit: blocks });
            }
            if partition.plugged.any(range) {
                return Err(PlugStateError::PluggedDiscard(range));
            }
            partition.discarding.insert(range);
            partition.pending.push_back(range);
        }
        Ok(partition)
    }

    /// What has to be done around a partition that was restored, apart from the discards that are due.
    #[must_use]
    pub fn arrival(&self) -> Vec<Effect> {
        let back = self.plugged.runs().map(Effect::Back);
        let add = self.slots.iter().copied().map(Effect::AddSlot);
        let reveal = self.plugged.runs().map(Effect::Reveal);
        back.chain(add).chain(reveal).collect()
    }

    /// The largest target.
    #[must_use]
    pub fn window(&self) -> ByteSize {
        bytes(self.window)
    }

    /// How much the host wants plugged.
    #[must_use]
    pub fn target(&self) -> ByteSize {
        bytes(self.target)
    }

    /// How far into its addresses the guest may plug: the largest target since the last UNPLUG_ALL, in whole granules.
    #[must_use]
    pub fn usable(&self) -> ByteSize {
        bytes(self.usable)
    }

    /// What the guest may come to have of the host's memory, so what admission counts: all that slots cover and what else waits
    /// for its discard; or the target, in whole granules as far as the window goes, where that is more.
    #[must_use]
    pub fn reach(&self) -> ByteSize {
        bytes(self.held().max(self.wanted()))
    }

    /// How much is plugged.
    #[must_use]
    pub fn plugged(&self) -> ByteSize {
        bytes(self.plugged.len())
    }

    /// How much waits for its discard.
    #[must_use]
    pub fn discarding(&self) -> ByteSize {
        bytes(self.discarding.len())
    }

    /// The slots there are, in order of address.
    #[must_use]
    pub fn slots(&self) -> &[BlockRange] {
        &self.slots
    }

    /// What is plugged, in order of address.
    pub fn plugged_runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.plugged.runs()
    }

    /// A usable region that the target and the window allow, in blocks.
    fn checked_usable(&self, usable: ByteSize) -> Result<u32, PlugStateError> {
        let (least, most) = (self.whole_granules(self.target), self.blocks);
        match u32::try_from(usable.get() / BLOCK.get()) {
            Ok(blocks) if bytes(blocks) == usable && blocks % self.granule == 0 && (least..=most).contains(&blocks) => {
                Ok(blocks)
            }
            _ => Err(PlugStateError::Usable {
                usable,
                granule: bytes(self.granule),
                least: bytes(least),
                most: bytes(most),
            }),
        }
    }

    fn is_usable(&self, range: BlockRange) -> bool {
        range.end() <= self.usable
    }

    /// All slots go, because nothing is plugged any more.
    fn withdraw(&mut self, effects: &mut Vec<Effect>) {
        let slots = std::mem::take(&mut self.slots);
        effects.extend(slots.iter().copied().map(Effect::DeleteSlot));
        for slot in slots {
            self.discard(slot, effects);
        }
    }

    fn discard(&mut self, range: BlockRange, effects: &mut Vec<Effect>) {
        self.discarding.insert(range);
        self.pending.push_back(range);
        effects.push(Effect::Discard(range));
    }

    fn whole_granules(&self, blocks: u32) -> u32 {
        blocks.div_ceil(self.granule).saturating_mul(self.granule).min(self.blocks)
    }

    /// Blocks that slots are made for ahead of what the guest plugs.
    fn wanted(&self) -> u32 {
        self.whole_granules(self.target).min(self.window)
    }

    /// Blocks that may have host memory: in slots, or waiting for their discard.
    fn held(&self) -> u32 {
        let inside: u32 = self.slots.iter().map(|&slot| slot.count() - self.discarding.count(slot)).sum();
        inside + self.discarding.len()
    }

    /// Gives slots to what of `range`, just plugged, has none.
    fn add_slots(&mut self, range: BlockRange, effects: &mut Vec<Effect>) {
        let mut room = self.wanted().saturating_sub(self.held());
        let mut added = Vec::new();
        let mut start = 0;
        let ends = self.slots.iter().map(|slot| (slot.first(), slot.end())).chain([(self.usable, self.usable)]);
        for (end, next) in ends {
            if let Some(gap) = BlockRange::between(start, end)
                && let Some(part) = gap.intersection(range)
            {
                let slot = self.slot_for(part, gap, room);
                room = room.saturating_sub(slot.count());
                added.push(slot);
            }
            start = next;
        }
        effects.extend(added.iter().copied().map(Effect::AddSlot));
        self.slots.extend(added);
        self.slots.sort_unstable_by_key(|slot| slot.first());
    }

    /// The slot in `gap` for `part` of it: all that the host still wants covered, which is `room` blocks; at least whole granules
    /// if there is room for these; else no more than has to be.
    fn slot_for(&self, part: BlockRange, gap: BlockRange, room: u32) -> BlockRange {
        if gap.count() <= room {
            return gap;
        }
        let first = (part.first() / self.granule * self.granule).max(gap.first());
        let end = self.whole_granules(part.end()).min(gap.end());
        match BlockRange::between(first, gap.end().min(first.saturating_add(room))) {
            Some(slot) if slot.end() >= end => slot,
            _ => part,
        }
    }

    /// The parts of `slot` whose granules have a plugged block, neighbours joined.
    fn plugged_granules(&self, slot: BlockRange) -> Vec<BlockRange> {
        let mut parts: Vec<BlockRange> = Vec::new();
        let mut first = slot.first();
        while first < slot.end() {
            let end = (first / self.granule + 1).saturating_mul(self.granule).min(slot.end());
            if let Some(granule) = BlockRange::between(first, end)
                && self.plugged.any(granule)
            {
                match parts.last_mut() {
                    Some(last) if last.end() == first => *last = last.join(granule),
                    _ => parts.push(granule),
                }
            }
            first = end;
        }
        parts
    }
}

/// One thing for the shell to do. Effects are carried out in order, before the answer is given; only a discard is merely
/// queued by then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Give the blocks host memory, where the backing has to be reserved.
    Back(BlockRange),
    /// Let the guest reach the blocks.
    AddSlot(BlockRange),
    /// Let devices reach the blocks.
    Reveal(BlockRange),
    /// End the devices' access to the runs, in order of address, requests in flight included. Nothing between them is plugged.
    Revoke(Vec<BlockRange>),
    /// End the guest's access to the blocks, which are a slot as it was added.
    DeleteSlot(BlockRange),
    /// Replace a slot by parts of it, while no vCPU runs.
    ReplaceSlot {
        /// The slot as it was added.
        old: BlockRange,
        /// Its parts that stay.
        new: Vec<BlockRange>,
    },
    /// Free the host memory of the blocks, then call [`Partition::discard_done`].
    Discard(BlockRange),
}

/// An answer and what has to be done before it is given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// What to answer.
    pub answer: Answer,
    /// What to do first, in order. Empty unless the answer is [`Answer::Done`].
    pub effects: Vec<Effect>,
}

fn answer(answer: Answer) -> Outcome {
    Outcome { answer, effects: Vec::new() }
}

fn bytes(blocks: u32) -> ByteSize {
    ByteSize::bytes(u64::from(blocks) * BLOCK.get())
}

#[cfg(test)]
#[path = "state_model_test.rs"]
mod model_tests;
#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
