//! The two ways to reach configuration space: ECAM, and the ports 0xcf8 and 0xcfc for kernels without ECAM.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{PciAddress, PciSegment};
use crate::bus::BusDevice;

/// The first port of [`PciSegment::config_ports`].
pub const CONFIG_PORTS: u64 = 0xcf8;
/// The number of those ports.
pub const CONFIG_PORTS_LEN: u64 = 8;

const CONFIG_BYTES: usize = 4096;
/// The bit of the address port that opens the data port to configuration space.
const ENABLE: u32 = 1 << 31;

impl PciSegment {
    /// The ECAM window, [`ecam_bytes`](super::SegmentLayout::ecam_bytes) long (PCI Express 5.0 section 7.2.2).
    #[must_use]
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.clone()))
    }

    /// The ports of configuration mechanism 1 (PCI Local Bus 3.0 section 3.2.2.3.2), [`CONFIG_PORTS_LEN`] of them.
    #[must_use]
    pub fn config_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(self.clone()))
    }

    /// Reads configuration space. A read without a function at `address` returns all ones.
    pub fn read_config(&self, address: PciAddress, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(slot) = self.slot(address) {
            let len = data.len().min(CONFIG_BYTES.saturating_sub(usize::from(offset)));
            slot.function.read_config(offset, &mut data[..len]);
        }
    }

    /// Writes configuration space. A BAR that the write moves is mapped at its new address when this returns.
    pub fn write_config(&self, address: PciAddress, offset: u16, data: &[u8]) {
        if let Some(slot) = self.slot(address) {
            let len = data.len().min(CONFIG_BYTES.saturating_sub(usize::from(offset)));
            slot.write_config(&self.mmio, offset, &data[..len]);
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

struct ConfigPorts(Arc<PciSegment>);

impl ConfigPorts {
    /// The register that an access of `len` bytes at port `offset` selects.
    fn target(&self, offset: u64, len: usize) -> Option<(PciAddress, u16)> {
        let within = u16::try_from(offset.checked_sub(4)?).ok()?;
        let address = self.0.config_address.load(Ordering::Relaxed);
        if address & ENABLE == 0 || usize::from(within) + len > 4 {
            return None;
        }
        let bytes = address.to_le_bytes();
        let function = PciAddress::new(bytes[2], bytes[1] >> 3, bytes[1] & 7)?;
        Some((function, u16::from(bytes[0] & !3) + within))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((address, offset)) = self.target(offset, data.len()) {
            self.0.read_config(address, offset, data);
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.config_address.load(Ordering::Relaxed).to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((address, offset)) = self.target(offset, data.len()) {
            self.0.write_config(address, offset, data);
        } else if let (0, Ok(value)) = (offset, data.try_into()) {
            self.0.config_address.store(u32::from_le_bytes(value), Ordering::Relaxed);
        }
    }
}
