//! The transport of a device that runs: any access to its BAR and configuration space, any queue contents.

use crate::Input;
use bellows_devices::pci::PciAddress;
use bellows_devices::pci::header::register;
use bellows_devices::virtio::Rng;
use bellows_devices::virtio::testing::{PciDriver, PciMachine};
use vm_memory::{Bytes, GuestAddress};

/// A driver that uses no more vectors than it needs: one for the configuration, one for the queue.
fn probe(machine: &PciMachine, address: PciAddress) -> PciDriver {
    let mut driver = PciDriver::probe(machine, address);
    driver.vectors = 2;
    driver
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let machine = PciMachine::new();
    let mut driver = probe(&machine, machine.plug(Box::new(Rng::new())));
    let mut queues = driver.start(&machine);
    let bar = driver.config::<4>(register::BAR0);
    let mut input = Input::new(data);
    while !input.is_empty() {
        let step = input.byte();
        let width = 1 << (input.byte() % 4);
        let mut value = input.u64().to_le_bytes();
        match step % 6 {
            0 => _ = driver.write(u64::from(input.u16() & 0x7fff), &value[..width]),
            1 => _ = machine.mmio.read(driver.bar + u64::from(input.u16() & 0x7fff), &mut value[..width]),
            // The common configuration, where the rules are.
            2 => _ = driver.write(driver.common + u64::from(input.byte() & 0x3f), &value[..width]),
            3 => driver.write_config(input.u16() & 0xfff, &value[..width]),
            // Descriptors and rings.
            4 => {
                let at = queues[0].descriptors.0 + u64::from(input.u16() & 0x3fff);
                machine.guest.memory().write_slice(&value, GuestAddress(at)).expect("the queue lies in guest memory");
            }
            _ => {
                queues[0].publish(input.u16());
                queues[0].kick();
            }
        }
    }
    // Whatever happened, a new driver gets it to work again.
    driver.write_config(register::BAR0, &bar);
    let mut driver = probe(&machine, driver.address);
    let mut queues = driver.start(&machine);
    assert_eq!(queues[0].request(&[], &[16]).len, 16);
}
