//! A root bus: its slots, and its part of the MMIO window.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bellows_memory::{AddressRange, limited};
use serde::{Deserialize, Serialize};

use super::bar::BarAllocator;
use super::config_space::ConfigSpace;
use super::{ConfigMirror, PciAddress, PciFunction};
use crate::bus::{Bus, BusDevice};
use crate::state::{RestoreError, expect};

/// Device slots on a bus.
const SLOTS: u8 = 32;

#[derive(Clone)]
pub(super) struct RootBus {
    number: u8,
    slots: [Option<Arc<Slot>>; SLOTS as usize],
    bars: BarAllocator,
}

impl RootBus {
    pub(super) const fn new(number: u8, window: AddressRange) -> Self {
        Self { number, slots: [const { None }; SLOTS as usize], bars: BarAllocator::new(window) }
    }

    /// Puts `function` into the lowest free slot, which is returned, and places its BARs in the window with decoding off; `None` if the
    /// bus is full.
    pub(super) fn add(&mut self, function: &Arc<dyn PciFunction>) -> Option<Arc<Slot>> {
        let (device, _) = (0..SLOTS).zip(&self.slots).find(|(_, slot)| slot.is_none())?;
        let address = PciAddress::new(self.number, device, 0)?;
        let mut bars = Vec::new();
        for size in function.bars() {
            let Some(home) = self.bars.allocate(size.bytes) else {
                bars.iter().for_each(|bar: &Bar| self.bars.free(bar.home));
                return None;
            };
            bars.push(Bar { index: size.index, bytes: size.bytes, home, mapped: None });
        }
        for bar in &bars {
            function.place_bar(bar.index, bar.home);
        }
        Some(self.occupy(address, function.clone(), bars))
    }

    /// Puts a restored `function` into the slot that `state` names. After an error some addresses may stay allocated: discard
    /// the bus then.
    pub(super) fn restore(
        &mut self,
        function: &Arc<dyn PciFunction>,
        state: &SlotState,
    ) -> Result<Arc<Slot>, RestoreError> {
        let address = state.address;
        let slot = &self.slots[usize::from(address.device())];
        if address.function() != 0 || slot.is_some() {
            return Err(RestoreError::new("address of a PCI function", address, "a free slot, function 0"));
        }
        let sizes = function.bars();
        expect(&format!("number of BARs of {address}"), &state.bar_homes.len(), &sizes.len())?;
        let mut bars: Vec<Bar> = Vec::new();
        for (size, &home) in sizes.iter().zip(&state.bar_homes) {
            if !self.bars.take(home, size.bytes) {
                let what = format!("home of BAR {} of {address}", size.index);
                let expected = format!("{:#x} free bytes in {}", size.bytes, self.bars.window());
                return Err(RestoreError::new(what, home, expected));
            }
            bars.push(Bar { index: size.index, bytes: size.bytes, home, mapped: None });
        }
        Ok(self.occupy(address, function.clone(), bars))
    }

    fn occupy(&mut self, address: PciAddress, function: Arc<dyn PciFunction>, bars: Vec<Bar>) -> Arc<Slot> {
        let window = self.bars.window();
        let slot = Arc::new(Slot { address, function, window, bars: Mutex::new(Bars { removed: false, list: bars }) });
        self.slots[usize::from(address.device())] = Some(slot.clone());
        slot
    }

    pub(super) fn slot(&self, address: PciAddress) -> Option<&Arc<Slot>> {
        (address.function() == 0).then(|| self.slots[usize::from(address.device())].as_ref()).flatten()
    }

    /// All occupied slots.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.iter().flatten()
    }

    /// Removes a slot that was torn down, and frees its addresses.
    pub(super) fn forget(&mut self, slot: &Slot) {
        self.slots[usize::from(slot.address.device())] = None;
        for bar in &slot.lock().list {
            self.bars.free(bar.home);
        }
    }
}

/// A function on its bus.
pub(super) struct Slot {
    pub(super) address: PciAddress,
    pub(super) function: Arc<dyn PciFunction>,
    /// The window that its BARs must lie in.
    window: AddressRange,
    bars: Mutex<Bars>,
}

