//! Guest-physical layout, partitions, host mappings and discard.
//!
//! The pure parts ([`layout`], [`partition`]) know neither KVM nor virtio, so they can be tested and fuzzed alone; the
//! shells around them reach KVM only through [`slots::SlotTable`].

pub mod size;
pub mod slots;
pub mod view;

pub use size::ByteSize;
pub use view::{GuestMemory, GuestView};

pub use vm_memory::GuestAddress;
