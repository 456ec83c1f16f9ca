//! Configuration space of a function (PCI Local Bus 3.0 section 6.1): its bytes, and the bits that a driver may write.

use std::iter::{repeat, repeat_n};
use std::ops::Range;

use bellows_memory::field;
use serde::{Deserialize, Serialize};
use vm_memory::ByteValued;

use super::CONVENTIONAL_BYTES;
use super::header::{Type0Header, command, register, status};
use crate::state::{RestoreError, Version, expect};

/// The IDs and the class code of a function.
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

/// An invalid configuration space: a programming error in a function.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// The capability does not fit.
    #[error("a capability of {len} bytes does not fit after the first {used:#x} bytes of configuration space")]
    Capability {
        /// Size of the capability in bytes.
        len: usize,
        /// Bytes in use.
        used: u8,
    },
    /// The number or the size of the BAR is invalid.
    #[error("BAR {index} of {bytes:#x} bytes: expected a number below 6, and a power of two of at least 16 bytes")]
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
    registers: Registers,
    /// Bits that the driver may write.
    writable: Registers,
    /// Offset of the next capability.
    end: u8,
    /// Offset of the byte that links to the next capability.
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
    /// A function without BARs and capabilities, as after reset: memory decoding is off.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let [base_class, sub_class, programming_interface] = identity.class;
        let header = Type0Header {
            vendor_id: identity.vendor.into(),
            device_id: identity.device.into(),
            revision_id: identity.revision,
            programming_interface,
            sub_class,
            base_class,
            subsystem_vendor_id: identity.subsystem_vendor.into(),
            subsystem_id: identity.subsystem.into(),
            ..Default::default()
        };
        let writable = Type0Header {
            command: (command::MEMORY | command::MASTER | command::INTX_DISABLE).into(),
            ..Default::default()
        };
        Self {
            registers: Registers::new(header),
            writable: Registers::new(writable),
            end: FIRST_CAPABILITY,
            link: register::CAPABILITIES as u8,
        }
    }

    /// Adds a 32-bit, non-prefetchable memory BAR of `bytes`.
    ///
    /// # Errors
    /// The number or the size of the BAR is invalid.
    pub fn add_memory_bar(&mut self, index: u8, bytes: u32) -> Result<(), LayoutError> {
        let error = LayoutError::Bar { index, bytes };
        let writable = self.writable.header.base_address.get_mut(usize::from(index)).ok_or(error)?;
        if bytes < 16 || !bytes.is_power_of_two() {
            return Err(error);
        }
        // The bits below the size stay zero: from them a driver learns the size.
        *writable = (!(bytes - 1)).into();
        Ok(())
    }

    /// Adds a capability and returns its offset. The driver may write the bits that are set in `writable`. The first byte of
    /// `capability` is its ID. This fills in the second byte, the link to the next capability.
    ///
    /// # Errors
    /// The capability does not fit.
    pub fn add_capability<C: ByteValued>(&mut self, capability: &C, writable: &C) -> Result<u16, LayoutError> {
        let at = self.end;
        let error = LayoutError::Capability { len: size_of::<C>(), used: at };
        let end = (usize::from(at) + size_of::<C>()).next_multiple_of(4);
        // The last bytes stay unused, so that `end` fits into a byte.
        self.end = u8::try_from(end).map_err(|_| error)?;
        self.set(u16::from(self.link), &[at]);
        self.link = at + 1;
        self.registers.header.status = status::CAPABILITIES.into();
        let at = u16::from(at);
        self.set(at, capability.as_slice());
        self.set(at + 1, &[0]);
        self.writable.set(at, writable.as_slice());
        Ok(at)
    }

    /// Reads at `offset` of the 4 KiB. Bytes beyond them read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let space = self.registers.bytes().copied().chain(repeat_n(0, SPACE_BYTES - BYTES)).chain(repeat(0xff));
        for (byte, register) in data.iter_mut().zip(space.skip(offset.into())) {
            *byte = register;
        }
    }

    /// All of conventional configuration space.
    #[must_use]
    pub fn registers(&self) -> [u8; CONVENTIONAL_BYTES] {
        let mut registers = [0; CONVENTIONAL_BYTES];
        self.read(0, &mut registers);
        registers
    }

    /// Writes at `offset` of the 4 KiB for a driver, at any width. Changes only the bits that a driver may write.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let registers = self.registers.bytes_mut().zip(self.writable.bytes());
        for ((register, writable), byte) in registers.skip(offset.into()).zip(data) {
            *register = *register & !writable | byte & writable;
        }
    }

    /// Writes at `offset` for the function itself, which may change all bits.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        self.registers.set(offset, data);
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

    /// The address of memory BAR `index`; `None` while memory decoding is off, or without such a BAR.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u32> {
        let bar = |registers: &Registers| registers.header.base_address.get(usize::from(index)).copied();
        let exists = bar(&self.writable)? != 0;
        let decodes = self.registers.header.command.to_native() & command::MEMORY != 0;
        if exists && decodes { bar(&self.registers).map(|address| address.to_native() & !0xf) } else { None }
    }

    /// Writes the address of BAR `index`, as firmware would. Drops the bits below its size.
    pub fn place_bar(&mut self, index: u8, address: u32) {
        let index = usize::from(index);
        let bars = &mut self.registers.header.base_address;
        if let (Some(bar), Some(writable)) = (bars.get_mut(index), self.writable.header.base_address.get(index)) {
            *bar = (address & writable.to_native()).into();
        }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> ConfigSpaceState {
        ConfigSpaceState { version: Version, bytes: self.registers.bytes().copied().collect() }
    }

    /// Restores the state of a space with the same BARs and capabilities.
    ///
    /// # Errors
    /// Its BARs or capabilities were different. The space is unchanged.
    pub fn restore(&mut self, state: &ConfigSpaceState) -> Result<(), RestoreError> {
        expect("length of configuration space", &state.bytes.len(), &BYTES)?;
        let registers = self.registers.bytes().zip(self.writable.bytes());
        for (at, (byte, (register, writable))) in state.bytes.iter().zip(registers).enumerate() {
            let fixed = format!("byte {at:#x} of configuration space, without bits that a driver may write,");
            expect(&fixed, &(byte & !writable), &(register & !writable))?;
        }
        self.registers.set(0, &state.bytes);
        Ok(())
    }

    /// Whether an access of `len` bytes at `offset` can move a BAR or change its decoding.
    #[must_use]
    pub fn touches_decoding(offset: u16, len: usize) -> bool {
        let decoding = [field!(Type0Header, command), field!(Type0Header, base_address)];
        decoding.iter().any(|registers| touches(offset, len, registers))
    }
}

