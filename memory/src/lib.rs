//! Guest-physical layout, partitions, host mappings and discard.
//!
//! The pure parts ([`layout`], [`partition`]) know neither KVM nor virtio, so they can be tested and fuzzed alone; the
//! shells around them reach KVM only through [`slots::SlotTable`].

pub mod admission;
pub mod base;
pub mod blocks;
pub mod device_area;
pub mod discard;
mod effects;
pub mod layout;
pub mod limited_log;
pub mod mapping;
pub mod partition;
pub mod partition_memory;
pub mod pieces;
pub mod size;
pub mod slots;
pub mod system_memory;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod view;
mod window_view;

pub use admission::{Admission, AdmissionError};
pub use base::BaseMemory;
pub use blocks::{BLOCK, BlockRange};
pub use device_area::{DeviceArea, DeviceMemory};
pub use discard::Discarder;
pub use effects::EffectError;
pub use layout::{Layout, LayoutSpec, PartitionId, Window};
pub use mapping::{Backing, HostMapping};
pub use partition_memory::{PartitionMemory, PartitionSetup};
pub use size::ByteSize;
pub use system_memory::SystemMemory;
pub use view::{GuestMemory, GuestView};
pub use window_view::ViewError;

pub use vm_memory::GuestAddress;
