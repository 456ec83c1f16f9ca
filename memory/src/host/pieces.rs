//! How many pieces the mappings behind a partition are in, with huge pages out of the host's pool.
//!
//! Each range that is backed is a mapping of its own, which the kernel never joins with its neighbours; what is discarded in
//! between is another. A process may have some 65,000 mappings in all (`vm.max_map_count`), and can neither discard nor
//! allocate nor start a thread beyond that: so the pieces of all guests together are bounded.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::blocks::{BlockRange, BlockSet};

/// Pieces that guests may cut the memory of this process into, beyond one for each partition.
pub(crate) const MAX_PIECES: u32 = 16 << 10;

/// The cuts of all partitions of this process.
static CUTS: AtomicU32 = AtomicU32::new(0);

/// Where the mappings of one partition are cut.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    backed: BlockSet,
    /// The blocks that begin a piece, except the first block.
    cuts: BlockSet,
}

/// The cuts of one partition, counted with those of all others for as long as it exists.
pub(crate) struct CountedPieces {
    pieces: Pieces,
    total: &'static AtomicU32,
}

/// The guests of this process may not cut their memory into more pieces.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("huge pages would be in more than the {MAX_PIECES} pieces that this process may have")]
pub struct TooManyPieces;

impl CountedPieces {
    pub(crate) fn new(blocks: u32) -> Self {
        Self { pieces: Pieces::new(blocks), total: &CUTS }
    }

    /// Makes room for `range` to become one mapping of huge pages.
    pub(crate) fn back(&mut self, range: BlockRange) -> Result<(), TooManyPieces> {
        self.change(|pieces| pieces.back(range))
    }

    /// Makes room for `range` to be discarded apart from what lies beside it.
    pub(crate) fn cut_out(&mut self, range: BlockRange) -> Result<(), TooManyPieces> {
        self.change(|pieces| pieces.cut_out(range))
    }

    /// `range` was discarded, for which there was room.
    pub(crate) fn discard(&mut self, range: BlockRange) {
        let before = self.pieces.cuts.len();
        self.pieces.discard(range);
        let after = self.pieces.cuts.len();
        // Wraps where there are fewer now, as a subtraction does.
        self.total.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    fn change(&mut self, change: impl FnOnce(&mut Pieces)) -> Result<(), TooManyPieces> {
        let mut pieces = self.pieces.clone();
        change(&mut pieces);
        let (before, after) = (self.pieces.cuts.len(), pieces.cuts.len());
        let counted = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
            let new = total.wrapping_sub(before).wrapping_add(after);
            (after <= before || new <= MAX_PIECES).then_some(new)
        });
        counted.map_err(|_| TooManyPieces)?;
        self.pieces = pieces;
        Ok(())
    }
}

impl Drop for CountedPieces {
    fn drop(&mut self) {
        self.total.fetch_sub(self.pieces.cuts.len(), Ordering::Relaxed);
    }
}

impl Pieces {
    pub(crate) fn new(blocks: u32) -> Self {
        Self { backed: BlockSet::new(blocks), cuts: BlockSet::new(blocks) }
    }

    /// `range` becomes one mapping of huge pages.
    fn back(&mut self, range: BlockRange) {
        self.uncut(range);
        self.backed.insert(range);
        self.cut(range.first());
        self.cut(range.end());
    }

    /// `range` is separated from what lies beside it.
    fn cut_out(&mut self, range: BlockRange) {
        self.cut(range.first());
        self.cut(range.end());
    }

    /// `range` becomes a mapping without huge pages, which the kernel joins with such neighbours.
    fn discard(&mut self, range: BlockRange) {
        self.uncut(range);
        self.backed.remove(range);
        for (edge, outside) in [(range.first(), range.first().checked_sub(1)), (range.end(), Some(range.end()))] {
            let outside = outside.and_then(|block| BlockRange::new(block, 1));
            if outside.is_some_and(|block| self.backed.any(block)) {
                self.cut(edge);
            } else if let Some(edge) = BlockRange::new(edge, 1) {
                self.cuts.remove(edge);
            }
        }
    }

    fn cut(&mut self, block: u32) {
        if block != 0
            && let Some(block) = BlockRange::new(block, 1)
        {
            self.cuts.insert(block);
        }
    }

    /// No piece begins inside `range`.
    fn uncut(&mut self, range: BlockRange) {
        if let Some(inside) = BlockRange::between(range.first() + 1, range.end()) {
            self.cuts.remove(inside);
        }
    }
}

#[cfg(test)]
#[path = "pieces_test.rs"]
mod tests;
