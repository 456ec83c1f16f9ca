//! Warm starts: the pages of an image's files that a run read, and how they get into the host's page cache for the next one.
//!
//! A run's reads are recorded where they are served: a [`Recorded`] disk marks the pages that are read, and for memory
//! ([`crate::ImageMapping`]) the monitor's own page table has them. [`Prefetch`] reads exactly the pages of a [`ReadSet`] that are
//! not in the page cache.

mod pages;
mod prefetch;
mod recorded;
mod touched;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

pub use pages::{PAGE_SIZE, PageRanges};
pub use prefetch::Prefetch;
pub use recorded::{Reads, Recorded};

/// Pages of files, each of which is known by the digest of the layer, or of the flat image, that it belongs to.
///
/// In JSON: `{"sha256:...": [[first page, number of pages], ...], ...}`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ReadSet(BTreeMap<Digest, PageRanges>);

impl ReadSet {
    /// Sets the pages of a file, unless it has none.
    pub fn insert(&mut self, digest: Digest, pages: PageRanges) {
        if !pages.is_empty() {
            self.0.insert(digest, pages);
        }
    }

    /// Adds all files of `other`.
    pub fn extend(&mut self, other: ReadSet) {
        self.0.extend(other.0);
    }

    /// The pages of a file, if it has any.
    #[must_use]
    pub fn pages(&self, digest: &Digest) -> Option<&PageRanges> {
        self.0.get(digest)
    }

    /// The files in it.
    pub fn files(&self) -> impl Iterator<Item = &Digest> {
        self.0.keys()
    }

    /// Size of all its pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.values().map(PageRanges::bytes).fold(0, u64::saturating_add)
    }

    /// Whether it has no pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[path = "read_set_test.rs"]
mod tests;
