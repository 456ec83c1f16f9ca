//! PCI: functions on root buses, their configuration space, BARs and MSI-X.
//!
//! The guest enumerates a [`PciSegment`]. Each [`PciFunction`] is one device in it. [`config_space`] and [`msix`] are plain
//! data, which can be tested and fuzzed alone. [`header`] has the layout of the specification.

mod access;
mod address;
pub mod bar;
pub mod config_space;
mod function;
pub mod header;
mod host_bridge;
mod mirror;
pub mod msix;
mod root_bus;
mod segment;
mod vectors;

pub use address::{ParsePciAddressError, PciAddress};
pub use function::{BarSize, CONVENTIONAL_BYTES, PciFunction};
pub use mirror::ConfigMirror;
pub use root_bus::SlotState;
pub use segment::{PciError, PciSegment, SegmentLayout, SegmentState};
pub use vectors::MsixVectors;
