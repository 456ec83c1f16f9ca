//! A PCI segment: several root buses, functions that come and go.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bellows_memory::AddressRange;
use serde::{Deserialize, Serialize};

use super::host_bridge::HostBridge;
use super::root_bus::{RootBus, Slot, SlotState};
use super::{PciAddress, PciFunction};
use crate::bus::Bus;
use crate::state::{RestoreError, Version, expect};

/// What a segment consists of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentLayout {
    /// Root buses, numbered from 0 on; at least one.
    pub buses: u8,
    /// Where the buses' MMIO windows begin, one behind the other.
    pub window_base: u64,
    /// Bytes of each bus's MMIO window.
    pub window_per_bus: u64,
}

impl SegmentLayout {
    /// Bytes of the ECAM window.
    #[must_use]
    pub const fn ecam_bytes(&self) -> u64 {
        (self.buses as u64) << 20
    }

    /// The MMIO window of `bus`; `None` if there is no such bus or the window is not below 4 GiB.
    #[must_use]
    pub fn window(&self, bus: u8) -> Option<AddressRange> {
        let base = self.window_base.checked_add(u64::from(bus).checked_mul(self.window_per_bus)?)?;
        let range = AddressRange::new(base, self.window_per_bus)?;
        (bus < self.buses && range.last() <= u64::from(u32::MAX)).then_some(range)
    }
}

/// Why a function could not be put on the segment or taken off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PciError {
    /// The layout is impossible.
    #[error("no PCI segment can have {0:x?}: it needs a bus, and windows below 4 GiB")]
    Layout(SegmentLayout),
    /// No bus has a slot and room in its window.
    #[error("no slot is free on any of {buses} PCI buses")]
    Full {
        /// Number of buses.
        buses: u8,
    },
    /// Nothing removable is there.
    #[error("there is no removable PCI function at {0}")]
    NotFound(PciAddress),
}

/// PCI segment 0. Functions are found through [`PciSegment::ecam`] or [`PciSegment::config_ports`]; BARs that the guest
/// enables are put on the MMIO bus.
///
/// Bus 0 has a host bridge in its first slot; all other slots are for functions.
pub struct PciSegment {
    layout: SegmentLayout,
    /// Weak because the bus holds the segment's ECAM window.
    pub(super) mmio: Weak<Bus>,
    buses: Vec<Mutex<RootBus>>,
    /// The register at port 0xcf8.
    pub(super) config_address: AtomicU32,
}

/// State of a [`PciSegment`]: which function is where. Their own states are theirs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SegmentState {
    /// Version of this type.
    pub version: Version<1>,
    /// The register at port 0xcf8.
    pub config_address: u32,
    /// All functions but the host bridge.
    pub slots: Vec<SlotState>,
}

impl PciSegment {
    /// A segment whose BARs appear on `mmio`.
    ///
    /// # Errors
    /// The layout is impossible.
    pub fn new(layout: SegmentLayout, mmio: &Arc<Bus>) -> Result<Arc<Self>, PciError> {
        let buses: Option<Vec<_>> =
            (0..layout.buses).map(|number| Some(RootBus::new(number, layout.window(number)?))).collect();
        let mut buses = buses.filter(|buses| !buses.is_empty()).ok_or(PciError::Layout(layout))?;
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        buses[0].add(&bridge).ok_or(PciError::Layout(layout))?;
        Ok(Arc::new(Self {
            layout,
            mmio: Arc::downgrade(mmio),
            buses: buses.into_iter().map(Mutex::new).collect(),
            config_address: AtomicU32::new(0),
        }))
    }

    /// What the segment consists of.
    #[must_use]
    pub fn layout(&self) -> SegmentLayout {
        self.layout
    }

