//! Serving a queue where one piece of work may take several chains, which the driver gets back together: a received packet in
//! mergeable buffers (VIRTIO 1.2, section 5.1.6.4).
//!
//! Chains are taken off the available ring one by one until there is room enough. Those that turn out not to be needed, or not to be
//! enough, become available again, so that between two pieces of work each chain is either available or used.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use bellows_memory::{GuestMemory, limited};
use event_manager::EventOps;
use virtio_queue::{QueueOwnedT as _, QueueState, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace as _};

use super::{BUDGET, BUDGET_TIME, DeviceQueue, NOTICE_AFTER, Turn, next_chain};
use crate::virtio::chain::{Chain, Segment, Segments};
use crate::virtio::{ActivateError, Activation};

/// Most pieces of guest memory of one group.
const MAX_PIECES: usize = 1024;

/// Chains that are filled together.
pub struct Group {
    segments: Segments,
    /// Head and bytes of each chain.
    chains: Vec<(u16, u64)>,
}

impl Group {
    /// The bytes of all chains, one behind the other.
    #[must_use]
    pub const fn segments(&self) -> &Segments {
        &self.segments
    }

    /// How many chains the first `bytes` take.
    #[must_use]
    pub fn chains_for(&self, bytes: u64) -> usize {
        let mut room = 0;
        let enough = |&(_, chain): &(u16, u64)| {
            room += chain;
            room >= bytes
        };
        self.chains.iter().position(enough).map_or(self.chains.len(), |last| last + 1)
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.chains.clear();
    }

    /// Adds a chain; `false` if the group cannot take it.
    fn add(&mut self, chain: &Chain) -> bool {
        let fits = self.segments.len() + chain.len() <= MAX_PIECES && self.chains.len() < self.chains.capacity();
        if fits {
            chain.writable.part(0, u64::MAX).for_each(|segment: Segment| self.segments.push(segment));
            self.chains.push((chain.head(), chain.writable.bytes()));
        }
        fits
    }
}

/// Fills groups of chains.
pub trait GroupHandler {
    /// Whether a group can be filled now. `false` leaves all chains where they are.
    fn is_ready(&mut self) -> bool;

    /// Whether `chain` can be part of a group. One that cannot is given back unused.
    fn accepts(&mut self, chain: &Chain, memory: &GuestMemory) -> bool;

    /// Bytes of room to gather, if there is as much, before [`GroupHandler::fill`]; a group has at least one chain.
    fn wanted(&self) -> u64;

    /// Fills the group.
    fn fill(&mut self, group: &Group, memory: &GuestMemory) -> Filled;

    /// [`Filled::More`] was asked for, and there is no more now: the chains become available again, so nothing that has to last
    /// may stay in them.
    fn keep(&mut self, group: &Group, memory: &GuestMemory);

    /// [`Filled::More`] was asked for, and there never will be more.
    fn discard(&mut self);
}

/// The result of filling a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Filled {
    /// This many bytes were written from the group's start on; the chains that they lie in are used, the others are not.
    Used(u64),
    /// The group is too small: call again with more chains.
    More,
    /// Nothing was used; go on with the next.
    Nothing,
    /// Nothing was used, and the queue is left alone until it is served again.
    NotYet,
}

/// A queue that is served in groups.
pub struct GroupQueue {
    queue: DeviceQueue,
    group: Group,
    /// The used index when the driver was last notified, or might have been.
    told: Wrapping<u16>,
}

impl GroupQueue {
    /// As [`DeviceQueue::take`].
    ///
    /// # Errors
    /// The driver did not enable that queue.
    pub fn take(activation: &mut Activation, index: u16) -> Result<Self, ActivateError> {
        let queue = DeviceQueue::take(activation, index)?;
        let size = usize::from(queue.queue.size());
        let told = Wrapping(queue.queue.next_used());
        let group = Group { segments: Segments::with_capacity(MAX_PIECES), chains: Vec::with_capacity(size) };
        Ok(Self { queue, group, told })
    }

    /// As [`DeviceQueue::listen`].
    pub fn listen(&self, data: u32, ops: &mut EventOps) {
        self.queue.listen(data, ops);
    }

    /// Takes the driver's kick and serves the queue.
    pub fn kicked(&mut self, handler: &mut impl GroupHandler) {
        let _ = self.queue.kick.read();
        self.serve(handler);
    }

    /// As [`DeviceQueue::serve`].
    pub fn serve(&mut self, handler: &mut impl GroupHandler) {
        if self.queue.broken {
            return;
        }
        match self.serve_turn(handler) {
            Ok(Turn::Done) => {}
            Ok(Turn::Unfinished) => self.queue.wake(),
            Err(error) => {
                limited!(warn, queue = self.queue.index, %error, "the driver broke the queue: it must reset the device");
                self.queue.broken = true;
                self.queue.interrupt.needs_reset();
            }
        }
    }

