//! Configuration space of a function (PCI Local Bus 3.0 section 6.1): bytes, and which of their bits a driver may write.

use serde::{Deserialize, Serialize};
use vm_memory::ByteValued;

use crate::state::{RestoreError, Version, expect};

/// Register offsets of a type 0 header.
pub mod register {
    /// Vendor ID, 2 bytes.
    pub const VENDOR: u16 = 0x00;
    /// Command, 2 bytes.
    pub const COMMAND: u16 = 0x04;
    /// Status, 2 bytes.
    pub const STATUS: u16 = 0x06;
    /// Revision, 1 byte; the class code's 3 bytes follow.
    pub const REVISION: u16 = 0x08;
    /// First of six base address registers, 4 bytes each.
    pub const BAR0: u16 = 0x10;
    /// Just past the last base address register.
    pub const BAR_END: u16 = 0x28;
    /// Subsystem vendor ID and subsystem ID, 2 bytes each.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Offset of the first capability, 1 byte.
    pub const CAPABILITIES: u16 = 0x34;
}

/// COMMAND: memory BARs are answered.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND: the function may be a bus master. Kept for the driver, without effect.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// COMMAND: pin interrupts are off. No function has them anyway.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// STATUS: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Capability: vendor specific.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability: MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;

/// Bytes of conventional configuration space; the rest of the 4 KiB reads as zeros, which says "nothing there".
const BYTES: usize = 256;
const FIRST_CAPABILITY: u8 = 0x40;
const BARS: u8 = 6;

/// What a function says it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class and programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A mistake of a function's author: its configuration space is impossible.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// No room for a capability.
    #[error("a capability of {len} bytes does not fit behind {used:#x} bytes of configuration space")]
    Capability {
        /// Bytes of the capability.
        len: usize,
        /// Bytes that are taken.
        used: u8,
    },
    /// A BAR number or size that there is not.
    #[error("BAR {index} of {bytes:#x} bytes: there are six, of powers of two from 16 bytes on")]
    Bar {
        /// The BAR.
        index: u8,
        /// Its size.
        bytes: u32,
    },
}

/// The configuration space of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    /// Bits that the driver may write.
    writable: [u8; BYTES],
    /// Where the next capability goes.
    end: u8,
    /// Offset of the byte that leads to the next capability.
    link: u8,
}

/// State of a [`ConfigSpace`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ConfigSpaceState {
    /// Version of this type.
    pub version: Version<1>,
    /// The 256 bytes of conventional configuration space.
    pub bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A function without BARs and capabilities, memory decoding off, as after reset.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space =
            Self { bytes: [0; BYTES], writable: [0; BYTES], end: FIRST_CAPABILITY, link: register::CAPABILITIES as u8 };
        let [base, sub, interface] = identity.class;
        space.set(register::VENDOR, &identity.vendor.to_le_bytes());
        space.set(register::VENDOR + 2, &identity.device.to_le_bytes());
        space.set(register::REVISION, &[identity.revision, interface, sub, base]);
        space.set(register::SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.set(register::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
        space.allow(register::COMMAND, &command.to_le_bytes());
        space
    }

    /// Adds a 32-bit, non-prefetchable memory BAR of `bytes`.
    ///
    /// # Errors
    /// There is no such BAR.
    pub fn add_memory_bar(&mut self, index: u8, bytes: u32) -> Result<(), LayoutError> {
        if index >= BARS || bytes < 16 || !bytes.is_power_of_two() {
            return Err(LayoutError::Bar { index, bytes });
        }
        // The bits below the size stay zero: that is how a driver learns it.
        self.allow(bar_register(index), &(!(bytes - 1)).to_le_bytes());
        Ok(())
    }

    /// Adds a capability, of which the driver may write the bits that are set in `writable`. Its first byte is its ID; its second,
    /// the link to the next one, is filled in. Returns the capability's offset.
    ///
    /// # Errors
    /// There is no room.
    pub fn add_capability<C: ByteValued>(&mut self, capability: &C, writable: &C) -> Result<u16, LayoutError> {
        let at = self.end;
        let error = LayoutError::Capability { len: size_of::<C>(), used: at };
        let end = (usize::from(at) + size_of::<C>()).next_multiple_of(4);
        // The last bytes stay unused so that `end` fits.
        self.end = u8::try_from(end).map_err(|_| error)?;
        self.set(u16::from(self.link), &[at]);
        self.link = at + 1;
        self.set(register::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        let at = u16::from(at);
        self.set(at, capability.as_slice());
        self.set(at + 1, &[0]);
        self.allow(at, writable.as_slice());
        Ok(at)
    }

    /// Reads at `offset` of the 4 KiB; what lies outside reads as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = match at {
                0..BYTES => self.bytes[at],
                BYTES..4096 => 0,
                _ => 0xff,
            };
        }
    }

    /// A driver's write at `offset` of the 4 KiB: changes the bits that may be written, anywhere, at any width.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..BYTES).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// The function's own write at `offset`, whatever the driver may do.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..BYTES).zip(data) {
            self.bytes[at] = byte;
        }
    }

    /// The 2 bytes at `offset`.
    #[must_use]
    pub fn u16_at(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The 4 bytes at `offset`.
    #[must_use]
    pub fn u32_at(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The structure at `offset`.
    #[must_use]
    pub fn obj_at<T: ByteValued + Default>(&self, offset: u16) -> T {
        let mut value = T::default();
        self.read(offset, value.as_mut_slice());
        value
    }

    /// Where memory BAR `index` is to be answered now: nowhere while memory decoding is off or if there is no such BAR.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u32> {
        if self.u16_at(register::COMMAND) & COMMAND_MEMORY == 0 || index >= BARS {
            return None;
        }
        let at = bar_register(index);
        let exists = self.writable[usize::from(at) + 3] != 0;
        exists.then(|| self.u32_at(at) & !0xf)
    }

    /// Places BAR `index`, as firmware would; bits below its size are dropped.
    pub fn place_bar(&mut self, index: u8, address: u32) {
        if index < BARS {
            self.write(bar_register(index), &address.to_le_bytes());
        }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> ConfigSpaceState {
        ConfigSpaceState { version: Version, bytes: self.bytes.to_vec() }
    }

    /// Becomes what a space with the same BARs and capabilities was.
    ///
    /// # Errors
    /// It had others; nothing changed.
    pub fn restore(&mut self, state: &ConfigSpaceState) -> Result<(), RestoreError> {
        expect("length of configuration space", &state.bytes.len(), &BYTES)?;
        for (at, (&byte, &writable)) in state.bytes.iter().zip(&self.writable).enumerate() {
            let fixed = format!("byte {at:#x} of configuration space, without bits that a driver may write,");
            expect(&fixed, &(byte & !writable), &(self.bytes[at] & !writable))?;
        }
        self.bytes.copy_from_slice(&state.bytes);
        Ok(())
    }

    /// Whether an access of `len` bytes at `offset` can change where BARs are answered.
    #[must_use]
    pub fn touches_decoding(offset: u16, len: usize) -> bool {
        let end = usize::from(offset).saturating_add(len);
        let overlaps = |first: u16, past: u16| offset < past && end > usize::from(first);
        overlaps(register::COMMAND, register::STATUS) || overlaps(register::BAR0, register::BAR_END)
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (at, &byte) in (usize::from(offset)..BYTES).zip(mask) {
            self.writable[at] |= byte;
        }
    }
}

const fn bar_register(index: u8) -> u16 {
    register::BAR0 + 4 * index as u16
}

#[cfg(test)]
#[path = "config_space_test.rs"]
mod tests;
