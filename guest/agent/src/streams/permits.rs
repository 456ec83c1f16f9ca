//! A bound on the streams that are connected at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many streams may be connected.
#[derive(Debug)]
pub struct Permits {
    taken: Arc<AtomicUsize>,
    most: usize,
}

/// The right of one stream to be connected, given back when this is dropped.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Permits {
    /// So many may.
    pub fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// The right of another one, if there is one left.
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
    fn permits_are_as_many_as_there_are() {
        let permits = Permits::new(2);
        let (first, _second) = (permits.take().unwrap(), permits.take().unwrap());
        assert!(permits.take().is_none());
        drop(first);
        assert!(permits.take().is_some());
    }
}
