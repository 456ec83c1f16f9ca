//! Logging of what a guest can cause, within limits.
//!
//! A guest may repeat anything as often as it likes, and the host's log must not grow with that. So every statement that a
//! guest can reach is a [`limited!`](crate::limited), whatever its level: it logs a few events at once and then one a minute,
//! with the number of events that it left out. The limit belongs to the statement, for all VMs of the process together.
//!
//! Libraries that log by themselves are never called with input that would make them.

use std::time::{Duration, Instant};

use crate::sync::Mutex;

/// Events that are logged before the limit shows.
const BURST: u32 = 8;
/// The time in which one more may be logged.
const INTERVAL: Duration = Duration::from_secs(60);

/// Logs an event at `error`, `warn`, `info` or `debug` as the macros of `tracing` do, unless its limit is reached. The field
/// `left_out` of an event says how many before it were not logged.
#[macro_export]
macro_rules! limited {
    (error, $($event:tt)+) => { $crate::limited!(@ ERROR, error, $($event)+) };
    (warn, $($event:tt)+) => { $crate::limited!(@ WARN, warn, $($event)+) };
    (info, $($event:tt)+) => { $crate::limited!(@ INFO, info, $($event)+) };
    (debug, $($event:tt)+) => { $crate::limited!(@ DEBUG, debug, $($event)+) };
    (@ $level:ident, $log:ident, $($event:tt)+) => {{
        static LIMIT: $crate::limited_log::Limit = $crate::limited_log::Limit::new();
        if tracing::enabled!(tracing::Level::$level)
            && let Some(left_out) = LIMIT.admit()
        {
            tracing::$log!(left_out, $($event)+);
        }
    }};
}

/// What one statement may log.
#[derive(Debug, Default)]
pub struct Limit {
    bucket: Mutex<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Events logged that the limit still counts, at most [`BURST`].
    logged: u32,
    left_out: u64,
    /// When the oldest of the events that count stops counting.
    next: Option<Instant>,
}

impl Limit {
    /// A limit that nothing was logged under.
    #[must_use]
    pub const fn new() -> Self {
        Self { bucket: Mutex::new(Bucket { logged: 0, left_out: 0, next: None }) }
    }

    /// Whether another event may be logged now: if so, how many were left out before it.
    #[must_use]
    pub fn admit(&self) -> Option<u64> {
        self.bucket.lock().admit(Instant::now())
    }
}

impl Bucket {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        while let Some(next) = self.next
            && next <= now
        {
            self.logged -= 1;
            self.next = if self.logged == 0 { None } else { next.checked_add(INTERVAL) };
        }
        if self.logged == BURST {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        if self.next.is_none() {
            self.next = now.checked_add(INTERVAL);
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
#[path = "limited_log_test.rs"]
mod tests;
