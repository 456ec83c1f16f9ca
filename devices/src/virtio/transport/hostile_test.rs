//! A driver that breaks every rule. Even so nothing panics, other functions go on, and the device can be reset and used
//! again.

use proptest::prelude::*;

use super::*;
use crate::pci::PciAddress;
use crate::pci::header::register;
use crate::virtio::Rng;
use crate::virtio::testing::{DriverQueue, FakeGuest, Part, PciDriver, PciMachine};
use crate::virtio::transport::common_config::{field, status};
use vm_memory::GuestAddress;

const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// A machine with a device to abuse and a bystander that must go on.
struct Victim {
    machine: PciMachine,
    driver: PciDriver,
    queues: Vec<DriverQueue>,
    home: u32,
    bystander_driver: PciDriver,
    bystander: Vec<DriverQueue>,
}

impl Victim {
    fn new() -> Self {
        let machine = PciMachine::new();
        let (driver, queues) = machine.start(Box::new(Rng::new()));
        let (bystander_driver, bystander) = machine.start(Box::new(Rng::new()));
        Self { home: driver.bar as u32, machine, driver, queues, bystander_driver, bystander }
    }

    /// The device works again after a reset, and the bystander still does.
    fn recovers(&mut self) {
        self.driver.move_bar(self.home);
        self.driver.write_config(register::COMMAND, &[6, 0]);
        self.queues = self.driver.start(&self.machine);
        assert_eq!(self.driver.status(), 15);
        assert_eq!(self.queues[0].request(&[], &[16]).len, 16);
        assert_eq!(self.bystander[0].request(&[], &[16]).len, 16);
    }

    /// For drivers that may have moved their BAR and written to the bystander's registers.
    fn both_recover(&mut self) {
        self.driver.move_bar(self.home);
        self.bystander = self.bystander_driver.start(&self.machine);
        self.recovers();
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.machine.mmio.write(PciMachine::ECAM + self.driver.address.ecam_offset() + offset, data);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.machine.mmio.read(PciMachine::ECAM + self.driver.address.ecam_offset() + offset, data);
    }
}

#[test]
fn configuration_space_at_every_offset_and_width() {
    let mut victim = Victim::new();
    for value in [0xff, 0x00, 0x55] {
        for offset in 0..4096 + 8 {
            for width in WIDTHS {
                // Not the next function's.
                let width = width.min((4096 - offset % 4096) as usize);
                if offset < 4096 {
                    victim.write_config(offset, &vec![value; width]);
                }
                victim.read_config(offset, &mut vec![0; width]);
            }
        }
        victim.recovers();
    }
}

#[test]
fn every_part_of_the_bar_at_every_offset_and_width() {
    let mut victim = Victim::new();
    for value in [0xff, 0x00, 0x01] {
        for offset in 0..u64::from(BAR_BYTES) + 8 {
            for width in WIDTHS {
                victim.driver.write(offset, &vec![value; width]);
                victim.machine.mmio.read(victim.driver.bar + offset, &mut vec![0; width]);
            }
        }
        victim.recovers();
    }
}

#[test]
fn the_bar_through_the_window_in_configuration_space() {
    let mut victim = Victim::new();
    let window = victim.driver.pci_cfg_capability;
    for bar in [0, 1, 5, 0xff] {
        let offsets = (0..0x7010).step_by(2).chain([0x7fff, 0x8000, 0xffff_fffc, u32::MAX]);
        for (offset, len) in offsets.zip([1, 2, 4, 0, 3, 8, u32::MAX].into_iter().cycle()) {
            victim.driver.write_config(window + 4, &[bar]);
            victim.driver.write_config(window + 8, &offset.to_le_bytes());
            victim.driver.write_config(window + 12, &len.to_le_bytes());
            for width in WIDTHS {
                for at in window + 10..window + 20 {
                    let mut data = vec![0; width];
                    victim.read_config(at.into(), &mut data);
                }
            }
            victim.driver.write_config(window + 16, &[0xff, 0xff, 0xff, 0xff]);
        }
    }
    victim.recovers();
}

#[test]
fn queue_registers_are_fixed_once_the_device_runs() {
    let mut victim = Victim::new();
    let driver = &victim.driver;
    driver.select_queue(0);
    for (offset, value) in [(field::QUEUE_SIZE, 2u16), (field::QUEUE_ENABLE, 0), (field::QUEUE_SIZE, 0)] {
        driver.write(driver.common + offset, &value.to_le_bytes());
    }
    for ring in [field::QUEUE_DESC, field::QUEUE_DRIVER, field::QUEUE_DEVICE] {
        driver.write(driver.common + ring, &[0xff; 8]);
        driver.write(driver.common + ring, &[0xff; 4]);
    }
    assert_eq!(victim.queues[0].request(&[], &[16]).len, 16);
    assert_eq!(victim.driver.queue_size(0), victim.queues[0].size);
    victim.recovers();
}

#[test]
fn descriptors_that_lead_anywhere() {
    let mut victim = Victim::new();
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let size = victim.queues[0].size;
    let end = FakeGuest::MEMORY as u64;
    let scratch = victim.machine.guest.allocate(1 << 20);
    let queue = &mut victim.queues[0];
    for address in [scratch.0, end - 1, end, u64::MAX, 1 << 63] {
        for len in [0, 1, u32::MAX] {
            for flags in 0..8 {
                for next in [0, 1, size - 1, size, u16::MAX] {
                    queue.set_descriptor(0, GuestAddress(address), len, flags, next);
                    queue.set_descriptor(1, scratch, 8, WRITE | NEXT, 0);
                    queue.publish(0);
                    queue.kick();
                    assert_eq!(queue.wait_used().head, 0);
                }
            }
        }
    }
    // The device overwrites its own rings: the queue may break, but a reset brings the device back.
    for ring in [queue.descriptors, queue.available, queue.used] {
        queue.add(&[Part::WritableAt(ring, 4096)]);
        queue.set_descriptor(5, ring, 64, INDIRECT, 0);
        queue.publish(5);
        queue.kick();
    }
    victim.recovers();
}

