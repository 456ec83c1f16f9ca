//! Rate limiters. Drives and network interfaces have them; elsewhere, only those that limit nothing are taken.

use std::num::NonZeroU64;

use bellows_vmm::{Rate, RateLimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rest::fault::Fault;

/// Limits on bytes and on requests.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

/// A token bucket. Without a size, or without a time to fill up again, it limits nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bucket {
    /// Bytes or requests.
    size: u64,
    one_time_burst: Option<u64>,
    /// Milliseconds until an empty bucket is full.
    refill_time: u64,
}

impl Bucket {
    fn limits(self) -> bool {
        self.size > 0 && self.refill_time > 0
    }

    /// The rate that it limits to; none if it limits nothing. Less than one a second counts as one.
    fn rate(self) -> Option<Rate> {
        let burst = NonZeroU64::new(self.size).filter(|_| self.limits())?;
        let per_second = u128::from(self.size) * 1000 / u128::from(self.refill_time);
        let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
        let per_second = NonZeroU64::new(per_second).unwrap_or(NonZeroU64::MIN);
        Some(Rate { per_second, burst, one_time_burst: self.one_time_burst.unwrap_or(0) })
    }
}

impl Limiter {
    /// With what `update` says; what it leaves out stays.
    pub(super) fn updated(before: Option<Self>, update: Option<Self>) -> Option<Self> {
        let (Some(before), Some(update)) = (before, update) else { return update.or(before) };
        Some(Self { bandwidth: update.bandwidth.or(before.bandwidth), ops: update.ops.or(before.ops) })
    }
}

/// Changes `limit` to what `limiter` says: what it leaves out stays.
pub(super) fn apply(limiter: Option<Limiter>, limit: &mut RateLimit) {
    let Some(Limiter { bandwidth, ops }) = limiter else { return };
    for (bucket, rate) in [(bandwidth, &mut limit.bandwidth), (ops, &mut limit.operations)] {
        if let Some(bucket) = bucket {
            *rate = bucket.rate();
        }
    }
}

/// Refuses a limiter that limits something.
pub(super) fn check(limiter: Option<Limiter>) -> Result<(), Fault> {
    let buckets = limiter.into_iter().flat_map(|limiter| [limiter.bandwidth, limiter.ops]).flatten();
    check_buckets("rate_limiter", buckets)
}

/// The same for a single bucket.
pub(super) fn check_bucket(bucket: Option<Bucket>) -> Result<(), Fault> {
    check_buckets("rate_limiter", bucket)
}

fn check_buckets(field: &str, buckets: impl IntoIterator<Item = Bucket>) -> Result<(), Fault> {
    if buckets.into_iter().any(Bucket::limits) {
        return Err(Fault::unsupported(field, "set", "null, or buckets with `size` or `refill_time` 0"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limiter_that_limits_nothing_is_taken() {
        let check = |json: &str| check(serde_json::from_str(json).unwrap());
        for neutral in [
            "null",
            "{}",
            r#"{"bandwidth": null}"#,
            r#"{"ops": {"size": 0, "refill_time": 100}}"#,
            r#"{"bandwidth": {"size": 10, "refill_time": 0, "one_time_burst": 5}}"#,
        ] {
            check(neutral).unwrap();
        }
        let limiting = r#"{"bandwidth": {"size": 1, "refill_time": 1}}"#;
        let fault = check(limiting).unwrap_err();
        assert!(fault.message.contains("`rate_limiter`") && fault.message.contains("expected null"), "{fault}");
        assert!(serde_json::from_str::<Limiter>(r#"{"bits": null}"#).is_err());
    }

    #[test]
    fn a_bucket_is_a_rate_and_what_is_left_out_stays() {
        let mut limit = RateLimit::default();
        let mut apply = |json: &str| {
            apply(serde_json::from_str(json).unwrap(), &mut limit);
            let figures =
                |rate: Option<Rate>| rate.map(|rate| (rate.per_second.get(), rate.burst.get(), rate.one_time_burst));
            (figures(limit.bandwidth), figures(limit.operations))
        };
        assert_eq!(apply("null"), (None, None));
        let bytes = r#"{"bandwidth": {"size": 5000, "refill_time": 100}}"#;
        assert_eq!(apply(bytes), (Some((50_000, 5000, 0)), None));
        let packets = r#"{"ops": {"size": 1, "refill_time": 5000, "one_time_burst": 9}}"#;
        assert_eq!(apply(packets), (Some((50_000, 5000, 0)), Some((1, 1, 9))));
        let huge = r#"{"ops": {"size": 18446744073709551615, "refill_time": 1}}"#;
        assert_eq!(apply(huge).1, Some((u64::MAX, u64::MAX, 0)));
        assert_eq!(apply(r#"{"bandwidth": {"size": 0, "refill_time": 9}, "ops": null}"#).0, None);
    }
}
