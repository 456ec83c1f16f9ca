//! A token bucket as plain data: what a rate limit lets through. Time is told from outside.
//!
//! Tokens (bytes, or packets) come in at a constant rate and gather up to the burst. Something passes while there is a token at all,
//! and may then take more tokens than there are: the bucket goes into debt, and the next waits until that is paid. So nothing is too
//! large to pass, and over any span of time no more passes than the burst, what comes in meanwhile, and the size of one thing less
//! one token.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A limit of a rate.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens that come in every second.
    pub per_second: NonZeroU64,
    /// Most tokens that gather while nothing passes.
    pub burst: NonZeroU64,
}

const NANOSECONDS: u128 = 1_000_000_000;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenBucket {
    rate: Rate,
    /// Tokens times nanoseconds; negative while in debt. At most the burst.
    level: i128,
    /// The moment of `level`.
    at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: full(rate), at: now }
    }

    /// The limit.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether something may pass now.
    pub fn is_ready(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level >= NANOSECONDS as i128
    }

    /// Takes the `tokens` of what has passed.
    pub fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NANOSECONDS as i128);
    }

    /// How long after the last call of [`TokenBucket::is_ready`] something may pass; zero if it may already.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let missing = (NANOSECONDS as i128).saturating_sub(self.level);
        // One nanosecond brings as many units of the level as a second brings tokens.
        let nanoseconds = u128::try_from(missing).unwrap_or(0).div_ceil(u128::from(self.rate.per_second.get()));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Changes the limit. What came in until `now` did so at the old rate; a debt stays.
    pub fn set_rate(&mut self, rate: Rate, now: Instant) {
        self.fill(now);
        self.rate = rate;
        self.level = self.level.min(full(rate));
    }

    /// Lets tokens come in until `now`. A moment before the last one changes nothing.
    fn fill(&mut self, now: Instant) {
        let Some(elapsed) = now.checked_duration_since(self.at) else { return };
        let came = elapsed.as_nanos().saturating_mul(u128::from(self.rate.per_second.get()));
        let came = i128::try_from(came).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(came).min(full(self.rate));
        self.at = now;
    }
}

fn full(rate: Rate) -> i128 {
    i128::from(rate.burst.get()) * NANOSECONDS as i128
}

#[cfg(test)]
#[path = "token_bucket_test.rs"]
mod tests;
