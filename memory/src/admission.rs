//! Whether memory may be plugged at all.
//!
//! Asked before the guest hears of a larger partition, so that a plug which cannot be backed fails cleanly. Only hugetlbfs
//! reserves: otherwise what the host has available may be gone when the guest touches it.

use std::io;
use std::sync::Arc;

use crate::ByteSize;
use crate::host::Backing;
use crate::layout::PartitionId;
use crate::sync::Mutex;

/// What the host can give.
pub trait HostMemory: Send + Sync {
    /// How much memory of this kind the host has available right now.
    ///
    /// # Errors
    /// The host does not say.
    fn available(&self, backing: Backing) -> io::Result<ByteSize>;
}

/// One VM's account of what its partitions may use.
pub struct Admission {
    limit: Option<ByteSize>,
    host: Box<dyn HostMemory>,
    admitted: Mutex<u64>,
}

/// What one partition was admitted with; given back when dropped.
pub struct Charge {
    admission: Arc<Admission>,
    id: PartitionId,
    backing: Backing,
    bytes: u64,
}

impl Admission {
    /// An account with a limit to all partitions together, if any.
    #[must_use]
    pub fn new(limit: Option<ByteSize>, host: impl HostMemory + 'static) -> Arc<Self> {
        Arc::new(Self { limit, host: Box::new(host), admitted: Mutex::new(0) })
    }

    /// What is admitted now, of all partitions.
    #[must_use]
    pub fn admitted(&self) -> ByteSize {
        ByteSize::bytes(*self.admitted.lock())
    }
}

impl Charge {
    /// A charge of nothing for partition `id`.
    #[must_use]
    pub fn new(admission: Arc<Admission>, id: PartitionId, backing: Backing) -> Self {
        Self { admission, id, backing, bytes: 0 }
    }

    /// Makes the charge larger or smaller. Checks the host for the larger of the increase and `growth`: memory that was already
    /// discarded may still be charged, because the guest can reach it.
    ///
    /// # Errors
    /// The VM's limit or the host cannot back it; nothing changed.
    pub fn admit(&mut self, wanted: ByteSize, growth: ByteSize) -> Result<(), AdmissionError> {
        let id = self.id;
        let mut admitted = self.admission.admitted.lock();
        let others = admitted.saturating_sub(self.bytes);
        if let Some(limit) = self.admission.limit
            && wanted.get() > self.bytes
            && others.saturating_add(wanted.get()) > limit.get()
        {
            return Err(AdmissionError::Limit { id, wanted, others: ByteSize::bytes(others), limit });
        }
        let more = wanted.get().saturating_sub(self.bytes).max(growth.get());
        if more != 0 {
            let available = self.admission.host.available(self.backing).map_err(AdmissionError::Unknown)?;
            if more > available.get() {
                return Err(AdmissionError::Host { id, wanted, more: ByteSize::bytes(more), available });
            }
        }
        *admitted = others.saturating_add(wanted.get());
        self.bytes = wanted.get();
        Ok(())
    }

    /// Makes the charge larger, if `wanted` is more than it.
    ///
    /// # Errors
    /// As for [`Charge::admit`].
    pub fn raise(&mut self, wanted: ByteSize) -> Result<(), AdmissionError> {
        if wanted.get() > self.bytes { self.admit(wanted, ByteSize::bytes(0)) } else { Ok(()) }
    }

    /// Makes the charge smaller, if `wanted` is smaller.
    pub fn lower(&mut self, wanted: ByteSize) {
        let less = self.bytes.saturating_sub(wanted.get());
        let mut admitted = self.admission.admitted.lock();
        *admitted = admitted.saturating_sub(less);
        self.bytes -= less;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut admitted = self.admission.admitted.lock();
        *admitted = admitted.saturating_sub(self.bytes);
    }
}

/// Why memory was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The VM's own limit.
    #[error(
        "partition {id} cannot grow to {wanted}: with {others} in other partitions that is beyond the VM's limit of {limit} for \
         all of them"
    )]
    Limit {
        /// The partition.
        id: PartitionId,
        /// What it should have had.
        wanted: ByteSize,
        /// What the VM's other partitions have.
        others: ByteSize,
        /// What all of them may have.
        limit: ByteSize,
    },
    /// The host or a control group of the monitor is too full.
    #[error("partition {id} cannot grow to {wanted}: it needs {more} more and the host has {available} available")]
    Host {
        /// The partition.
        id: PartitionId,
        /// What it should have had.
        wanted: ByteSize,
        /// What was missing to it.
        more: ByteSize,
        /// What the host has.
        available: ByteSize,
    },
    /// The host's state is unknown.
    #[error("cannot find out how much memory the host has available")]
    Unknown(#[source] io::Error),
}

#[cfg(test)]
#[path = "admission_test.rs"]
mod tests;
