//! The state machine as plain data, and what such data may not say.

use serde::{Deserialize, Serialize};

use crate::ByteSize;
use crate::blocks::{BLOCK, BlockRange};

/// A [`Partition`](super::Partition). Ranges are in order of address and do not overlap, but for discards.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PlugState {
    /// What the host wants plugged.
    pub target: ByteSize,
    /// How far into its addresses the guest may plug.
    pub usable: ByteSize,
    /// What is plugged.
    pub plugged: Vec<BlockRange>,
    /// Slots as they were added.
    pub slots: Vec<BlockRange>,
    /// Discards that are due, in order.
    pub discards: Vec<BlockRange>,
}

/// Why a [`PlugState`] is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlugStateError {
    /// The partition cannot have that target.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// Slots cannot follow the usable region, or it is out of bounds.
    #[error("usable region of {usable}: expected whole granules of {granule}, from {least} to {most}")]
    Usable {
        /// The state's.
        usable: ByteSize,
        /// Size of a granule.
        granule: ByteSize,
        /// What the target takes.
        least: ByteSize,
        /// What the guest has addresses for.
        most: ByteSize,
    },
    /// A range reaches too far.
    #[error("{what} {range}: expected no block beyond {limit}")]
    Beyond {
        /// `plugged`, `slot` or `discard`.
        what: &'static str,
        /// The range.
        range: BlockRange,
        /// The blocks there are.
        limit: u32,
    },
    /// Ranges overlap or are out of order.
    #[error("{what} {second} after {first}: expected disjoint ranges in order of address")]
    Order {
        /// `plugged` or `slot`.
        what: &'static str,
        /// The first of them.
        first: BlockRange,
        /// The next.
        second: BlockRange,
    },
    /// The guest could not reach what is plugged.
    #[error("plugged {0}: expected a slot for each of them")]
    NoSlot(BlockRange),
    /// A slot for nothing.
    #[error("slot {0} with nothing plugged: expected none")]
    IdleSlot(BlockRange),
    /// A discard would destroy what is plugged.
    #[error("discard of {0}, where blocks are plugged: expected none there")]
    PluggedDiscard(BlockRange),
}

/// A target that a partition cannot have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTarget {
    /// Not made of whole blocks.
    #[error("target of {0}: expected a multiple of {BLOCK}")]
    Unaligned(ByteSize),
    /// Larger than the window.
    #[error("target of {target}: the partition's window is {window}")]
    BeyondWindow {
        /// What was asked for.
        target: ByteSize,
        /// Size of the window.
        window: ByteSize,
    },
}

/// Checks that `ranges` are in order, do not overlap and lie below block `limit`.
pub(super) fn check_order(what: &'static str, ranges: &[BlockRange], limit: u32) -> Result<(), PlugStateError> {
    for pair in ranges.windows(2) {
        if let &[first, second] = pair
            && second.first() < first.end()
        {
            return Err(PlugStateError::Order { what, first, second });
        }
    }
    match ranges.last() {
        Some(&range) if range.end() > limit => Err(PlugStateError::Beyond { what, range, limit }),
        _ => Ok(()),
    }
}
