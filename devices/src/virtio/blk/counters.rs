//! Counters of a disk's requests.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::request::Erasure;

/// What a guest's requests have done with a disk since its device was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct BlockStatistics {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Ranges discarded.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Ranges filled with zeros.
    pub write_zeroes: u64,
    /// Bytes filled with zeros.
    pub zeroed_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that were invalid, or that the disk did not carry out.
    pub failed: u64,
}

/// The counters, which one thread counts up and others read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: Pair,
    writes: Pair,
    discards: Pair,
    zeroes: Pair,
    flushes: AtomicU64,
    failed: AtomicU64,
}

/// How often, and how many bytes.
#[derive(Debug, Default)]
struct Pair {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Pair {
    fn add(&self, bytes: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Counters {
    pub(super) fn read(&self, bytes: u64) {
        self.reads.add(bytes);
    }

    pub(super) fn written(&self, bytes: u64) {
        self.writes.add(bytes);
    }

    pub(super) fn erased(&self, erasure: Erasure, bytes: u64) {
        match erasure {
            Erasure::Discard => self.discards.add(bytes),
            Erasure::WriteZeroes => self.zeroes.add(bytes),
        }
    }

    pub(super) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn statistics(&self) -> BlockStatistics {
        let ((reads, read_bytes), (writes, written_bytes)) = (self.reads.get(), self.writes.get());
        let ((discards, discarded_bytes), (write_zeroes, zeroed_bytes)) = (self.discards.get(), self.zeroes.get());
        BlockStatistics {
            reads,
            read_bytes,
            writes,
            written_bytes,
            discards,
            discarded_bytes,
            write_zeroes,
            zeroed_bytes,
            flushes: self.flushes.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}
