//! Rate limiters, which Bellows does not have: only those that limit nothing are taken.

use serde::Deserialize;

use crate::rest::fault::Fault;

/// Limits on bytes and on requests.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

/// A token bucket. Without a size, or without a time to fill up again, it limits nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bucket {
    size: u64,
    #[serde(rename = "one_time_burst")]
    _one_time_burst: Option<u64>,
    refill_time: u64,
}

impl Bucket {
    fn limits(self) -> bool {
        self.size > 0 && self.refill_time > 0
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
}
