//! Pushing what is plugged out to the host's swap, where the guest does not need it for a while.

use std::time::{Duration, Instant};

use super::PartitionMemory;
use crate::ByteSize;
use crate::blocks::{BLOCK, BlockRange};
use crate::host::{MapError, STEP};

/// Blocks of one turn: those of one system call.
const STEP_BLOCKS: u32 = (STEP as u64 / BLOCK.get()) as u32;

impl PartitionMemory {
    /// Has the host push what is plugged out to its swap. Nothing is lost: an access of the guest or of a device brings a page
    /// back. What the host has not yet written to a slow swap when this returns counts as resident.
    ///
    /// It goes step by step, each in a turn of its own, so that no page of a block is pushed out while that block is plugged,
    /// unplugged or discarded, and a request of the guest waits for one step at most. No step begins after `limit`.
    ///
    /// # Errors
    /// The host's kernel refused, or huge pages are reserved for the partition, which stay in memory.
    pub fn page_out(&self, limit: Duration) -> Result<PagedOut, MapError> {
        let (start, mapping) = (Instant::now(), self.effects.mapping());
        mapping.check_pages_go()?;
        let mut paged_out = PagedOut { complete: true, ..PagedOut::default() };
        let mut from = 0;
        while start.elapsed() < limit {
            let turn = self.turns.take();
            let Some(step) = turn.with(|inner| inner.partition.plugged_from(from, STEP_BLOCKS)) else {
                return Ok(paged_out);
            };
            let before = mapping.resident(step.offset(), step.bytes())?;
            if before != 0 {
                mapping.page_out(step.offset(), step.bytes())?;
                let after = mapping.resident(step.offset(), step.bytes())?;
                paged_out.bytes = paged_out.bytes.plus(ByteSize::bytes(before.saturating_sub(after)));
            }
            from = step.end();
        }
        paged_out.complete = self.turns.look(|inner| inner.partition.plugged_from(from, 1)).is_none();
        Ok(paged_out)
    }

    /// How much of what is plugged lies in the host's memory.
    ///
    /// # Errors
    /// The host's kernel cannot tell.
    pub fn resident(&self) -> Result<ByteSize, MapError> {
        let plugged: Vec<BlockRange> = self.turns.look(|inner| inner.partition.save().plugged);
        let resident = plugged.iter().map(|run| self.effects.mapping().resident(run.offset(), run.bytes()));
        resident.sum::<Result<u64, MapError>>().map(ByteSize::bytes)
    }
}

/// What was pushed out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PagedOut {
    /// Bytes that were resident before, and are not any more.
    pub bytes: ByteSize,
    /// All that is plugged was looked at, before time was up.
    pub complete: bool,
}
