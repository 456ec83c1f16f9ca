//! A token bucket as plain data: what a rate limit lets through. Time is told from outside.
//!
//! Tokens (bytes, or packets) come in at a constant rate and gather up to the burst. Something passes while there is a token at all,
//! and may then take more tokens than there are: the bucket goes into debt, and the next waits until that is paid. So nothing is too
//! large to pass, and over any span of time no more passes than the burst, what comes in meanwhile, and the size of one thing less
//! one token.
//!
//! A one-time burst is a second store, which passes first and never fills up again.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::state::RestoreError;

/// A limit of a rate.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens that come in every second.
    pub per_second: NonZeroU64,
    /// Most tokens that gather while nothing passes.
    pub burst: NonZeroU64,
    /// Tokens beside these, which are there at first and do not come again.
    #[serde(default)]
    pub one_time_burst: u64,
}

/// What a bucket has left.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BucketState {
    /// The limit.
    pub rate: Rate,
    /// Whole tokens; negative while in debt.
    pub tokens: i64,
    /// What is left of the one-time burst.
    pub one_time_burst: u64,
}

const NANOSECONDS: u128 = 1_000_000_000;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TokenBucket {
    rate: Rate,
    /// Tokens times nanoseconds; negative while in debt. At most the burst.
    level: i128,
    /// Tokens of the one-time burst.
    once: u64,
    /// The moment of `level`.
    at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: full(rate), once: rate.one_time_burst, at: now }
    }

    /// The limit.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether something may pass now.
    pub fn is_ready(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.once > 0 || self.level >= NANOSECONDS as i128
    }

    /// Takes the `tokens` of what has passed.
    pub fn take(&mut self, tokens: u64) {
        let once = tokens.min(self.once);
        self.once -= once;
        self.level = self.level.saturating_sub(i128::from(tokens - once) * NANOSECONDS as i128);
    }

    /// How long after the last call of [`TokenBucket::is_ready`] something may pass; zero if it may already.
    #[must_use]
    pub fn wait(&self) -> Duration {
        if self.once > 0 {
            return Duration::ZERO;
        }
        let missing = (NANOSECONDS as i128).saturating_sub(self.level);
        // One nanosecond brings as many units of the level as a second brings tokens.
        let nanoseconds = u128::try_from(missing).unwrap_or(0).div_ceil(u128::from(self.rate.per_second.get()));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Changes the limit. What came in until `now` did so at the old rate; a debt stays. The new limit brings its one-time burst, in
    /// place of what is left of the old one.
    pub fn set_rate(&mut self, rate: Rate, now: Instant) {
        if rate == self.rate {
            return;
        }
        self.fill(now);
        self.rate = rate;
        self.once = rate.one_time_burst;
        self.level = self.level.min(full(rate));
    }

    /// What is left as of the last call, to the token.
    #[must_use]
    pub fn save(&self) -> BucketState {
        let tokens = self.level.div_euclid(NANOSECONDS as i128);
        let tokens = i64::try_from(tokens).unwrap_or(if tokens < 0 { i64::MIN } else { i64::MAX });
        BucketState { rate: self.rate, tokens, one_time_burst: self.once }
    }

    /// A bucket that has `state` at `now`.
    ///
    /// # Errors
    /// It has more tokens than fit.
    pub fn restore(state: BucketState, now: Instant) -> Result<Self, RestoreError> {
        let BucketState { rate, tokens, one_time_burst: once } = state;
        let level = i128::from(tokens) * NANOSECONDS as i128;
        if level > full(rate) {
            return Err(RestoreError::new("tokens of a rate limit", tokens, format!("at most {}", rate.burst)));
        }
        if once > rate.one_time_burst {
            let expected = format!("at most {}", rate.one_time_burst);
            return Err(RestoreError::new("one-time burst of a rate limit", once, expected));
        }
        Ok(Self { rate, level, once, at: now })
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