struct Bars {
    removed: bool,
    list: Vec<Bar>,
}

struct Bar {
    index: u8,
    bytes: u64,
    /// Its first address, which stays reserved for it until the function is removed.
    home: u64,
    /// The address at which it is mapped now.
    mapped: Option<u64>,
}

/// The place of a function on its bus.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SlotState {
    /// Its address.
    pub address: PciAddress,
    /// The first address of each of its BARs. Their registers have the current addresses.
    pub bar_homes: Vec<u64>,
}

impl Slot {
    pub(super) fn save(&self) -> SlotState {
        SlotState { address: self.address, bar_homes: self.lock().list.iter().map(|bar| bar.home).collect() }
    }

    pub(super) fn write_config(&self, mmio: &Weak<Bus>, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
        if ConfigSpace::touches_decoding(offset, data.len()) {
            self.update_bars(mmio);
        }
    }

    /// Maps the BARs at the addresses in their registers. A BAR that leaves its bus's window, or overlaps another device, stays
    /// unmapped.
    pub(super) fn update_bars(&self, mmio: &Weak<Bus>) {
        let Some(mmio) = mmio.upgrade() else { return };
        let mut bars = self.lock();
        if bars.removed {
            return;
        }
        // Unmap first, so that two BARs can change places.
        for bar in &mut bars.list {
            if bar.mapped.is_some() && bar.mapped != self.function.bar_address(bar.index) {
                self.unmap(Some(&mmio), bar);
            }
        }
        for bar in &mut bars.list {
            let Some(address) = self.function.bar_address(bar.index) else { continue };
            if bar.mapped.is_none() && self.allows(bar, address) {
                self.map(&mmio, bar, address);
            }
        }
    }

    fn allows(&self, bar: &Bar, address: u64) -> bool {
        AddressRange::new(address, bar.bytes).is_some_and(|range| self.window.contains(range))
    }

    fn map(&self, mmio: &Bus, bar: &mut Bar, address: u64) {
        let device = BarDevice { function: self.function.clone(), index: bar.index };
        match mmio.insert(address, bar.bytes, Arc::new(device)) {
            Ok(()) => {
                bar.mapped = Some(address);
                self.function.bar_mapped(bar.index, Some(address));
            }
            Err(error) => {
                limited!(warn, function = %self.address, bar = bar.index, %error, "the guest misplaced a BAR");
            }
        }
    }

    /// `mmio` is `None` if the whole bus is gone.
    fn unmap(&self, mmio: Option<&Bus>, bar: &mut Bar) {
        if let Some(address) = bar.mapped.take() {
            mmio.and_then(|mmio| mmio.remove(address));
            self.function.bar_mapped(bar.index, None);
        }
    }

    /// Has the mirror show what reads of configuration space give, unless the function has been torn down.
    pub(super) fn show(&self, mirror: Option<&dyn ConfigMirror>) {
        let Some(mirror) = mirror else { return };
        // Held until it is shown, so that what two CPUs write is not shown in another order.
        let bars = self.lock();
        if bars.removed {
            return;
        }
        match self.function.registers() {
            Some(registers) => mirror.show(self.address, &registers),
            None => mirror.end(),
        }
    }

    /// Ends all access to the function, hides it from the guest, and stops it. Returns `false` if it was torn down before.
    pub(super) fn tear_down(&self, mmio: &Weak<Bus>, mirror: Option<&dyn ConfigMirror>) -> bool {
        let mut bars = self.lock();
        if std::mem::replace(&mut bars.removed, true) {
            return false;
        }
        if let Some(mirror) = mirror {
            mirror.hide(self.address);
        }
        let mmio = mmio.upgrade();
        for bar in &mut bars.list {
            self.unmap(mmio.as_deref(), bar);
        }
        drop(bars);
        self.function.removed();
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bars> {
        // Each BAR is consistent at any moment, even after a panic.
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A BAR as a device on the MMIO bus.
struct BarDevice {
    function: Arc<dyn PciFunction>,
    index: u8,
}

impl BusDevice for BarDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.read_bar(self.index, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(self.index, offset, data);
    }
}