#[test]
fn memory_that_goes_away_under_a_running_queue() {
    use bellows_memory::GuestMemory;
    // The queues are in the first range.
    let stays = (GuestAddress(1 << 32), 1 << 20);
    let guest = FakeGuest::with_memory(&[(GuestAddress(0), 1 << 30), stays]);
    let machine = PciMachine::with_guest(guest);
    let (mut driver, mut queues) = machine.start(Box::new(Rng::new()));
    assert_eq!(queues[0].request(&[], &[16]).len, 16);
    let whole = machine.guest.memory().into_inner();
    machine.guest.view().lock().unwrap().replace(GuestMemory::from_ranges(&[stays]).unwrap());
    assert!(driver.write(driver.notify, &[0, 0]));
    machine.msi.wait(driver.message(0), 1);
    assert_eq!(driver.status() & status::NEEDS_RESET, status::NEEDS_RESET);

    machine.guest.view().lock().unwrap().replace((*whole).clone());
    let mut queues = driver.start(&machine);
    assert_eq!(queues[0].request(&[], &[16]).len, 16);
}

#[test]
fn kicks_and_resets_and_moves_from_several_cpus() {
    let mut victim = Victim::new();
    let doorbell = victim.driver.notify;
    std::thread::scope(|scope| {
        let victim = &victim;
        scope.spawn(move || {
            for _ in 0..500 {
                victim.driver.write(doorbell, &[0, 0]);
                victim.machine.doorbells.ring(victim.driver.bar + doorbell);
            }
        });
        scope.spawn(move || {
            for step in 0..300 {
                let address = victim.home + step % 3 * 0x10_0000;
                victim.driver.write_config(register::BAR0, &address.to_le_bytes());
                victim.driver.write_config(register::COMMAND, &[(step % 2) as u8 * 2, 0]);
            }
        });
        scope.spawn(move || {
            for step in 0..200 {
                victim.driver.write_status(0);
                victim.driver.accept(1 << 32);
                victim.driver.set_msix_control((step % 4) << 14);
                victim.driver.set_up_queue(&victim.queues[0]);
                victim.driver.write_status(15);
            }
        });
    });
    victim.recovers();
    assert_eq!(victim.machine.doorbells.addresses().len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Config(u16, usize, u64),
    Bar(u64, usize, u64),
    Common(u64, usize, u64),
    Read(u64, usize),
    SetUp,
    Start,
    Kick,
    Request(u64, u32, u16, u16),
    MoveBar(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let width = prop::sample::select(&WIDTHS[..]);
    let near = prop::sample::select(vec![0, 1, 2, 3, 7, 8, 15, 64, 128, 0xffff, 1 << 31, 1 << 32, u64::MAX]);
    let value = prop_oneof![any::<u64>(), near];
    prop_oneof![
        (0u16..256, width.clone(), value.clone()).prop_map(|(o, w, v)| Step::Config(o, w, v)),
        (0..u64::from(BAR_BYTES), width.clone(), value.clone()).prop_map(|(o, w, v)| Step::Bar(o, w, v)),
        (0u64..64, width.clone(), value).prop_map(|(o, w, v)| Step::Common(o, w, v)),
        (0..u64::from(BAR_BYTES), width).prop_map(|(o, w)| Step::Read(o, w)),
        Just(Step::SetUp),
        Just(Step::Start),
        Just(Step::Kick),
        (any::<u64>(), any::<u32>(), 0u16..8, any::<u16>()).prop_map(|(a, l, f, n)| Step::Request(a, l, f, n)),
        prop_oneof![Just(0xc000_8000), Just(0xc010_0000), any::<u32>()].prop_map(Step::MoveBar),
    ]
}

impl Victim {
    fn take(&mut self, step: Step) {
        match step {
            Step::Config(offset, width, value) => self.write_config(offset.into(), &value.to_le_bytes()[..width]),
            Step::Bar(offset, width, value) => {
                self.driver.write(offset, &value.to_le_bytes()[..width]);
            }
            Step::Common(offset, width, value) => {
                self.driver.write(self.driver.common + offset, &value.to_le_bytes()[..width]);
            }
            Step::Read(offset, width) => {
                self.machine.mmio.read(self.driver.bar + offset, &mut vec![0; width]);
            }
            Step::SetUp => self.driver.set_up_queue(&self.queues[0]),
            Step::Start => self.driver.write_status(15),
            Step::Kick => self.queues[0].kick(),
            Step::Request(address, len, flags, next) => {
                self.queues[0].set_descriptor(next % self.queues[0].size, GuestAddress(address), len, flags, next);
                self.queues[0].publish(next);
                self.queues[0].kick();
            }
            Step::MoveBar(address) => self.driver.move_bar(address),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence(steps in prop::collection::vec(step(), 1..120)) {
        let mut victim = Victim::new();
        for step in steps {
            victim.take(step);
        }
        victim.both_recover();
        let address: PciAddress = victim.driver.address;
        victim.machine.segment.remove(address).unwrap();
        prop_assert_eq!(victim.machine.doorbells.addresses().len(), 1);
        prop_assert_eq!(victim.machine.msi.live(), 2);
    }
}
