//! The host bridge on bus 0. It has only an identity.

use super::config_space::{ConfigSpace, Identity};
use super::{CONVENTIONAL_BYTES, PciFunction};

/// A generic PCIe host bridge.
pub(super) struct HostBridge {
    space: ConfigSpace,
}

impl HostBridge {
    pub(super) fn new() -> Self {
        // Red Hat's IDs for a PCIe host bridge without registers of its own.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [0x06, 0x00, 0x00],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self { space: ConfigSpace::new(identity) }
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}

    fn registers(&self) -> Option<[u8; CONVENTIONAL_BYTES]> {
        Some(self.space.registers())
    }
}
