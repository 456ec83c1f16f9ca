//! Blocks, the unit that a partition is plugged and unplugged in.
//!
//! ```
//! use bellows_memory::blocks::{BlockRange, BlockSet};
//!
//! let mut plugged = BlockSet::new(64);
//! let range = BlockRange::new(8, 16).ok_or("a range has blocks")?;
//! plugged.insert(range);
//! assert_eq!((plugged.count(range), range.bytes()), (16, 32 << 20));
//! assert_eq!(plugged.runs().collect::<Vec<_>>(), [range]);
//! # Ok::<(), &str>(())
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// Size of a block: what one x86-64 huge page covers, and the smallest unit Linux plugs.
pub const BLOCK: ByteSize = ByteSize::mib(2);

/// One or more neighbouring blocks of a partition, counted from the start of its window.
///
/// Neither empty nor past `u32::MAX` by construction; whether it lies in the window is the partition's to check.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "Plain", into = "Plain")]
pub struct BlockRange {
    first: u32,
    end: u32,
}

impl BlockRange {
    /// `count` blocks from block `first` on; `None` if `count` is 0 or the range runs past `u32::MAX`.
    #[must_use]
    pub const fn new(first: u32, count: u32) -> Option<Self> {
        match first.checked_add(count) {
            Some(end) if count != 0 => Some(Self { first, end }),
            _ => None,
        }
    }

    /// The blocks from `first` up to and without `end`; `None` if that is empty.
    #[must_use]
    pub const fn between(first: u32, end: u32) -> Option<Self> {
        if first < end { Some(Self { first, end }) } else { None }
    }

    /// The first block.
    #[must_use]
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The block behind the last.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// Number of blocks, at least one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.end - self.first
    }

    /// Bytes from the start of the window to the first block.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.first as u64 * BLOCK.get()
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count() as u64 * BLOCK.get()
    }

    /// Whether a block is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }

    /// Whether all of `other` is in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.end <= self.end
    }

    /// The blocks that are in both, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.first.max(other.first), self.end.min(other.end))
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), end: self.end.max(other.end) }
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.first, self.end)
    }
}

/// A range of blocks as it is written down.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    first: u32,
    count: u32,
}

/// Numbers that are not a range of blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{count} blocks from block {first} on: expected at least one, and none beyond block {}", u32::MAX)]
pub struct NoBlocks {
    /// The first block.
    pub first: u32,
    /// Number of blocks.
    pub count: u32,
}

impl From<BlockRange> for Plain {
    fn from(range: BlockRange) -> Self {
        Self { first: range.first, count: range.count() }
    }
}

impl TryFrom<Plain> for BlockRange {
    type Error = NoBlocks;

    fn try_from(Plain { first, count }: Plain) -> Result<Self, NoBlocks> {
        Self::new(first, count).ok_or(NoBlocks { first, count })
    }
}

/// A set of blocks of one partition, one bit each.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlockSet {
    words: Vec<u64>,
    blocks: u32,
    len: u32,
}

impl BlockSet {
    /// The empty set over blocks `0..blocks`.
    #[must_use]
    pub fn new(blocks: u32) -> Self {
        Self { words: vec![0; blocks.div_ceil(64) as usize], blocks, len: 0 }
    }

    /// How many blocks are in the set.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no block is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `range` into the set. Blocks beyond the set's are ignored.
    pub fn insert(&mut self, range: BlockRange) {
        for (word, mask) in masks(range, self.blocks) {
            self.len += (mask & !self.words[word]).count_ones();
            self.words[word] |= mask;
        }
    }

    /// Takes `range` out of the set.
    pub fn remove(&mut self, range: BlockRange) {
        for (word, mask) in masks(range, self.blocks) {
            self.len -= (mask & self.words[word]).count_ones();
            self.words[word] &= !mask;
        }
    }

    /// How many blocks of `range` are in the set.
    #[must_use]
    pub fn count(&self, range: BlockRange) -> u32 {
        masks(range, self.blocks).map(|(word, mask)| (mask & self.words[word]).count_ones()).sum()
    }

    /// Whether any block of `range` is in the set.
    #[must_use]
    pub fn any(&self, range: BlockRange) -> bool {
        masks(range, self.blocks).any(|(word, mask)| mask & self.words[word] != 0)
    }

    /// Whether every block of `range` is in the set.
    #[must_use]
    pub fn all(&self, range: BlockRange) -> bool {
        self.count(range) == range.count()
    }

    /// The maximal runs of neighbouring blocks in the set, in order.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            let end = self.next(first, false).unwrap_or(self.blocks);
            at = end;
            BlockRange::between(first, end)
        })
    }

    /// The first block from `at` on that is in the set (`present`) or is not.
    fn next(&self, at: u32, present: bool) -> Option<u32> {
        let mut at = at;
        while at < self.blocks {
            let word = self.words[(at / 64) as usize];
            let word = (if present { word } else { !word }) >> (at % 64);
            if word != 0 {
                let found = at + word.trailing_zeros();
                return (found < self.blocks).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

/// The words that `range` touches among `blocks` blocks, each with the bits of the range.
fn masks(range: BlockRange, blocks: u32) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (range.first, range.end.min(blocks));
    let words = if first < end { first / 64..end.div_ceil(64) } else { 0..0 };
    words.map(move |word| {
        let low = first.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        (word as usize, (u64::MAX >> (64 - (high - low))) << low)
    })
}

#[cfg(test)]
#[path = "blocks_test.rs"]
mod tests;
