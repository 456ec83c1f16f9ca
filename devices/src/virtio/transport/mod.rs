//! virtio-pci, modern, VIRTIO 1.2 section 4.1: a [`VirtioDevice`](super::VirtioDevice) as a PCI function.
//!
//! [`common_config`] is the register block that a driver negotiates with, as plain data. [`VirtioPci`] connects it with the
//! device, its doorbells and its interrupts. Interrupts are MSI-X only.

pub mod common_config;
mod interrupts;
mod layout;
mod notifier;
mod pci_function;
mod ring_position;
mod state;

pub use interrupts::InterruptsState;
pub use pci_function::{TransportError, VirtioPci};
pub use ring_position::RingPosition;
pub use state::{NotSuspended, VirtioPciState};
