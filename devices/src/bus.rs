//! Address spaces that guest accesses are dispatched on: port I/O and memory-mapped I/O.
//!
//! ```
//! use std::sync::Arc;
//!
//! use bellows_devices::bus::{Bus, BusDevice};
//!
//! /// Reads as its offset; takes everything.
//! struct Echo;
//!
//! impl BusDevice for Echo {
//!     fn read(&self, offset: u64, data: &mut [u8]) {
//!         data.fill(offset as u8);
//!     }
//!
//!     fn write(&self, _offset: u64, _data: &[u8]) {}
//! }
//!
//! let bus = Bus::new();
//! bus.insert(0x700, 4, Arc::new(Echo))?;
//! let mut byte = [0];
//! assert!(bus.read(0x702, &mut byte) && byte == [2]);
//! assert!(!bus.write(0x704, &byte), "nothing is there");
//! # Ok::<(), bellows_devices::bus::BusError>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bellows_memory::AddressRange;

/// A device that answers guest reads and writes in a range of an address space.
///
/// `offset` counts from the start of the range. Accesses come from vCPU threads, several at once; `data` is 1, 2, 4 or 8
/// bytes long and little-endian, and may reach past what the device implements: unknown parts read as zeros (all ones
/// where the PCI specification says so) and writes to them are dropped.
pub trait BusDevice: Send + Sync {
    /// Answers a guest read.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a guest write.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Addresses that the guest writes to wake a queue: a write of any 2-byte value to a guest-physical address signals an
/// eventfd without an exit to the monitor (KVM's ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Wires `fd` to guest writes at `address`.
    ///
    /// # Errors
    /// The hypervisor refused, for example because the address is wired already.
    fn wire(&self, address: u64, fd: &vmm_sys_util::eventfd::EventFd) -> std::io::Result<()>;

    /// Undoes [`Doorbells::wire`] with the same arguments.
    ///
    /// # Errors
    /// No eventfd is wired there.
    fn unwire(&self, address: u64, fd: &vmm_sys_util::eventfd::EventFd) -> std::io::Result<()>;
}

/// Why a device could not be put on a [`Bus`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("{len} addresses from {base:#x} on are not a range: expected at least one, and an end below 2^64")]
    NoRange {
        /// First address requested.
        base: u64,
        /// Number of addresses requested.
        len: u64,
    },
    /// Another device is there.
    #[error("the range {wanted} overlaps {taken}, which is taken")]
    Overlap {
        /// The range requested.
        wanted: AddressRange,
        /// The range of the device that is there.
        taken: AddressRange,
    },
}

/// One address space: the devices and their addresses.
///
/// No lock is held while a device is called, so a device may insert and remove ranges, its own included, from within a
/// write. A device removed meanwhile may therefore still see an access that began before.
#[derive(Default)]
pub struct Bus {
    /// By first address.
    devices: RwLock<BTreeMap<u64, Mapping>>,
}

#[derive(Clone)]
struct Mapping {
    range: AddressRange,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// An address space without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer at `len` addresses from `base` on.
    ///
    /// # Errors
    /// The range is invalid, or overlaps another device's; nothing changed.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let wanted = AddressRange::new(base, len).ok_or(BusError::NoRange { base, len })?;
        let mut devices = self.write_lock();
        // Ranges don't overlap each other, so only the last one that begins at or below our end can overlap.
        if let Some((_, below)) = devices.range(..=wanted.last()).next_back()
            && below.range.overlaps(wanted)
        {
            return Err(BusError::Overlap { wanted, taken: below.range });
        }
        devices.insert(base, Mapping { range: wanted, device });
        Ok(())
    }

    /// Removes the device whose range begins at `base`.
    pub fn remove(&self, base: u64) -> Option<Arc<dyn BusDevice>> {
        self.write_lock().remove(&base).map(|mapping| mapping.device)
    }

    /// Reads at `address`. If no device answers the whole access, `data` becomes all ones and the result is `false`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes at `address`; `false` if no device answers the whole access, which is then dropped.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let access = AddressRange::new(address, len as u64)?;
        let devices = self.read_lock();
        let (_, mapping) = devices.range(..=address).next_back()?;
        mapping.range.contains(access).then(|| (address - mapping.range.first(), mapping.device.clone()))
    }

    // The map is whole between any two operations, so a panic elsewhere while the lock was held cannot have broken it.
    fn read_lock(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Mapping>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Mapping>> {
        self.devices.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read_lock().values().map(|mapping| mapping.range.to_string())).finish()
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