    /// How far the queue was served.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn serve_turn(&mut self, handler: &mut impl GroupHandler) -> Result<Turn, virtio_queue::Error> {
        if !handler.is_ready() {
            return Ok(Turn::Done);
        }
        self.queue.queue.disable_notification(&*self.queue.memory.memory())?;
        let begin = Instant::now();
        let mut last_notice = begin;
        let mut turn = Turn::Unfinished;
        for _ in 0..BUDGET {
            let now = Instant::now();
            if now - last_notice >= NOTICE_AFTER {
                self.notify()?;
                last_notice = now;
            }
            if now - begin >= BUDGET_TIME {
                break;
            }
            if !handler.is_ready() || self.serve_group(handler)? {
                turn = Turn::Done;
                break;
            }
        }
        self.notify()?;
        Ok(turn)
    }

    /// Gathers a group and has it filled. Returns whether the queue is to be left alone.
    fn serve_group(&mut self, handler: &mut impl GroupHandler) -> Result<bool, virtio_queue::Error> {
        self.group.clear();
        let memory = self.queue.memory.memory();
        // A driver can move its index back and forth.
        let mut looks = 2 * usize::from(self.queue.queue.size()) + 2;
        // Once set, what comes next in the ring cannot be part of this group, now or later.
        let mut blocked = false;
        loop {
            let exhausted = loop {
                let enough = !self.group.chains.is_empty() && self.group.segments.bytes() >= handler.wanted();
                if blocked || enough {
                    break false;
                }
                looks = looks.saturating_sub(1);
                let Some(descriptors) = next_chain(&mut self.queue.queue, memory.clone())? else {
                    if looks > 0 && self.queue.queue.enable_notification(&*memory)? {
                        continue;
                    }
                    break true;
                };
                self.queue.chain.load(descriptors);
                let chain = &self.queue.chain;
                let accepted = handler.accepts(chain, &memory);
                if accepted && self.group.add(chain) {
                    continue;
                }
                if self.group.chains.is_empty() {
                    let head = chain.head();
                    self.queue.queue.add_used(&*memory, head, 0)?;
                    return Ok(false);
                }
                self.queue.queue.go_to_previous_position();
                blocked = true;
            };
            if self.group.chains.is_empty() {
                return Ok(exhausted);
            }
            let whole_ring = self.group.chains.len() == self.group.chains.capacity();
            let (used, done) = match handler.fill(&self.group, &memory) {
                Filled::Used(bytes) => (self.publish(&memory, bytes)?, false),
                Filled::More if blocked || whole_ring => {
                    handler.discard();
                    (0, false)
                }
                Filled::More if exhausted => {
                    handler.keep(&self.group, &memory);
                    (0, true)
                }
                Filled::More => continue,
                Filled::Nothing => (0, false),
                Filled::NotYet => (0, true),
            };
            for _ in used..self.group.chains.len() {
                self.queue.queue.go_to_previous_position();
            }
            return Ok(done);
        }
    }

    /// Gives back the chains that hold the first `bytes` of the group, all in one step for the driver: how many.
    fn publish(&mut self, memory: &GuestMemory, bytes: u64) -> Result<usize, virtio_queue::Error> {
        let count = self.group.chains_for(bytes);
        let queue = &mut self.queue.queue;
        let first = queue.next_used();
        let mut left = bytes;
        for (position, &(head, room)) in (0..).zip(&self.group.chains[..count]) {
            let written = left.min(room);
            left -= written;
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            let place = first.wrapping_add(position);
            if usize::from(position) + 1 == count {
                // Writes the last entry, and the index behind all of them.
                queue.set_next_used(place);
                queue.add_used(memory, head, written)?;
            } else {
                let entry = [u32::from(head).to_le(), written.to_le()];
                let offset = USED_RING_ENTRIES + USED_RING_ENTRY * u64::from(place % queue.size());
                let address = queue.used_ring().checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?;
                memory.write_obj(entry, GuestAddress(address)).map_err(virtio_queue::Error::GuestMemory)?;
            }
        }
        Ok(count)
    }

    /// Interrupts the driver for chains given back since the last time, if it asked for that (sections 2.7.7 and 2.7.10). The
    /// library's own account of them is by calls, not by chains.
    fn notify(&mut self) -> Result<(), virtio_queue::Error> {
        let queue = &self.queue.queue;
        let used = Wrapping(queue.next_used());
        let told = std::mem::replace(&mut self.told, used);
        if used == told {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        let wanted = if queue.event_idx_enabled() {
            let memory = self.queue.memory.memory();
            let offset = super::AVAIL_RING_ENTRIES + super::AVAIL_RING_ENTRY * u64::from(queue.size());
            let address = queue.avail_ring().checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?;
            let event: u16 =
                memory.load(GuestAddress(address), Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
            used - Wrapping(u16::from_le(event)) - Wrapping(1) < used - told
        } else {
            true
        };
        if wanted {
            self.queue.interrupt.queue(self.queue.index);
        }
        Ok(())
    }
}

/// Offset of the entries of a used ring, and the size of one (VIRTIO 1.2, section 2.7.8).
const USED_RING_ENTRIES: u64 = 4;
const USED_RING_ENTRY: u64 = 8;

#[cfg(test)]
#[path = "group_test.rs"]
mod tests;
