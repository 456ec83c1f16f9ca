//! Guest-physical layout, partitions, host mappings and discard.
//!
//! The pure parts ([`layout`], [`partition`]) know neither KVM nor virtio, so they can be tested and fuzzed alone; the
//! shells around them reach KVM only through [`slots::SlotTable`].

pub mod blocks;
pub mod layout;
pub mod partition;
pub mod size;
pub mod slots;
pub mod view;

pub use blocks::{BLOCK, BlockRange};
pub use layout::{Layout, LayoutSpec, PartitionId, Window};
pub use size::ByteSize;
pub use view::{GuestMemory, GuestView};

pub use vm_memory::GuestAddress;
