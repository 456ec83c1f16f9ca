//! Rate limits of devices: of bytes, and of requests or packets.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::state::RestoreError;

pub mod token_bucket;

pub use self::token_bucket::Rate;
use self::token_bucket::{BucketState, TokenBucket};

/// The rate limit of a disk, or of one direction of a network interface.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Limits bytes: those that requests read, write or fill with zeros, or those of packets with their link headers.
    pub bandwidth: Option<Rate>,
    /// Limits requests, or packets. A packet that is to be segmented counts once; of a request to discard, each segment.
    pub operations: Option<Rate>,
}

/// What a limiter has left: part of a device's state. The limits are part of it, for they may have changed since the device was made.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimiterState {
    /// The bucket of bytes.
    pub bandwidth: Option<BucketState>,
    /// The bucket of requests, or packets.
    pub operations: Option<BucketState>,
}

impl LimiterState {
    /// The limits.
    #[must_use]
    pub fn limit(&self) -> RateLimit {
        let rate = |bucket: Option<BucketState>| bucket.map(|bucket| bucket.rate);
        RateLimit { bandwidth: rate(self.bandwidth), operations: rate(self.operations) }
    }
}

/// What the limiters of both directions of a network interface have left.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LimitersState {
    /// From the host to the guest.
    pub receive: LimiterState,
    /// From the guest to the host.
    pub transmit: LimiterState,
}

/// What a limit lets through. It outlives a reset of the device, so that a driver does not get a new burst by resetting.
#[derive(Clone, Debug, Default)]
pub(super) struct Limiter {
    bandwidth: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    /// How long what waits for tokens had to at the last look.
    wait: Option<Duration>,
}

impl Limiter {
    /// A limiter with full buckets.
    pub(super) fn new(limit: RateLimit) -> Self {
        let mut limiter = Self::default();
        limiter.set(limit);
        limiter
    }

    /// Changes the limits. A bucket that was there keeps its level, and its one-time burst unless its limit changes.
    pub(super) fn set(&mut self, limit: RateLimit) {
        let now = Instant::now();
        set(&mut self.bandwidth, limit.bandwidth, now);
        set(&mut self.operations, limit.operations, now);
    }

    /// Whether something may pass. If not, [`Limiter::wait`] tells how long it has to wait.
    pub(super) fn is_ready(&mut self) -> bool {
        self.are_ready(true)
    }

    /// The same for something without bytes.
    pub(super) fn is_ready_without_bytes(&mut self) -> bool {
        self.are_ready(false)
    }

    fn are_ready(&mut self, bytes: bool) -> bool {
        self.wait = None;
        let bandwidth = self.bandwidth.as_mut().filter(|_| bytes);
        if bandwidth.is_none() && self.operations.is_none() {
            return true;
        }
        let now = Instant::now();
        for bucket in bandwidth.into_iter().chain(&mut self.operations) {
            if !bucket.is_ready(now) {
                self.wait = self.wait.max(Some(bucket.wait()));
            }
        }
        self.wait.is_none()
    }

    /// Something of `bytes` bytes has passed.
    pub(super) fn passed(&mut self, bytes: u64) {
        self.passed_as(1, bytes);
    }

    /// Something that counts as so many requests has passed, with `bytes` bytes.
    pub(super) fn passed_as(&mut self, operations: u64, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(operations);
        }
    }

    /// How long what waits for tokens has to; `None` if nothing does.
    pub(super) const fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// What is left, under `limit`, which the limiter may not know yet.
    pub(super) fn save(&self, limit: RateLimit) -> LimiterState {
        let mut limiter = self.clone();
        limiter.set(limit);
        let save = |bucket: Option<TokenBucket>| bucket.map(|bucket| bucket.save());
        LimiterState { bandwidth: save(limiter.bandwidth), operations: save(limiter.operations) }
    }

    /// A limiter that goes on from `state`.
    ///
    /// # Errors
    /// No limiter can have that state.
    pub(super) fn restore(state: &LimiterState) -> Result<Self, RestoreError> {
        let now = Instant::now();
        let restore = |bucket: Option<BucketState>| bucket.map(|bucket| TokenBucket::restore(bucket, now)).transpose();
        Ok(Self { bandwidth: restore(state.bandwidth)?, operations: restore(state.operations)?, wait: None })
    }
}

fn set(bucket: &mut Option<TokenBucket>, rate: Option<Rate>, now: Instant) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (None, Some(rate)) => *bucket = Some(TokenBucket::new(rate, now)),
        (_, None) => *bucket = None,
    }
}
