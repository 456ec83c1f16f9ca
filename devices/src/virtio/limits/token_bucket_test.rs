use proptest::prelude::*;

use super::*;

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst: NonZeroU64::new(burst).unwrap(), one_time_burst: 0 }
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(1000, 10), start);
    for _ in 0..10 {
        assert!(bucket.is_ready(start));
        bucket.take(1);
    }
    assert!(!bucket.is_ready(start));
    assert_eq!(bucket.wait(), Duration::from_millis(1));
    assert!(!bucket.is_ready(start + Duration::from_nanos(999_999)));
    assert!(bucket.is_ready(start + Duration::from_millis(1)));
    // A long rest saves up no more than the burst.
    let later = start + Duration::from_secs(3600);
    assert!(bucket.is_ready(later));
    bucket.take(10);
    assert!(!bucket.is_ready(later));
}

#[test]
fn what_is_larger_than_the_burst_passes_and_is_paid_off() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(1000, 10), start);
    assert!(bucket.is_ready(start));
    bucket.take(1500);
    assert!(!bucket.is_ready(start));
    // 1490 of debt, and one token to pass.
    assert_eq!(bucket.wait(), Duration::from_millis(1491));
    assert!(!bucket.is_ready(start + Duration::from_millis(1490)));
    assert!(bucket.is_ready(start + Duration::from_millis(1491)));
    assert_eq!(bucket.wait(), Duration::ZERO);
}

#[test]
fn a_change_keeps_what_is_due() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(10, 100), start);
    bucket.set_rate(rate(1000, 5), start);
    bucket.take(5);
    assert!(!bucket.is_ready(start), "no more than the new burst is left");
    bucket.take(100);
    // Half a second at 1000 per second pays the debt off; then it is slow.
    bucket.set_rate(rate(1, 1000), start + Duration::from_millis(500));
    assert!(bucket.is_ready(start + Duration::from_millis(500)));
    bucket.take(5);
    assert_eq!(bucket.wait(), Duration::from_secs(1));
    assert_eq!(bucket.rate(), rate(1, 1000));
}

#[test]
fn a_one_time_burst_passes_first_and_never_again() {
    let start = Instant::now();
    let limit = Rate { one_time_burst: 7, ..rate(1000, 10) };
    let mut bucket = TokenBucket::new(limit, start);
    bucket.take(5);
    assert!(bucket.is_ready(start));
    // Two tokens of the one-time burst, and all of the other.
    bucket.take(12);
    assert!(!bucket.is_ready(start));
    assert_eq!(bucket.wait(), Duration::from_millis(1));
    let later = start + Duration::from_secs(3600);
    assert!(bucket.is_ready(later));
    bucket.take(10);
    assert!(!bucket.is_ready(later), "an hour brings the burst back, and no more");
    // The same limit once more is no new limit; another one is.
    bucket.set_rate(limit, later);
    assert!(!bucket.is_ready(later));
    bucket.set_rate(Rate { one_time_burst: 8, ..limit }, later);
    assert!(bucket.is_ready(later));
    assert_eq!(bucket.wait(), Duration::ZERO);
    // It passes even while the other is in debt.
    bucket.take(7);
    assert!(bucket.is_ready(later));
    bucket.take(1);
    assert!(!bucket.is_ready(later));
}

#[test]
fn a_bucket_goes_on_from_its_state() {
    let start = Instant::now();
    let limit = Rate { one_time_burst: 7, ..rate(1000, 10) };
    let mut bucket = TokenBucket::new(limit, start);
    bucket.take(2);
    let state = bucket.save();
    assert_eq!(state, BucketState { rate: limit, tokens: 10, one_time_burst: 5 });
    bucket.take(20);
    let state = BucketState { tokens: -5, one_time_burst: 0, ..state };
    assert_eq!(bucket.save(), state);
    let later = start + Duration::from_secs(9);
    let mut restored = TokenBucket::restore(state, later).unwrap();
    assert_eq!(restored.save(), state);
    assert!(!restored.is_ready(later + Duration::from_millis(5)), "time before the restore brings nothing");
    assert!(restored.is_ready(later + Duration::from_millis(6)));
    for (wrong, part) in [
        (BucketState { tokens: 11, ..state }, "tokens of a rate limit is 11: expected at most 10"),
        (BucketState { one_time_burst: 8, ..state }, "is 8: expected at most 7"),
    ] {
        let message = TokenBucket::restore(wrong, start).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    // What no integer holds is as much as one does.
    let mut huge = TokenBucket::new(rate(1, u64::MAX), start);
    assert_eq!(huge.save().tokens, i64::MAX);
    (0..3).for_each(|_| huge.take(u64::MAX));
    assert_eq!(huge.save().tokens, i64::MIN);
}

#[test]
fn the_largest_numbers_do_no_harm() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(rate(u64::MAX, u64::MAX), start);
    let mut slow = TokenBucket::new(rate(1, 1), start);
    for _ in 0..3 {
        bucket.take(u64::MAX);
        slow.take(u64::MAX);
    }
    assert!(!bucket.is_ready(start) && !slow.is_ready(start));
    assert!(bucket.is_ready(start + Duration::from_secs(u64::from(u32::MAX))));
    assert_eq!(slow.wait(), Duration::from_nanos(u64::MAX));
    assert!(!slow.is_ready(start + Duration::from_secs(u64::from(u32::MAX))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Over every span of time: no more than the burst, what comes in, and one overdraft. And with something always there to pass, no
    /// less than what comes in, less one token for each rounding to a whole one.
    #[test]
    fn the_rate_holds_over_every_span(
        per_second in 1_u64..1_000_000,
        burst in 1_u64..100_000,
        steps in proptest::collection::vec((0_u64..50_000_000, 1_u64..70_000), 1..200),
    ) {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate(per_second, burst), start);
        let mut now = start;
        let mut passed: Vec<(Instant, u64)> = Vec::new();
        for (pause, size) in steps {
            now += Duration::from_nanos(pause);
            if bucket.is_ready(now) {
                bucket.take(size);
                passed.push((now, size));
            } else {
                // It says how long, neither too early nor too late.
                let wait = bucket.wait();
                let mut early = bucket;
                prop_assert!(!early.is_ready(now + wait - Duration::from_nanos(1)));
                let mut just = bucket;
                prop_assert!(just.is_ready(now + wait));
            }
        }
        for (first, (begin, _)) in passed.iter().enumerate() {
            let mut sum = 0_u128;
            for (end, size) in &passed[first..] {
                sum += u128::from(*size);
                let came = (*end - *begin).as_nanos() * u128::from(per_second) / NANOSECONDS;
                prop_assert!(sum <= u128::from(burst) + came + u128::from(*size), "{sum} in {:?}", *end - *begin);
            }
        }
    }

    /// What always has something to pass gets all of its rate.
    #[test]
    fn the_rate_is_reached(per_second in 1_u64..1_000_000, burst in 1_u64..100_000, size in 1_u64..70_000) {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate(per_second, burst), start);
        let (mut now, mut sum) = (start, 0);
        for _ in 0..100 {
            if !bucket.is_ready(now) {
                now += bucket.wait();
                prop_assert!(bucket.is_ready(now));
            }
            bucket.take(size);
            sum += u128::from(size);
        }
        let came = (now - start).as_nanos() * u128::from(per_second) / NANOSECONDS;
        prop_assert!(sum >= came, "{sum} of {came}");
    }
}
