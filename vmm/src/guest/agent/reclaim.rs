//! What it costs a guest to give memory back.

use bellows_protocol::agent;

/// Pages that a guest has worked on since boot because memory was unplugged, by its own account.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ReclaimCost {
    /// Pages migrated.
    pub(crate) migrated_pages: u64,
    /// Pages zeroed; `None` with a stock kernel.
    pub(crate) zeroed_pages: Option<u64>,
}

impl From<&agent::ReclaimCounters> for ReclaimCost {
    fn from(answer: &agent::ReclaimCounters) -> Self {
        Self { migrated_pages: answer.migrated_pages, zeroed_pages: answer.zeroed_pages }
    }
}
