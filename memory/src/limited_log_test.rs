use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;

/// Counts events up to a level.
struct Counter {
    level: Level,
    events: Arc<AtomicU64>,
}

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// How many events `work` logs up to `level`.
fn logged(level: Level, work: impl FnOnce()) -> u64 {
    let events = Arc::new(AtomicU64::new(0));
    let counter = Counter { level, events: events.clone() };
    tracing::subscriber::with_default(counter, work);
    events.load(Ordering::Relaxed)
}

#[test]
fn a_statement_logs_a_few_events_however_often_it_is_reached() {
    let complain = |n: u32| crate::limited!(warn, n, "a guest did it again");
    assert_eq!(logged(Level::WARN, || (0..100_000).for_each(complain)), u64::from(BURST));
    let other = || crate::limited!(debug, "and something else");
    assert_eq!(logged(Level::DEBUG, other), 1, "each statement has a limit of its own");
}

#[test]
fn what_nobody_listens_to_is_not_counted() {
    let complain = |_: u32| crate::limited!(debug, "details");
    assert_eq!(logged(Level::INFO, || (0..1000).for_each(complain)), 0);
    assert_eq!(logged(Level::DEBUG, || (0..1000).for_each(complain)), u64::from(BURST));
}

#[test]
fn later_events_are_counted_and_one_a_minute_says_how_many() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut bucket = Bucket::default();
    for _ in 0..BURST {
        assert_eq!(bucket.admit(at(0)), Some(0));
    }
    for second in 0..60 {
        assert_eq!(bucket.admit(at(second)), None);
    }
    assert_eq!(bucket.admit(at(60)), Some(60));
    assert_eq!(bucket.admit(at(119)), None);
    assert_eq!((bucket.admit(at(120)), bucket.admit(at(120))), (Some(1), None));
    // After a long silence there is as much room as at first, and no more.
    let admitted = (0..100).filter(|_| bucket.admit(at(1_000_000)).is_some()).count();
    assert_eq!(admitted, BURST as usize);
    assert_eq!(bucket.admit(at(1_000_060)), Some(100 - u64::from(BURST)));
}
