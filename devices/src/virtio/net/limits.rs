//! Rate limits of an interface.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::token_bucket::{Rate, TokenBucket};

/// Rate limits of both directions, as the guest sees them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// From the host to the guest.
    pub receive: RateLimit,
    /// From the guest to the host.
    pub transmit: RateLimit,
}

/// The rate limit of one direction.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Limits bytes, link headers counted in.
    pub bandwidth: Option<Rate>,
    /// Limits packets. One that is to be segmented counts once.
    pub packets: Option<Rate>,
}

/// What a limit lets through in one direction.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    bandwidth: Option<TokenBucket>,
    packets: Option<TokenBucket>,
    /// Whether something waits for tokens.
    waits: bool,
}

impl Limiter {
    /// Changes the limits. A bucket that was there keeps its level.
    pub(super) fn set(&mut self, limit: RateLimit, now: Instant) {
        set(&mut self.bandwidth, limit.bandwidth, now);
        set(&mut self.packets, limit.packets, now);
    }

    /// Whether a packet may pass. If not, [`Limiter::wait`] tells how long it has to wait.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.bandwidth.is_none() && self.packets.is_none() {
            self.waits = false;
            return true;
        }
        let now = Instant::now();
        let ready = [&mut self.bandwidth, &mut self.packets]
            .into_iter()
            .flatten()
            .all(|bucket: &mut TokenBucket| bucket.is_ready(now));
        self.waits = !ready;
        ready
    }

    /// A packet of `bytes` bytes has passed.
    pub(super) fn passed(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.packets {
            bucket.take(1);
        }
    }

    /// How long what waits for tokens still has to; `None` if nothing does.
    pub(super) fn wait(&self) -> Option<Duration> {
        let buckets = self.bandwidth.iter().chain(&self.packets);
        self.waits.then(|| buckets.map(TokenBucket::wait).max()).flatten()
    }
}

fn set(bucket: &mut Option<TokenBucket>, rate: Option<Rate>, now: Instant) {
    match (bucket.as_mut(), rate) {
        (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
        (None, Some(rate)) => *bucket = Some(TokenBucket::new(rate, now)),
        (_, None) => *bucket = None,
    }
}
