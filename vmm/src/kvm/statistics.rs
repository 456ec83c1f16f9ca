//! Counts of vCPU exits.

use std::sync::atomic::{AtomicU64, Ordering};

/// One vCPU's counters; written by its thread alone, read by anyone.
#[derive(Debug, Default)]
pub struct VcpuStatistics {
    pub(crate) port_reads: AtomicU64,
    pub(crate) port_writes: AtomicU64,
    pub(crate) mmio_reads: AtomicU64,
    pub(crate) mmio_writes: AtomicU64,
    pub(crate) interrupted: AtomicU64,
    pub(crate) unclaimed_reads: AtomicU64,
    pub(crate) unclaimed_writes: AtomicU64,
}

/// Exits of one vCPU, or of several added up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct ExitCounts {
    /// Reads of an I/O port.
    pub port_reads: u64,
    /// Writes to an I/O port.
    pub port_writes: u64,
    /// Reads of device memory.
    pub mmio_reads: u64,
    /// Writes to device memory.
    pub mmio_writes: u64,
    /// Kicks and other signals.
    pub interrupted: u64,
    /// Reads, of those above, that no device answered: the guest got ones.
    pub unclaimed_reads: u64,
    /// Writes, of those above, that no device took: they were dropped.
    pub unclaimed_writes: u64,
}

impl VcpuStatistics {
    /// The counts at this moment.
    #[must_use]
    pub fn counts(&self) -> ExitCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            port_reads: load(&self.port_reads),
            port_writes: load(&self.port_writes),
            mmio_reads: load(&self.mmio_reads),
            mmio_writes: load(&self.mmio_writes),
            interrupted: load(&self.interrupted),
            unclaimed_reads: load(&self.unclaimed_reads),
            unclaimed_writes: load(&self.unclaimed_writes),
        }
    }
}

/// Adds one and returns the new count. Only one thread writes a counter: no locked instruction is needed.
pub(crate) fn count(counter: &AtomicU64) -> u64 {
    let now = counter.load(Ordering::Relaxed) + 1;
    counter.store(now, Ordering::Relaxed);
    now
}

impl std::ops::Add for ExitCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            port_reads: self.port_reads + other.port_reads,
            port_writes: self.port_writes + other.port_writes,
            mmio_reads: self.mmio_reads + other.mmio_reads,
            mmio_writes: self.mmio_writes + other.mmio_writes,
            interrupted: self.interrupted + other.interrupted,
            unclaimed_reads: self.unclaimed_reads + other.unclaimed_reads,
            unclaimed_writes: self.unclaimed_writes + other.unclaimed_writes,
        }
    }
}

impl std::iter::Sum for ExitCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), std::ops::Add::add)
    }
}
