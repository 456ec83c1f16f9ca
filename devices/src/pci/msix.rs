//! The MSI-X table (PCI Local Bus 3.0 section 6.8.2): where each vector's message goes, and whether it may.

use bellows_memory::wire;
use serde::{Deserialize, Serialize};
use vm_memory::{Le16, Le32};

use crate::interrupt::MsiMessage;
use crate::state::{RestoreError, Version, expect};

wire! {
    /// The MSI-X capability (section 6.8.2).
    pub struct MsixCapability {
        /// [`CAPABILITY_MSIX`](super::config_space::CAPABILITY_MSIX).
        cap_id: u8,
        /// Link to the next capability.
        next_ptr: u8,
        /// Number of vectors less one, and the control bits.
        message_control: Le16,
        /// Offset of the table in a BAR, and the BAR's number.
        table: Le32,
        /// Offset of the pending bits in a BAR, and the BAR's number.
        pending: Le32,
    }
}

/// Bytes of a table entry.
pub const ENTRY_BYTES: u64 = 16;
/// Control: MSI-X is on.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Bit of an entry's last word: this vector is masked.
const ENTRY_MASKED: u32 = 1;
/// Bits of an entry that a driver may write.
const WRITABLE: [u32; 4] = [!3, !0, !0, ENTRY_MASKED];

/// What becomes of a vector's interrupts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// MSI-X is off: they are dropped.
    Off,
    /// They stay pending.
    Masked,
    /// They are sent.
    To(MsiMessage),
}

/// State of an [`MsixTable`]; the control bits are in configuration space.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MsixState {
    /// Version of this type.
    pub version: Version<1>,
    /// Of each vector: address low, address high, data, vector control.
    pub entries: Vec<[u32; 4]>,
}

/// The table and the two control bits of the capability.
#[derive(Clone, Debug)]
pub struct MsixTable {
    /// Address low, address high, data, vector control.
    entries: Box<[[u32; 4]]>,
    control: u16,
}

impl MsixTable {
    /// `vectors` vectors, each masked, MSI-X off: the state after reset.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self { entries: vec![[0, 0, 0, ENTRY_MASKED]; usize::from(vectors)].into(), control: 0 }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Takes a new value of the capability's control word.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
    }

    /// Reads the table; unaligned accesses and what lies behind it read as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((entry, word)) = self.locate(offset, data.len()) {
            for (word, bytes) in self.entries[entry][word..].iter().zip(data.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Writes the table and says which vector that changed. Unaligned accesses and what lies behind the table are dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let (entry, first) = self.locate(offset, data.len())?;
        for (word, bytes) in (first..).zip(data.chunks_exact(4)) {
            let mut value = [0; 4];
            value.copy_from_slice(bytes);
            self.entries[entry][word] = u32::from_le_bytes(value) & WRITABLE[word];
        }
        u16::try_from(entry).ok()
    }

    /// What becomes of `vector`'s interrupts now.
    #[must_use]
    pub fn delivery(&self, vector: u16) -> Delivery {
        let Some(&[low, high, data, control]) = self.entries.get(usize::from(vector)) else { return Delivery::Off };
        if self.control & CONTROL_ENABLE == 0 {
            Delivery::Off
        } else if self.control & CONTROL_MASK_ALL != 0 || control & ENTRY_MASKED != 0 {
            Delivery::Masked
        } else {
            Delivery::To(MsiMessage { address: u64::from(high) << 32 | u64::from(low), data })
        }
    }

    /// The state.
    #[must_use]
    pub fn save(&self) -> MsixState {
        MsixState { version: Version, entries: self.entries.to_vec() }
    }

    /// Becomes what a table with as many vectors was.
    ///
    /// # Errors
    /// It had others, or the entries are not what a driver can have written; nothing changed.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), RestoreError> {
        expect("number of MSI-X vectors", &state.entries.len(), &self.entries.len())?;
        for (vector, &[address_low, _, _, control]) in state.entries.iter().enumerate() {
            if address_low & !WRITABLE[0] != 0 {
                let what = format!("address of MSI-X vector {vector}");
                return Err(RestoreError::new(what, address_low, "a multiple of 4"));
            }
            if control & !WRITABLE[3] != 0 {
                let what = format!("control of MSI-X vector {vector}");
                return Err(RestoreError::new(what, control, "0 or 1"));
            }
        }
        self.entries.copy_from_slice(&state.entries);
        Ok(())
    }

    /// Entry and word of an aligned access of one or two words.
    fn locate(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let entry = usize::try_from(offset / ENTRY_BYTES).ok()?;
        (entry < self.entries.len()).then_some((entry, (offset % ENTRY_BYTES / 4) as usize))
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
