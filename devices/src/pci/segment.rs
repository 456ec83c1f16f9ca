//! A PCI segment: root buses, and functions that come and go.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bellows_memory::AddressRange;
use serde::{Deserialize, Serialize};

use super::host_bridge::HostBridge;
use super::root_bus::{RootBus, Slot, SlotState};
use super::{ConfigMirror, PciAddress, PciFunction};
use crate::bus::Bus;
use crate::state::{RestoreError, Version, expect};

/// The buses and windows of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentLayout {
    /// Number of root buses, at least one. Their numbers begin at 0.
    pub buses: u8,
    /// Start of the MMIO windows of the buses, which follow each other.
    pub window_base: u64,
    /// Size of each bus's MMIO window in bytes.
    pub window_per_bus: u64,
}

impl SegmentLayout {
    /// Size of the ECAM window in bytes.
    #[must_use]
    pub const fn ecam_bytes(&self) -> u64 {
        (self.buses as u64) << 20
    }

    /// The MMIO window of `bus`; `None` if the bus does not exist, or its window does not end below 4 GiB.
    #[must_use]
    pub fn window(&self, bus: u8) -> Option<AddressRange> {
        let base = self.window_base.checked_add(u64::from(bus).checked_mul(self.window_per_bus)?)?;
        let range = AddressRange::new(base, self.window_per_bus)?;
        (bus < self.buses && range.last() <= u64::from(u32::MAX)).then_some(range)
    }
}

/// An error while making a segment, or adding or removing a function.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PciError {
    /// The layout is invalid.
    #[error("invalid layout of a PCI segment {0:x?}: expected at least one bus, and windows below 4 GiB")]
    Layout(SegmentLayout),
    /// Every bus lacks a free slot, or room in its window.
    #[error("all {buses} PCI buses are full")]
    Full {
        /// Number of buses.
        buses: u8,
    },
    /// The address has no function that can be removed.
    #[error("there is no removable PCI function at {0}")]
    NotFound(PciAddress),
}

/// PCI segment 0. The guest finds functions through [`PciSegment::ecam`]. BARs that it enables appear on the MMIO bus.
///
/// Bus 0 has a host bridge in its first slot. All other slots are for functions.
pub struct PciSegment {
    layout: SegmentLayout,
    /// Weak, because the bus holds the segment's ECAM window.
    pub(super) mmio: Weak<Bus>,
    buses: Vec<Mutex<RootBus>>,
    mirror: OnceLock<Arc<dyn ConfigMirror>>,
}

/// State of a [`PciSegment`]: the places of its functions. Each function saves its own state.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SegmentState {
    /// Version of this type.
    pub version: Version<2>,
    /// All functions but the host bridge.
    pub slots: Vec<SlotState>,
}

impl PciSegment {
    /// A segment whose BARs appear on `mmio`.
    ///
    /// # Errors
    /// The layout is invalid.
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
            mirror: OnceLock::new(),
        }))
    }

    /// Has `mirror` show the guest what reads give, from now on. The first one stands.
    pub fn show_in(&self, mirror: Arc<dyn ConfigMirror>) {
        if self.mirror.set(mirror).is_ok() {
            self.slots().for_each(|slot| slot.show(self.mirror()));
        }
    }

    pub(super) fn mirror(&self) -> Option<&dyn ConfigMirror> {
        self.mirror.get().map(|mirror| &**mirror)
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> SegmentLayout {
        self.layout
    }

    /// Puts `function` on the first bus with room. Its BARs get valid addresses, with decoding off. The guest finds it at its
    /// next scan.
    ///
    /// # Errors
    /// All buses are full.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<PciAddress, PciError> {
        let added = self.buses.iter().find_map(|bus| lock(bus).add(&function));
        let slot = added.ok_or(PciError::Full { buses: self.layout.buses })?;
        slot.show(self.mirror());
        Ok(slot.address)
    }

    /// Removes the function at `address`, even while the guest uses it. When this returns, the function has stopped. Do not call
    /// this on a thread that runs the function's queues.
    ///
    /// # Errors
    /// The address has no function that can be removed.
    pub fn remove(&self, address: PciAddress) -> Result<Arc<dyn PciFunction>, PciError> {
        let not_found = PciError::NotFound(address);
        let slot = self.slot(address).filter(|_| !is_host_bridge(address)).ok_or(not_found)?;
        if !slot.tear_down(&self.mmio, self.mirror()) {
            return Err(not_found);
        }
        // From now on another function may take the slot and the addresses.
        let bus = self.buses.get(usize::from(address.bus())).ok_or(not_found)?;
        lock(bus).forget(&slot);
        Ok(slot.function.clone())
    }

    /// Suspends all functions. When this returns, devices do not touch guest memory. Call this after the guest's CPUs have
    /// stopped. A function that is added later is not suspended.
    pub fn suspend(&self) {
        self.slots().for_each(|slot| slot.function.suspend());
    }

    /// Resumes all functions.
    pub fn resume(&self) {
        self.slots().for_each(|slot| slot.function.resume());
    }

    /// The state. Call this while all functions are suspended.
    #[must_use]
    pub fn save(&self) -> SegmentState {
        let functions = self.slots().filter(|slot| !is_host_bridge(slot.address));
        SegmentState { version: Version, slots: functions.map(|slot| slot.save()).collect() }
    }

    /// Restores the state of a segment with the same layout. This segment is new. `functions` are the restored functions of
    /// [`SegmentState::slots`], in the same order.
    ///
    /// # Errors
    /// The layout is different, or functions are missing. The segment and the functions are unchanged.
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
        // All steps from here on succeed.
        buses.iter_mut().zip(restored).for_each(|(bus, restored)| **bus = restored);
        drop(buses);
        slots.iter().for_each(|slot| {
            slot.update_bars(&self.mmio);
            slot.show(self.mirror());
        });
        Ok(())
    }

    /// The function at `address`.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<Arc<dyn PciFunction>> {
        self.slot(address).map(|slot| slot.function.clone())
    }

    /// All occupied slots, in order.
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
            slot.tear_down(&self.mmio, None);
        }
    }
}

const fn is_host_bridge(address: PciAddress) -> bool {
    address.bus() == 0 && address.device() == 0
}

fn lock(bus: &Mutex<RootBus>) -> MutexGuard<'_, RootBus> {
    // Slots are set and cleared in one step each, so they are consistent even after a panic.
    bus.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "segment_test.rs"]
mod tests;
