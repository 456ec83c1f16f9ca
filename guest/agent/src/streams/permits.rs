//! A bound on the number of connected streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The streams that may still be connected.
#[derive(Debug)]
pub struct Permits {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// The right of one stream to be connected; dropping it gives it back.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Permits {
    /// Permits for `count` streams.
    pub fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// A permit for another stream, if one is left.
    pub fn take(&self) -> Option<Permit> {
        let more = |taken: usize| (taken < self.most).then(|| taken + 1);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Permit(Arc::clone(&self.taken)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_run_out_and_come_back() {
        let permits = Permits::new(2);
        let (first, _second) = (permits.take().unwrap(), permits.take().unwrap());
        assert!(permits.take().is_none());
        drop(first);
        assert!(permits.take().is_some());
    }
}