/// Whether an access of `len` bytes at `offset` of configuration space touches `registers`.
pub(crate) fn touches(offset: u16, len: usize, registers: &Range<u16>) -> bool {
    offset < registers.end && usize::from(offset) + len > usize::from(registers.start)
}

/// Size of a function's configuration space.
const SPACE_BYTES: usize = 4096;
/// Size of conventional configuration space. The rest reads as zeros: the function has no extended capabilities.
const BYTES: usize = CONVENTIONAL_BYTES;
const FIRST_CAPABILITY: u8 = size_of::<Type0Header>() as u8;

/// Conventional configuration space.
#[derive(Clone)]
struct Registers {
    header: Type0Header,
    capabilities: [u8; BYTES - size_of::<Type0Header>()],
}

impl Registers {
    const fn new(header: Type0Header) -> Self {
        Self { header, capabilities: [0; _] }
    }

    fn bytes(&self) -> impl Iterator<Item = &u8> {
        self.header.as_slice().iter().chain(&self.capabilities)
    }

    fn bytes_mut(&mut self) -> impl Iterator<Item = &mut u8> {
        self.header.as_mut_slice().iter_mut().chain(&mut self.capabilities)
    }

    fn set(&mut self, offset: u16, data: &[u8]) {
        for (register, byte) in self.bytes_mut().skip(offset.into()).zip(data) {
            *register = *byte;
        }
    }
}

#[cfg(test)]
#[path = "config_space_test.rs"]
mod tests;
