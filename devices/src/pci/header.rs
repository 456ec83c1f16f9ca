//! The header at the start of configuration space (PCI Local Bus 3.0 section 6.1), and the numbers in it.

use bellows_memory::wire;
use vm_memory::{Le16, Le32};

wire! {
    /// The type 0 header, of functions that are not bridges to another bus.
    pub struct Type0Header {
        /// Vendor ID.
        vendor_id: Le16,
        /// Device ID.
        device_id: Le16,
        /// A set of [`command`] bits.
        command: Le16,
        /// A set of [`status`] bits.
        status: Le16,
        /// Revision ID.
        revision_id: u8,
        /// Class code: programming interface.
        programming_interface: u8,
        /// Class code: sub-class.
        sub_class: u8,
        /// Class code: base class.
        base_class: u8,
        /// Cacheline size.
        cacheline_size: u8,
        /// Latency timer.
        latency_timer: u8,
        /// Header type: 0.
        header_type: u8,
        /// Built-in self test.
        bist: u8,
        /// Base address registers.
        base_address: [Le32; 6],
        /// Cardbus CIS pointer.
        cardbus_cis_pointer: Le32,
        /// Subsystem vendor ID.
        subsystem_vendor_id: Le16,
        /// Subsystem ID.
        subsystem_id: Le16,
        /// Expansion ROM base address.
        expansion_rom_base_address: Le32,
        /// Offset of the first capability.
        capabilities_pointer: u8,
        /// Reserved.
        reserved: [u8; 7],
        /// Interrupt line.
        interrupt_line: u8,
        /// Interrupt pin.
        interrupt_pin: u8,
        /// Min_Gnt.
        min_gnt: u8,
        /// Max_Lat.
        max_lat: u8,
    }
}

/// Bits of the command register.
pub mod command {
    /// The function decodes its memory BARs.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may be a bus master. The bit is kept for the driver, and has no effect.
    pub const MASTER: u16 = 1 << 2;
    /// Pin interrupts are off. The bit has no effect: our functions do not use pin interrupts.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub mod status {
    /// The function has a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// IDs of capabilities (appendix H).
pub mod capability {
    /// Vendor specific.
    pub const VENDOR: u8 = 0x09;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Offsets of the registers that drivers use.
pub mod register {
    use std::mem::offset_of;

    use super::Type0Header;

    /// Vendor ID, 2 bytes.
    pub const VENDOR: u16 = offset_of!(Type0Header, vendor_id) as u16;
    /// Command, 2 bytes.
    pub const COMMAND: u16 = offset_of!(Type0Header, command) as u16;
    /// Status, 2 bytes.
    pub const STATUS: u16 = offset_of!(Type0Header, status) as u16;
    /// Revision, 1 byte. The 3 bytes of the class code follow.
    pub const REVISION: u16 = offset_of!(Type0Header, revision_id) as u16;
    /// The first of the base address registers, 4 bytes each.
    pub const BAR0: u16 = offset_of!(Type0Header, base_address) as u16;
    /// Subsystem vendor ID and subsystem ID, 2 bytes each.
    pub const SUBSYSTEM: u16 = offset_of!(Type0Header, subsystem_vendor_id) as u16;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = offset_of!(Type0Header, capabilities_pointer) as u16;
}

/// Figure 6-1 of the specification.
const _: () = {
    assert!(register::COMMAND == 0x04 && register::STATUS == 0x06 && register::REVISION == 0x08);
    assert!(register::BAR0 == 0x10 && register::SUBSYSTEM == 0x2c && register::CAPABILITIES == 0x34);
    assert!(std::mem::offset_of!(Type0Header, interrupt_line) == 0x3c && size_of::<Type0Header>() == 0x40);
};