    /// Puts `function` on the first bus with room. Its BARs get valid addresses, decoding off; the guest finds it at its
    /// next scan.
    ///
    /// # Errors
    /// No bus has room.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<PciAddress, PciError> {
        self.buses.iter().find_map(|bus| lock(bus).add(&function)).ok_or(PciError::Full { buses: self.layout.buses })
    }

    /// Takes the function at `address` away, however the guest uses it. When this returns it has stopped. Not to be called
    /// on a thread that runs its queues.
    ///
    /// # Errors
    /// Nothing removable is there.
    pub fn remove(&self, address: PciAddress) -> Result<Arc<dyn PciFunction>, PciError> {
        let not_found = PciError::NotFound(address);
        let slot = self.slot(address).filter(|_| !is_host_bridge(address)).ok_or(not_found)?;
        if !slot.tear_down(&self.mmio) {
            return Err(not_found);
        }
        // Only now may another function take the slot and the addresses.
        let bus = self.buses.get(usize::from(address.bus())).ok_or(not_found)?;
        lock(bus).forget(&slot);
        Ok(slot.function.clone())
    }

    /// Suspends every function: when this returns no device touches guest memory. For when the guest's CPUs have stopped; a
    /// function that is added later is not suspended.
    pub fn suspend(&self) {
        self.slots().for_each(|slot| slot.function.suspend());
    }

    /// Resumes every function.
    pub fn resume(&self) {
        self.slots().for_each(|slot| slot.function.resume());
    }

    /// The state. For when every function is suspended.
    #[must_use]
    pub fn save(&self) -> SegmentState {
        let functions = self.slots().filter(|slot| !is_host_bridge(slot.address));
        SegmentState {
            version: Version,
            config_address: self.config_address.load(Ordering::Relaxed),
            slots: functions.map(|slot| slot.save()).collect(),
        }
    }

    /// Becomes what a segment of the same layout was. `functions` are those of [`SegmentState::slots`], restored, in the same
    /// order. The segment is new.
    ///
    /// # Errors
    /// The layout was another, or not all functions are there; nothing changed, and no function was touched.
    pub fn restore(&self, state: &SegmentState, functions: &[Arc<dyn PciFunction>]) -> Result<(), RestoreError> {
        expect("number of PCI functions", &state.slots.len(), &functions.len())?;
        let mut buses: Vec<_> = self.buses.iter().map(lock).collect();
        let mut restored: Vec<_> = buses.iter().map(|bus| RootBus::clone(bus)).collect();
        let mut slots = Vec::with_capacity(functions.len());
        for (slot, function) in state.slots.iter().zip(functions) {
            let number = slot.address.bus();
            let bus = restored.get_mut(usize::from(number)).ok_or_else(|| {
                RestoreError::new("bus of a PCI function", number, format!("one of {}", self.layout.buses))
            })?;
            slots.push(bus.restore(function, slot)?);
        }
        // Nothing fails from here on.
        buses.iter_mut().zip(restored).for_each(|(bus, restored)| **bus = restored);
        drop(buses);
        slots.iter().for_each(|slot| slot.update_bars(&self.mmio));
        self.config_address.store(state.config_address, Ordering::Relaxed);
        Ok(())
    }

    /// The function at `address`.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<Arc<dyn PciFunction>> {
        self.slot(address).map(|slot| slot.function.clone())
    }

    /// All slots that are taken, in order.
    fn slots(&self) -> impl Iterator<Item = Arc<Slot>> {
        self.buses.iter().flat_map(|bus| lock(bus).slots().cloned().collect::<Vec<_>>())
    }

    pub(super) fn slot(&self, address: PciAddress) -> Option<Arc<Slot>> {
        lock(self.buses.get(usize::from(address.bus()))?).slot(address).cloned()
    }
}

impl Drop for PciSegment {
    fn drop(&mut self) {
        for slot in self.slots() {
            slot.tear_down(&self.mmio);
        }
    }
}

const fn is_host_bridge(address: PciAddress) -> bool {
    address.bus() == 0 && address.device() == 0
}

fn lock(bus: &Mutex<RootBus>) -> MutexGuard<'_, RootBus> {
    // Slots are set and cleared in one step each, whoever panicked.
    bus.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "segment_test.rs"]
mod tests;
