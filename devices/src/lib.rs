//! PCI, virtio-pci and the virtio devices of a Bellows VM.
//!
//! A device is a [`virtio::VirtioDevice`]; [`pci`] puts it on the bus; [`event_loop`] runs its queues. A device reaches
//! the monitor only through the traits in [`interrupt`] and [`bus`], so that a whole device runs in a test without a VM.
//!
//! Every device can be suspended, saved and restored: see [`state`].

pub mod bus;
pub mod event_loop;
pub mod interrupt;
pub mod legacy;
pub mod pci;
mod retry;
mod socket;
pub mod state;
pub mod virtio;
