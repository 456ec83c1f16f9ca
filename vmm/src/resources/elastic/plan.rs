//! What is to become of base memory next, as plain data: no clock, no thread, no guest.

use std::time::Duration;

use bellows_memory::layout::MEMORY_BLOCK_MIN;
use bellows_memory::{BLOCK, ByteSize};

use crate::config::ElasticBaseConfig;

/// The unit of growth: memory blocks of the guest, of which each that is not empty costs a memory map.
pub(super) const STEP: u64 = MEMORY_BLOCK_MIN;
/// Time between two steps of a shrink.
const PACE: Duration = Duration::from_secs(1);
/// A growth this soon after the last doubles what comes.
const BURST: Duration = Duration::from_secs(2);
/// Most that the wait before a shrink is stretched by, where memory that went was wanted again at once.
const MAX_PATIENCE: u32 = 16;
/// Longest wait without a look, while there is nothing to take back.
const LONG: Duration = Duration::from_secs(60);

/// What has been seen of guest and host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Observed {
    /// Instances of the guest have waited for memory.
    pub(super) pressure: bool,
    /// So little is left that more would help: they do not only wait at limits of their own.
    pub(super) short: bool,
    /// The host itself is short of memory.
    pub(super) host_pressure: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Have base memory be larger than at boot by so much.
    Grow(ByteSize),
    /// The same, with less than before.
    Shrink(ByteSize),
}

/// The policy and its memory. Times are since any moment that stays the same.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Most that base memory may grow by.
    max: u64,
    shrink_after: Duration,
    /// What it has grown by.
    grown: u64,
    /// Before, nothing grows.
    next_growth: Duration,
    /// Before, nothing shrinks.
    next_shrink: Duration,
    /// When it grew last, and by how much.
    last_growth: Option<(Duration, u64)>,
    /// When it shrank last.
    last_shrink: Option<Duration>,
    patience: u32,
}

impl Plan {
    pub(super) fn new(config: &ElasticBaseConfig, max: ByteSize) -> Self {
        Self {
            max: max.get(),
            shrink_after: Duration::from_secs(config.shrink_after_s.into()),
            grown: 0,
            next_growth: Duration::ZERO,
            next_shrink: Duration::ZERO,
            last_growth: None,
            last_shrink: None,
            patience: 1,
        }
    }

    /// What base memory has grown by.
    pub(super) fn grown(&self) -> ByteSize {
        ByteSize::bytes(self.grown)
    }

    /// How long nothing is due without pressure in the guest. While memory has come, the host is looked at all the time.
    pub(super) fn idle(&self) -> Duration {
        if self.grown == 0 { LONG } else { PACE }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Duration, observed: Observed) -> Step {
        if observed.pressure {
            self.next_shrink = now + self.shrink_after * self.patience;
        }
        if observed.host_pressure {
            return self.shrink();
        }
        if observed.pressure && observed.short && self.grown < self.max && now >= self.next_growth {
            return Step::Grow(ByteSize::bytes(self.more(now)));
        }
        if !observed.pressure && now >= self.next_shrink {
            return self.shrink();
        }
        Step::Rest
    }

    /// It has grown to `size`.
    pub(super) fn has_grown(&mut self, now: Duration, size: ByteSize) {
        if let Some(then) = self.last_shrink {
            let wanted_again = now < then + self.shrink_after * self.patience;
            self.patience = if wanted_again { (self.patience * 2).min(MAX_PATIENCE) } else { 1 };
        }
        self.last_growth = Some((now, size.get().saturating_sub(self.grown)));
        self.last_shrink = None;
        self.grown = size.get();
        self.next_shrink = now + self.shrink_after * self.patience;
    }

    /// It could not grow: nothing is tried again soon.
    pub(super) fn has_not_grown(&mut self, now: Duration) {
        self.next_growth = now + self.shrink_after;
    }

    /// It was to shrink to `wanted`, and has become `size`.
    pub(super) fn has_shrunk(&mut self, now: Duration, wanted: ByteSize, size: ByteSize) {
        self.grown = size.get();
        self.last_shrink = Some(now);
        // What could not go is in use, and stays for a while.
        self.next_shrink = now + if size > wanted { self.shrink_after * self.patience } else { PACE };
    }

    /// To half, in whole steps.
    fn shrink(&self) -> Step {
        if self.grown > 0 { Step::Shrink(ByteSize::bytes(self.grown / 2 / STEP * STEP)) } else { Step::Rest }
    }

    /// A step more, or twice as much as a moment ago.
    fn more(&self, now: Duration) -> u64 {
        let by = match self.last_growth {
            Some((then, by)) if now < then + BURST => by.saturating_mul(2),
            _ => STEP,
        };
        let more = self.grown.saturating_add(by.max(STEP));
        more.min(self.max) / BLOCK.get() * BLOCK.get()
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
