//! The way to configuration space: ECAM.
//!
//! There is no other: with the ports of configuration mechanism 1, Linux would use those, with two exits for each access, where it
//! needs none for a read of what a [`ConfigMirror`](super::ConfigMirror) shows.

use std::sync::Arc;

use super::{PciAddress, PciSegment};
use crate::bus::BusDevice;

const CONFIG_BYTES: usize = 4096;

impl PciSegment {
    /// The ECAM window, [`ecam_bytes`](super::SegmentLayout::ecam_bytes) long (PCI Express 5.0 section 7.2.2).
    #[must_use]
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.clone()))
    }

    /// Reads configuration space. A read without a function at `address` returns all ones.
    pub fn read_config(&self, address: PciAddress, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(slot) = self.slot(address) {
            let len = data.len().min(CONFIG_BYTES.saturating_sub(usize::from(offset)));
            slot.function.read_config(offset, &mut data[..len]);
        }
    }

    /// Writes configuration space. When this returns, a BAR that the write moves is mapped at its new address, and the mirror shows
    /// what reads give.
    pub fn write_config(&self, address: PciAddress, offset: u16, data: &[u8]) {
        if let Some(slot) = self.slot(address) {
            let len = data.len().min(CONFIG_BYTES.saturating_sub(usize::from(offset)));
            slot.write_config(&self.mmio, offset, &data[..len]);
            slot.show(self.mirror());
        }
    }
}

struct Ecam(Arc<PciSegment>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match PciAddress::from_ecam_offset(offset) {
            Some((address, offset)) => self.0.read_config(address, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((address, offset)) = PciAddress::from_ecam_offset(offset) {
            self.0.write_config(address, offset, data);
        }
    }
}
