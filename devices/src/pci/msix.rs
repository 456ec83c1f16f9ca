//! The MSI-X table (PCI Local Bus 3.0 section 6.8.2): the message of each vector, and its mask.

use std::ops::Range;

use bellows_memory::wire;
use serde::{Deserialize, Serialize};
use vm_memory::{ByteValued as _, Le16, Le32};

use crate::interrupt::MsiMessage;
use crate::state::{RestoreError, Version, expect};

wire! {
    /// The MSI-X capability (section 6.8.2).
    pub struct MsixCapability {
        /// [`capability::MSIX`](super::header::capability::MSIX).
        cap_id: u8,
        /// Link to the next capability.
        next_ptr: u8,
        /// The number of vectors minus one, and the control bits.
        message_control: Le16,
        /// Offset of the table in a BAR, and the BAR's number.
        table: Le32,
        /// Offset of the pending bits in a BAR, and the BAR's number.
        pending: Le32,
    }

    /// An entry of the table: one vector.
    struct MsixTableEntry {
        message_address: Le32,
        message_upper_address: Le32,
        message_data: Le32,
        vector_control: Le32,
    }
}

/// Control: MSI-X is on.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Vector control: this vector is masked.
const MASKED: u32 = 1;

impl MsixTableEntry {
    /// An entry as after reset.
    fn new() -> Self {
        Self { vector_control: MASKED.into(), ..Self::default() }
    }

    /// The bits that a driver may write. All others are zero.
    fn writable() -> Self {
        let all = Le32::from(u32::MAX);
        Self {
            message_address: (!3).into(),
            message_upper_address: all,
            message_data: all,
            vector_control: MASKED.into(),
        }
    }

    fn words(&self) -> [u32; 4] {
        let Self { message_address, message_upper_address, message_data, vector_control } = *self;
        [message_address, message_upper_address, message_data, vector_control].map(Le32::to_native)
    }

    fn from_words(words: [u32; 4]) -> Self {
        let [message_address, message_upper_address, message_data, vector_control] = words.map(Le32::from);
        Self { message_address, message_upper_address, message_data, vector_control }
    }
}

/// The handling of a vector's interrupts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// MSI-X is off: interrupts are dropped.
    Off,
    /// Interrupts stay pending.
    Masked,
    /// Interrupts are sent as this message.
    To(MsiMessage),
}

/// State of an [`MsixTable`]. The control bits are in configuration space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MsixState {
    /// Version of this type.
    pub version: Version<1>,
    /// For each vector: address low, address high, data, vector control.
    pub entries: Vec<[u32; 4]>,
}

/// The table and the two control bits of the capability.
#[derive(Clone, Debug)]
pub struct MsixTable {
    entries: Box<[MsixTableEntry]>,
    control: u16,
}

impl MsixTable {
    /// A table of `vectors` vectors, as after reset: all are masked, and MSI-X is off.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self { entries: vec![MsixTableEntry::new(); usize::from(vectors)].into(), control: 0 }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Sets the control word of the capability.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
    }

    /// Reads the table. Unaligned accesses, and accesses beyond its end, read as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((entry, bytes)) = self.locate(offset, data.len()) {
            data.copy_from_slice(&self.entries[entry].as_slice()[bytes]);
        }
    }

    /// Writes the table and returns the vector that this changed. Drops unaligned accesses, and accesses beyond its end.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let (entry, bytes) = self.locate(offset, data.len())?;
        let writable = MsixTableEntry::writable();
        let registers = &mut self.entries[entry].as_mut_slice()[bytes.clone()];
        for ((register, writable), byte) in registers.iter_mut().zip(&writable.as_slice()[bytes]).zip(data) {
            *register = byte & writable;
        }
        u16::try_from(entry).ok()
    }

    /// The current handling of `vector`'s interrupts.
    #[must_use]
    pub fn delivery(&self, vector: u16) -> Delivery {
        let entry = self.entries.get(usize::from(vector)).map(MsixTableEntry::words);
        let Some([low, high, data, control]) = entry else { return Delivery::Off };
        if self.control & CONTROL_ENABLE == 0 {
            Delivery::Off
        } else if self.control & CONTROL_MASK_ALL != 0 || control & MASKED != 0 {
            Delivery::Masked
        } else {
            Delivery::To(MsiMessage { address: u64::from(high) << 32 | u64::from(low), data })
        }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> MsixState {
        MsixState { version: Version, entries: self.entries.iter().map(MsixTableEntry::words).collect() }
    }

    /// Restores the state of a table with the same number of vectors.
    ///
    /// # Errors
    /// The number is different, or a driver cannot have written these entries. The table is unchanged.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), RestoreError> {
        expect("number of MSI-X vectors", &state.entries.len(), &self.entries.len())?;
        let writable = MsixTableEntry::writable();
        for (vector, &[address, _, _, control]) in state.entries.iter().enumerate() {
            let registers = [
                ("address", address, writable.message_address, "a multiple of 4"),
                ("control", control, writable.vector_control, "0 or 1"),
            ];
            for (name, value, writable, expected) in registers {
                if value & !writable.to_native() != 0 {
                    return Err(RestoreError::new(format!("{name} of MSI-X vector {vector}"), value, expected));
                }
            }
        }
        self.entries = state.entries.iter().copied().map(MsixTableEntry::from_words).collect();
        Ok(())
    }

    /// The entry that an aligned access of one or two words selects, and the bytes in it.
    fn locate(&self, offset: u64, len: usize) -> Option<(usize, Range<usize>)> {
        const ENTRY_BYTES: u64 = size_of::<MsixTableEntry>() as u64;
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let entry = usize::try_from(offset / ENTRY_BYTES).ok()?;
        let first = (offset % ENTRY_BYTES) as usize;
        (entry < self.entries.len()).then_some((entry, first..first + len))
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
