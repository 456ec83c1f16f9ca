//! The narrow door to the hypervisor's memory slots.

use std::error::Error;

use vm_memory::GuestAddress;

/// A range of host memory that the guest reaches at a guest-physical address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slot {
    /// First guest-physical address; page-aligned.
    pub guest: GuestAddress,
    /// First host virtual address; page-aligned, mapped for as long as the slot exists.
    pub host: u64,
    /// Length in bytes; a multiple of the page size, not zero.
    pub bytes: u64,
    /// Guest writes exit to the monitor instead of reaching the memory.
    pub read_only: bool,
}

/// Why a slot could not be set or deleted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the memory slot at {:#x} of {} bytes", slot.guest.0, slot.bytes)]
pub struct SlotError {
    /// "set" or "delete".
    pub action: &'static str,
    /// The slot in question.
    pub slot: Slot,
    /// What the hypervisor answered.
    #[source]
    pub source: std::io::Error,
}

/// The hypervisor's table of memory slots, implemented over KVM by the monitor and by a recorder in tests.
///
/// Slots never overlap; slot numbers are the implementation's business.
pub trait SlotTable: Send + Sync {
    /// Makes `slot` reachable for the guest.
    ///
    /// # Errors
    /// The hypervisor refused; nothing changed.
    fn set(&self, slot: Slot) -> Result<(), SlotError>;

    /// Ends the guest's access to `slot`, which must have been set before: when this returns no vCPU can reach it.
    ///
    /// # Errors
    /// The hypervisor refused; the slot may still be reachable.
    fn delete(&self, slot: Slot) -> Result<(), SlotError>;

    /// Replaces `old` by `new`, disjoint parts of the same range, while no vCPU runs, so that the guest never misses
    /// a part that is in both.
    ///
    /// # Errors
    /// The hypervisor refused one step: the guest has lost memory. It has not run since, and does not run again.
    fn replace(&self, old: Slot, new: &[Slot]) -> Result<(), SlotError>;

    /// Ends the VM: because of `error` the guest has lost memory that it takes to be there.
    fn lost(&self, error: Box<dyn Error + Send + Sync>);
}
