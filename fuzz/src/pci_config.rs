//! Configuration space, by ECAM and by the legacy ports, of a segment with a device that moves and goes away.

use crate::Input;
use bellows_devices::virtio::Rng;
use bellows_devices::virtio::testing::PciMachine;

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let machine = PciMachine::new();
    let mut address = machine.plug(Box::new(Rng::new()));
    let ports = machine.segment.config_ports();
    let mut input = Input::new(data);
    while !input.is_empty() {
        let step = input.byte();
        let width = 1 << (input.byte() % 4);
        let mut value = input.u64().to_le_bytes();
        match step % 6 {
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
            3 => ports.write(u64::from(input.byte() % 10), &value[..width.min(4)]),
            4 => ports.read(u64::from(input.byte() % 10), &mut value[..width.min(4)]),
            _ => {
                drop(machine.segment.remove(address));
                address = machine.plug(Box::new(Rng::new()));
            }
        }
    }
    machine.segment.remove(address).expect("the device is where it was put");
}
