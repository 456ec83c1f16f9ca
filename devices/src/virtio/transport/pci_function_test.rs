use std::sync::mpsc;

use virtio_queue::QueueState;

use super::*;
use crate::pci::header::register;
use crate::virtio::Rng;
use crate::virtio::testing::{FakeGuest, FakeMsi, Part, PciDriver, PciMachine};
use crate::virtio::transport::common_config::{field, status};

/// Keeps its activation, does nothing with it, and signals its reset.
struct Idle {
    sizes: Vec<u16>,
    activated: mpsc::Sender<Activation>,
    reset: mpsc::Sender<()>,
    config: Vec<u8>,
    refuse: bool,
}

fn idle(queues: usize) -> (Box<Idle>, mpsc::Receiver<Activation>, mpsc::Receiver<()>) {
    let (activated, activations) = mpsc::channel();
    let (reset, resets) = mpsc::channel();
    let config = vec![1, 2, 3, 4, 5, 6, 7, 8];
    (Box::new(Idle { sizes: vec![16; queues], activated, reset, config, refuse: false }), activations, resets)
}

impl VirtioDevice for Idle {
    fn device_type(&self) -> u16 {
        2
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        1 << 5 | 1 << 40
    }

    fn config_generation(&self) -> u8 {
        self.config[7]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(place) = self.config.get_mut(at) {
                *place = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::MissingQueue(0));
        }
        self.activated.send(activation).unwrap();
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![None; self.sizes.len()]
    }

    fn reset(&mut self) {
        // The test may be over.
        let _ = self.reset.send(());
    }
}

