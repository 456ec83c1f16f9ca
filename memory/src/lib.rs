//! Guest-physical layout, partitions, host mappings and discard.
//!
//! The pure parts ([`layout`], [`partition::Partition`]) know neither KVM nor virtio, so they can be tested and fuzzed alone;
//! the shells around them reach KVM only through [`slots::SlotTable`].

pub mod address;
pub mod admission;
pub mod base;
mod base_discard;
pub mod blocks;
pub mod device_area;
pub mod discard;
pub mod host;
pub mod layout;
pub mod limited_log;
pub mod partition;
pub mod size;
pub mod slots;
pub mod sync;
pub mod system_memory;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod threads;
mod version;
pub mod view;
pub mod wire;

pub use address::AddressRange;
pub use admission::{Admission, AdmissionError};
pub use base::{BaseMemory, BaseMemoryState};
pub use base_discard::{BaseDiscard, DiscardError};
pub use blocks::{BLOCK, BlockRange};
pub use device_area::{DeviceArea, DeviceMemory};
pub use discard::Discarder;
pub use host::{Backing, HostMapping, MapError, ShownPages};
pub use layout::{Layout, LayoutSpec, PartitionId, Window};
pub use partition::{EffectError, PartitionMemory, PartitionSetup, PartitionState, ViewError};
pub use size::ByteSize;
pub use system_memory::{Swap, SystemMemory};
pub use version::Version;
pub use view::{Follower, GuestMemory, GuestView};

pub use vm_memory::GuestAddress;
