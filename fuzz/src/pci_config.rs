//! Configuration space of a segment with a device that moves and goes away, and the copy of it that a guest reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::Input;
use bellows_devices::pci::{CONVENTIONAL_BYTES, ConfigMirror, PciAddress, PciSegment};
use bellows_devices::virtio::Rng;
use bellows_devices::virtio::testing::PciMachine;

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let machine = PciMachine::new();
    let mut address = machine.plug(Box::new(Rng::new()));
    let copy = Arc::new(Copy::default());
    machine.segment.show_in(copy.clone());
    let mut input = Input::new(data);
    while !input.is_empty() {
        let step = input.byte();
        let width = 1 << (input.byte() % 4);
        let mut value = input.u64().to_le_bytes();
        match step % 4 {
            // Somewhere in the device's own 4 KiB, mostly.
            0 => {
                _ = machine
                    .mmio
                    .write(PciMachine::ECAM + address.ecam_offset() + u64::from(input.u16() & 0xfff), &value[..width])
            }
            1 => {
                _ = machine.mmio.read(
                    PciMachine::ECAM + address.ecam_offset() + u64::from(input.u16() & 0xfff),
                    &mut value[..width],
                )
            }
            2 => _ = machine.mmio.write(PciMachine::ECAM + u64::from(input.u32()), &value[..width]),
            _ => {
                drop(machine.segment.remove(address));
                address = machine.plug(Box::new(Rng::new()));
            }
        }
        copy.check(&machine.segment, address);
    }
    machine.segment.remove(address).expect("the device is where it was put");
}

/// What a guest reads; `None` once it has no copy any more.
struct Copy(Mutex<Option<BTreeMap<PciAddress, [u8; CONVENTIONAL_BYTES]>>>);

impl Default for Copy {
    fn default() -> Self {
        Self(Mutex::new(Some(BTreeMap::new())))
    }
}

impl Copy {
    fn check(&self, segment: &PciSegment, address: PciAddress) {
        if let Some(shown) = &*self.0.lock().unwrap() {
            let mut read = [0; CONVENTIONAL_BYTES];
            segment.read_config(address, 0, &mut read);
            assert_eq!(shown.get(&address), Some(&read));
            assert_eq!(shown.len(), 2, "the bridge and the device");
        }
    }
}

impl ConfigMirror for Copy {
    fn show(&self, address: PciAddress, registers: &[u8; CONVENTIONAL_BYTES]) {
        if let Some(shown) = &mut *self.0.lock().unwrap() {
            shown.insert(address, *registers);
        }
    }

    fn hide(&self, address: PciAddress) {
        if let Some(shown) = &mut *self.0.lock().unwrap() {
            shown.remove(&address);
        }
    }

    fn end(&self) {
        *self.0.lock().unwrap() = None;
    }
}