#[test]
fn a_driver_finds_starts_and_uses_a_device() {
    let machine = PciMachine::new();
    let (driver, mut queues) = machine.start(Box::new(Rng::new()));
    assert_eq!(driver.address.to_string(), "0000:00:01.0");
    assert_eq!(driver.config::<4>(register::VENDOR), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(driver.status(), 15);
    let done = queues[0].request(&[], &[48]);
    assert_eq!(done.len, 48);
    assert_ne!(done.written[0], [0; 48]);
}

#[test]
fn kicks_arrive_without_doorbells_too() {
    let machine = PciMachine::new();
    let (driver, mut queues) = machine.start(Box::new(Rng::new()));
    let doorbell = driver.notify;
    queues[0].add(&[Part::Writable(8)]);
    assert!(driver.write(doorbell, &[0, 0]));
    assert_eq!(queues[0].wait_used().len, 8);
    // Beside the doorbell, and for queues that do not exist.
    for offset in [1, 2, 4, 8, 0xffe] {
        assert!(driver.write(doorbell + offset, &[0, 0]));
    }
    assert_eq!(queues[0].request(&[], &[8]).len, 8);
}

/// A guest may start a device when the host has run out of descriptors.
#[test]
fn starting_a_device_takes_no_descriptor() {
    let machine = PciMachine::new();
    let (device, activations, _resets) = idle(2);
    let mut driver = PciDriver::probe(&machine, machine.plug(device));
    let kicks = |activation: &Activation| -> Vec<_> {
        activation.queues.iter().map(|queue| queue.as_ref().unwrap().kick.clone()).collect()
    };
    driver.start(&machine);
    let first = kicks(&activations.recv().unwrap());
    assert!(machine.doorbells.ring(driver.bar + driver.notify));
    driver.reset();
    assert!(driver.write(driver.notify, &[0, 0]), "a doorbell of a device that does not run");
    driver.start(&machine);
    let second = kicks(&activations.recv().unwrap());
    assert!(first.iter().zip(&second).all(|(first, second)| Arc::ptr_eq(first, second)));
    assert!(second.iter().all(|kick| kick.read().is_err()), "the reset clears earlier signals");
}

#[test]
fn features_are_offered_and_refused_as_agreed() {
    let machine = PciMachine::new();
    let (device, activations, _resets) = idle(1);
    let mut driver = PciDriver::probe(&machine, machine.plug(device));
    let offered = 1 << 5 | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40;
    assert_eq!(driver.offered(), offered);
    assert!(driver.negotiate(1 << 32));
    assert!(!driver.negotiate(offered & !(1 << 32)), "without VERSION_1");
    assert!(!driver.negotiate(1 << 32 | 1 << 6), "not offered");
    assert!(!driver.negotiate(1 << 32 | 1 << 63), "not offered");
    driver.write_status(driver.status() | status::DRIVER_OK);
    assert_eq!(driver.status() & status::DRIVER_OK, 0, "not before the features are agreed on");
    driver.start(&machine);
    assert_eq!(activations.recv().unwrap().features, offered);
}

#[test]
fn the_device_gets_exactly_the_queues_that_were_enabled() {
    let machine = PciMachine::new();
    let (device, activations, _resets) = idle(3);
    let driver = PciDriver::probe(&machine, machine.plug(device));
    assert!(driver.negotiate(1 << 32));
    let mut queue = driver.queue(&machine, 1);
    queue.size = 4;
    driver.set_up_queue(&queue);
    driver.write_status(driver.status() | status::DRIVER_OK);

    let activation = activations.recv().unwrap();
    let [None, Some(active), None] = &activation.queues[..] else { panic!("queue 1 alone was enabled") };
    use virtio_queue::QueueT;
    assert_eq!(active.queue.size(), 4);
    assert!(!active.queue.event_idx_enabled());
    assert_eq!(active.queue.desc_table(), queue.descriptors.0);
    assert_eq!(machine.doorbells.addresses().len(), 3);
    assert!(machine.doorbells.ring(driver.bar + driver.notify + 4));
    assert_eq!(active.kick.read().unwrap(), 1);
}

#[test]
fn rings_outside_memory_need_a_reset() {
    for (which, address) in [(0, FakeGuest::MEMORY as u64), (1, !1), (2, FakeGuest::MEMORY as u64 - 8), (0, 8), (1, 0)]
    {
        let machine = PciMachine::new();
        let (device, activations, _resets) = idle(1);
        let mut driver = PciDriver::probe(&machine, machine.plug(device));
        assert!(driver.negotiate(1 << 32));
        driver.enable_msix();
        driver.write(driver.common + field::CONFIG_MSIX_VECTOR, &[0, 0]);
        let mut queue = driver.queue(&machine, 0);
        let ring = [&mut queue.descriptors, &mut queue.available, &mut queue.used];
        ring.into_iter().nth(which).unwrap().0 = address;
        driver.set_up_queue(&queue);
        driver.write_status(driver.status() | status::DRIVER_OK);
        assert_eq!(driver.status() & status::NEEDS_RESET, status::NEEDS_RESET, "{which} at {address:#x}");
        assert_eq!(machine.msi.count(driver.message(0)), 1);
        assert!(activations.try_recv().is_err());
        assert!(machine.doorbells.addresses().is_empty());

        driver.start(&machine);
        assert_eq!(driver.status(), 15);
        activations.recv().unwrap();
    }
}

#[test]
fn a_device_that_refuses_needs_a_reset() {
    let machine = PciMachine::new();
    let (mut device, _activations, _resets) = idle(1);
    device.refuse = true;
    let (driver, _queues) = machine.start(device);
    assert_eq!(driver.status(), 15 | status::NEEDS_RESET);
    assert!(machine.doorbells.addresses().is_empty());
    driver.reset();
}

#[test]
fn reset_stops_the_device_and_forgets_the_driver() {
    let machine = PciMachine::new();
    let (device, activations, resets) = idle(2);
    let (driver, _queues) = machine.start(device);
    let activation = activations.recv().unwrap();
    resets.try_iter().for_each(drop);
    assert_eq!(machine.doorbells.addresses().len(), 2);

    driver.reset();
    assert_eq!(resets.try_iter().count(), 1);
    assert!(machine.doorbells.addresses().is_empty());
    driver.select_queue(0);
    assert_eq!(driver.read(driver.common + field::QUEUE_ENABLE), [0, 0]);
    assert_eq!(driver.read(driver.common + field::QUEUE_DESC), [0; 8]);
    assert_eq!(driver.read(driver.common + field::CONFIG_MSIX_VECTOR), [0xff; 2]);
    let before = machine.msi.count(driver.message(1));
    activation.interrupt.queue(0);
    assert_eq!(machine.msi.count(driver.message(1)), before);
}

#[test]
fn interrupts_go_by_their_vectors_and_wait_while_masked() {
    let machine = PciMachine::new();
    let (device, activations, _resets) = idle(2);
    let (driver, _queues) = machine.start(device);
    let interrupt = activations.recv().unwrap().interrupt;
    let count = |vector| machine.msi.count(driver.message(vector));

    interrupt.queue(1);
    interrupt.queue(7);
    assert_eq!([count(0), count(1), count(2)], [0, 0, 1]);

    driver.mask_vector(1, true);
    interrupt.queue(0);
    interrupt.queue(0);
    assert_eq!(count(1), 0);
    assert_eq!(driver.read(driver.msix_pending), [0b10, 0]);
    driver.mask_vector(1, false);
    assert_eq!(count(1), 1, "pending interrupts collapse to one");
    assert_eq!(driver.read(driver.msix_pending), [0, 0]);

    driver.set_msix_control(0xc000);
    interrupt.queue(1);
    assert_eq!(count(2), 1);
    driver.set_msix_control(0x8000);
    assert_eq!(count(2), 2);

    driver.set_msix_control(0);
    interrupt.queue(1);
    driver.set_msix_control(0x8000);
    assert_eq!(count(2), 2, "with MSI-X off no interrupt comes");

    // Two queues on one vector.
    driver.select_queue(0);
    driver.write(driver.common + field::QUEUE_MSIX_VECTOR, &[2, 0]);
    interrupt.queue(0);
    assert_eq!(count(2), 3);
    driver.write(driver.common + field::QUEUE_MSIX_VECTOR, &[3, 0]);
    assert_eq!(driver.read(driver.common + field::QUEUE_MSIX_VECTOR), [0xff; 2], "vector 3 does not exist");
    interrupt.queue(0);
    assert_eq!([count(0), count(1), count(2)], [0, 1, 3]);
}

#[test]
fn the_driver_is_notified_of_configuration_changes() {
    let machine = PciMachine::new();
    let (device, activations, _resets) = idle(1);
    let (driver, _queues) = machine.start(device);
    let interrupt = activations.recv().unwrap().interrupt;
    assert_eq!(driver.read(driver.common + field::CONFIG_GENERATION), [8], "the device counts");
    interrupt.config();
    assert_eq!(machine.msi.count(driver.message(0)), 1);
    assert_eq!(driver.read(driver.isr), [2]);
    assert_eq!(driver.read(driver.isr), [0], "reading clears it");

    interrupt.needs_reset();
    assert_eq!(driver.status(), 15 | status::NEEDS_RESET);
    assert_eq!(machine.msi.count(driver.message(0)), 2);
}

#[test]
fn device_configuration_is_the_devices() {
    let machine = PciMachine::new();
    let (device, _activations, _resets) = idle(1);
    let driver = PciDriver::probe(&machine, machine.plug(device));
    assert_eq!(driver.read(driver.device), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(driver.read(driver.device + 6), [7, 8, 0, 0]);
    driver.write(driver.device + 1, &[9]);
    assert_eq!(driver.read(driver.device), [1, 9]);
}

#[test]
fn doorbells_follow_the_bar_and_memory_decoding() {
    let machine = PciMachine::new();
    let (mut driver, mut queues) = machine.start(Box::new(Rng::new()));
    let window = PciMachine::LAYOUT.window(0).unwrap();
    let (old, new) = (driver.bar, (window.first() + 0x10_0000) as u32);
    driver.move_bar(new);
    assert_eq!(machine.doorbells.addresses(), [u64::from(new) + driver.notify]);
    assert!(!machine.mmio.read(old, &mut [0; 4]), "no device answers at the old address");
    assert_eq!(driver.status(), 15);
    queues[0].add(&[Part::Writable(8)]);
    assert!(machine.doorbells.ring(u64::from(new) + driver.notify));
    assert_eq!(queues[0].wait_used().len, 8);

    driver.write_config(register::COMMAND, &[0, 0]);
    assert!(machine.doorbells.addresses().is_empty());
    assert!(!driver.write(driver.notify, &[0, 0]));
    driver.write_config(register::COMMAND, &[2, 0]);
    assert_eq!(machine.doorbells.addresses(), [u64::from(new) + driver.notify]);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_misplaced_bar_is_not_answered() {
    let machine = PciMachine::new();
    let (other, _queues) = machine.start(Box::new(Rng::new()));
    let (mut driver, mut queues) = machine.start(Box::new(Rng::new()));
    let home = driver.bar as u32;
    let beyond = PciMachine::LAYOUT.window(1).unwrap().first() as u32;
    for address in [0, 0x1000, 0x8000, 0xffff_8000, other.bar as u32, PciMachine::ECAM as u32, beyond] {
        driver.move_bar(address);
        assert_eq!(machine.doorbells.addresses(), [other.bar + other.notify], "{address:#x}");
        assert_eq!(other.status(), 15, "{address:#x}");
    }
    driver.move_bar(home);
    assert_eq!(queues[0].request(&[], &[8]).len, 8);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let machine = PciMachine::new();
    let (driver, mut queues) = machine.start(Box::new(Rng::new()));
    let window = driver.pci_cfg_capability;
    let set = |bar: u8, offset: u32, len: u32| {
        driver.write_config(window + 4, &[bar]);
        driver.write_config(window + 8, &offset.to_le_bytes());
        driver.write_config(window + 12, &len.to_le_bytes());
    };
    let function = machine.segment.function(driver.address).unwrap();
    let registers = function.registers().expect("before the window is used, a read only reads");
    assert_eq!(registers, driver.config(0));
    set(0, (driver.common + field::DEVICE_STATUS) as u32, 1);
    assert_eq!(driver.config(window + 16), [15]);
    assert_eq!(function.registers(), None, "what the window reads like changes by itself");
    // A kick.
    queues[0].add(&[Part::Writable(8)]);
    set(0, driver.notify as u32, 2);
    driver.write_config(window + 16, &[0, 0]);
    assert_eq!(queues[0].wait_used().len, 8);
    // Hostile settings leave the device alone.
    for (bar, offset, len) in
        [(1, 0x14, 1), (0, 0x8000, 1), (0, 0x7fff, 2), (0, u32::MAX, 4), (0, 0x14, 0), (0, 0x14, 3)]
    {
        set(bar, offset, len);
        driver.write_config(window + 16, &[0; 4]);
        let _: [u8; 4] = driver.config(window + 16);
        assert_eq!(driver.status(), 15);
    }
    // Reset through it.
    set(0, (driver.common + field::DEVICE_STATUS) as u32, 1);
    driver.write_config(window + 16, &[0]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn removal_tears_everything_down() {
    let machine = PciMachine::new();
    let (device, activations, resets) = idle(2);
    let (driver, _queues) = machine.start(device);
    let activation = activations.recv().unwrap();
    resets.try_iter().for_each(drop);
    assert_eq!(machine.msi.live(), 3);

    let function = machine.segment.remove(driver.address).unwrap();
    assert_eq!(resets.try_iter().count(), 1);
    assert!(machine.doorbells.addresses().is_empty());
    assert!(!driver.write(driver.notify, &[0, 0]));
    assert_eq!(driver.config(register::VENDOR), [0xff; 4]);
    activation.interrupt.queue(0);
    activation.interrupt.config();
    assert_eq!(machine.msi.count(driver.message(0)) + machine.msi.count(driver.message(1)), 0);

    // An access that began before has no effect.
    function.write_bar(0, driver.common + field::DEVICE_STATUS, &[1]);
    let mut value = [0];
    function.read_bar(0, driver.common + field::DEVICE_STATUS, &mut value);
    assert_eq!(value, [0]);

    drop((function, activation));
    assert_eq!(machine.msi.live(), 0);
    assert_eq!(machine.plug(Box::new(Rng::new())), driver.address, "the slot is free again");
}

#[test]
fn removal_waits_for_the_devices_thread() {
    let machine = PciMachine::new();
    for _ in 0..20 {
        let (driver, mut queues) = machine.start(Box::new(Rng::new()));
        for _ in 0..8 {
            queues[0].add(&[Part::Writable(4096)]);
        }
        queues[0].kick();
        machine.segment.remove(driver.address).unwrap();
        let used = std::iter::from_fn(|| queues[0].pop_used()).count();
        assert!(used <= 8);
        queues[0].add(&[Part::Writable(8)]);
        queues[0].kick();
        assert_eq!(queues[0].pop_used(), None);
    }
    assert_eq!(machine.msi.live(), 0);
}

#[test]
fn impossible_devices_are_refused() {
    let machine = PciMachine::new();
    for sizes in [vec![], vec![0], vec![3], vec![16; 257], vec![16, 1 << 15, 12]] {
        let (mut device, _activations, _resets) = idle(0);
        device.sizes = sizes.clone();
        let error = VirtioPci::new(
            device,
            machine.guest.view().clone(),
            &FakeMsi::new(),
            machine.doorbells.clone(),
            machine.guest.event_loop().handle(),
        );
        assert!(matches!(error, Err(TransportError::Queues(named)) if named == sizes));
    }
    let (device, _activations, _resets) = idle(256);
    let (driver, _queues) = machine.start(device);
    assert_eq!(driver.vectors, 257);
    assert_eq!(machine.doorbells.addresses().len(), 256);
}
