//! A machine with a PCI segment, and a driver that finds and starts devices as Linux does.

use std::sync::Arc;

use super::{Bell, DriverQueue, FakeDoorbells, FakeGuest, FakeMsi, QueueInterrupts};
use crate::bus::Bus;
use crate::interrupt::MsiMessage;
use crate::pci::header::{capability, register};
use crate::pci::{PciAddress, PciSegment, SegmentLayout};
use crate::virtio::transport::common_config::{field, status};
use crate::virtio::{VirtioDevice, VirtioPci};

/// A guest with an MMIO bus and a PCI segment of two buses.
pub struct PciMachine {
    pub guest: FakeGuest,
    pub mmio: Arc<Bus>,
    pub segment: Arc<PciSegment>,
    pub msi: Arc<FakeMsi>,
    pub doorbells: Arc<FakeDoorbells>,
}

impl PciMachine {
    pub const LAYOUT: SegmentLayout = SegmentLayout { buses: 2, window_base: 0xc000_0000, window_per_bus: 16 << 20 };
    pub const ECAM: u64 = 0xe000_0000;

    #[must_use]
    #[expect(clippy::new_without_default, reason = "it has a thread")]
    pub fn new() -> Self {
        Self::with_guest(FakeGuest::new())
    }

    #[must_use]
    pub fn with_guest(guest: FakeGuest) -> Self {
        let mmio = Arc::new(Bus::new());
        let segment = PciSegment::new(Self::LAYOUT, &mmio).unwrap();
        mmio.insert(Self::ECAM, Self::LAYOUT.ecam_bytes(), segment.ecam()).unwrap();
        Self { guest, mmio, segment, msi: Arc::default(), doorbells: Arc::default() }
    }

    /// `device` as a function that is not on the bus yet.
    #[must_use]
    pub fn function(&self, device: Box<dyn VirtioDevice>) -> Arc<VirtioPci> {
        let event_loop = self.guest.event_loop().handle();
        VirtioPci::new(device, self.guest.view().clone(), &*self.msi, self.doorbells.clone(), event_loop).unwrap()
    }

    /// Puts `device` on the bus.
    pub fn plug(&self, device: Box<dyn VirtioDevice>) -> PciAddress {
        self.segment.add(self.function(device)).unwrap()
    }

    /// Plugs `device` and starts it with every feature.
    pub fn start(&self, device: Box<dyn VirtioDevice>) -> (PciDriver, Vec<DriverQueue>) {
        let mut driver = PciDriver::probe(self, self.plug(device));
        let queues = driver.start(self);
        (driver, queues)
    }
}

/// A driver of one function. Reads and writes go through the MMIO bus: configuration space by ECAM, BARs where they are.
pub struct PciDriver {
    pub address: PciAddress,
    /// Address of BAR 0.
    pub bar: u64,
    pub common: u64,
    pub isr: u64,
    pub device: u64,
    pub notify: u64,
    pub notify_multiplier: u64,
    /// Offsets in configuration space.
    pub msix_capability: u16,
    pub pci_cfg_capability: u16,
    pub msix_table: u64,
    pub msix_pending: u64,
    pub vectors: u16,
    mmio: Arc<Bus>,
}

impl PciDriver {
    /// Sizes BAR 0, enables it where it is and reads the capabilities.
    ///
    /// # Panics
    /// There is no such device.
    #[must_use]
    pub fn probe(machine: &PciMachine, address: PciAddress) -> Self {
        let mut driver = Self {
            address,
            bar: 0,
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            notify_multiplier: 0,
            msix_capability: 0,
            pci_cfg_capability: 0,
            msix_table: 0,
            msix_pending: 0,
            vectors: 0,
            mmio: machine.mmio.clone(),
        };
        assert_ne!(driver.config::<2>(register::VENDOR), [0xff; 2], "nothing at {address}");
        let placed = driver.config_u32(register::BAR0);
        driver.write_config(register::BAR0, &[0xff; 4]);
        assert_eq!(driver.config_u32(register::BAR0), !0x7fff, "the BAR's size");
        driver.move_bar(placed);
        driver.write_config(register::COMMAND, &[0b110, 0]);
        driver.find_capabilities();
        driver
    }

    fn find_capabilities(&mut self) {
        let mut at = u16::from(self.config::<1>(register::CAPABILITIES)[0]);
        while at != 0 {
            let [id, next] = self.config(at);
            let [_, kind] = self.config(at + 2);
            let offset = u64::from(self.config_u32(at + 8));
            match (id, kind) {
                (capability::MSIX, _) => {
                    self.msix_capability = at;
                    self.vectors = u16::from_le_bytes(self.config(at + 2)) + 1;
                    self.msix_table = u64::from(self.config_u32(at + 4));
                    self.msix_pending = u64::from(self.config_u32(at + 8));
                }
                (capability::VENDOR, 1) => self.common = offset,
                (capability::VENDOR, 2) => {
                    self.notify = offset;
                    self.notify_multiplier = u64::from(self.config_u32(at + 16));
                }
                (capability::VENDOR, 3) => self.isr = offset,
                (capability::VENDOR, 4) => self.device = offset,
                (capability::VENDOR, 5) => self.pci_cfg_capability = at,
                other => panic!("unknown capability {other:?}"),
            }
            at = u16::from(next);
        }
    }

    #[must_use]
    pub fn config<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(PciMachine::ECAM + self.address.ecam_offset() + u64::from(offset), &mut data);
        data
    }

    #[must_use]
    pub fn config_u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.config(offset))
    }

    pub fn write_config(&self, offset: u16, data: &[u8]) {
        self.mmio.write(PciMachine::ECAM + self.address.ecam_offset() + u64::from(offset), data);
    }

    /// Writes BAR 0 and goes on using the device there.
    pub fn move_bar(&mut self, address: u32) {
        self.write_config(register::BAR0, &address.to_le_bytes());
        self.bar = u64::from(address);
    }

    /// Reads the BAR; all ones if nothing answers.
    #[must_use]
    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(self.bar + offset, &mut data);
        data
    }

    /// Writes the BAR; `false` if nothing answers.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        self.mmio.write(self.bar + offset, data)
    }

    #[must_use]
    pub fn status(&self) -> u8 {
        self.read::<1>(self.common + field::DEVICE_STATUS)[0]
    }

    pub fn write_status(&self, value: u8) {
        self.write(self.common + field::DEVICE_STATUS, &[value]);
    }

    pub fn reset(&self) {
        self.write_status(0);
        assert_eq!(self.status(), 0, "reset is done when its write is");
    }

    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write(self.common + field::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(self.common + field::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    /// Acknowledges and accepts `features`. Returns whether the device accepts them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.accept(features);
        self.status() & status::FEATURES_OK != 0
    }

    /// Acknowledges and accepts `features`, without looking at the device's answer.
    pub fn accept(&self, features: u64) {
        self.write_status(status::ACKNOWLEDGE);
        self.write_status(status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.write(self.common + field::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.write(self.common + field::DRIVER_FEATURE, &half.to_le_bytes());
        }
        self.write_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    }

    /// The message of `vector`: different for every vector of every function.
    #[must_use]
    pub fn message(&self, vector: u16) -> MsiMessage {
        let data = u32::from(vector) | (self.address.ecam_offset() >> 12 << 12) as u32;
        MsiMessage { address: 0xfee0_1000, data }
    }

    /// Turns MSI-X on with every vector routed and unmasked.
    pub fn enable_msix(&self) {
        self.set_msix_control(0xc000);
        for vector in 0..self.vectors {
            let MsiMessage { address, data } = self.message(vector);
            let entry = self.msix_table + u64::from(vector) * 16;
            self.write(entry, &(address as u32).to_le_bytes());
            self.write(entry + 4, &((address >> 32) as u32).to_le_bytes());
            self.write(entry + 8, &data.to_le_bytes());
            self.mask_vector(vector, false);
        }
        self.set_msix_control(0x8000);
    }

    pub fn set_msix_control(&self, control: u16) {
        self.write_config(self.msix_capability + 2, &control.to_le_bytes());
    }

    pub fn mask_vector(&self, vector: u16, masked: bool) {
        self.write(self.msix_table + u64::from(vector) * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    pub fn select_queue(&self, queue: u16) {
        self.write(self.common + field::QUEUE_SELECT, &queue.to_le_bytes());
    }

    #[must_use]
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.select_queue(queue);
        u16::from_le_bytes(self.read(self.common + field::QUEUE_SIZE))
    }

    /// A queue in memory of its own, of the size that the device gives.
    #[must_use]
    pub fn queue(&self, machine: &PciMachine, index: u16) -> DriverQueue {
        let size = self.queue_size(index);
        DriverQueue::new(&machine.guest, index, size, self.interrupts(machine), self.bell(machine, index))
    }

    fn interrupts(&self, machine: &PciMachine) -> Arc<dyn QueueInterrupts> {
        // Vector 0 is for the configuration, as in Linux.
        let messages = (1..self.vectors).map(|vector| self.message(vector)).collect();
        Arc::new(MsiQueues { msi: machine.msi.clone(), messages })
    }

    fn bell(&self, machine: &PciMachine, index: u16) -> Bell {
        let doorbell = self.bar + self.notify + u64::from(index) * self.notify_multiplier;
        let (bells, mmio) = (machine.doorbells.clone(), machine.mmio.clone());
        Bell::Transport(Box::new(move || {
            if !bells.ring(doorbell) {
                mmio.write(doorbell, &index.to_le_bytes());
            }
        }))
    }

    /// Goes on with the same device, restored in another machine.
    pub fn move_to(&mut self, machine: &PciMachine) {
        self.mmio = machine.mmio.clone();
    }

    /// Has `queue`, which this driver made, go on with the device in `machine`.
    pub fn connect(&self, queue: &mut DriverQueue, machine: &PciMachine) {
        queue.connect(self.bell(machine, queue.index), self.interrupts(machine));
    }

    /// Whether an interrupt of `vector` waits until that is unmasked.
    #[must_use]
    pub fn is_pending(&self, vector: u16) -> bool {
        self.read::<1>(self.msix_pending + u64::from(vector / 8))[0] & 1 << (vector % 8) != 0
    }

    /// Sets up and enables `queue` in the device.
    pub fn set_up_queue(&self, queue: &DriverQueue) {
        self.select_queue(queue.index);
        self.write(self.common + field::QUEUE_SIZE, &queue.size.to_le_bytes());
        let rings = [
            (field::QUEUE_DESC, queue.descriptors),
            (field::QUEUE_DRIVER, queue.available),
            (field::QUEUE_DEVICE, queue.used),
        ];
        for (offset, address) in rings {
            self.write(self.common + offset, &(address.0 as u32).to_le_bytes());
            self.write(self.common + offset + 4, &((address.0 >> 32) as u32).to_le_bytes());
        }
        self.write(self.common + field::QUEUE_MSIX_VECTOR, &(queue.index + 1).to_le_bytes());
        self.write(self.common + field::QUEUE_ENABLE, &1u16.to_le_bytes());
    }

    /// From reset to `DRIVER_OK`, with every feature, queue and vector.
    pub fn start(&mut self, machine: &PciMachine) -> Vec<DriverQueue> {
        self.reset();
        assert!(self.negotiate(self.offered()), "the device refuses what it offers");
        self.enable_msix();
        self.write(self.common + field::CONFIG_MSIX_VECTOR, &0u16.to_le_bytes());
        let count = u16::from_le_bytes(self.read(self.common + field::NUM_QUEUES));
        let queues: Vec<_> = (0..count).map(|index| self.queue(machine, index)).collect();
        for queue in &queues {
            self.set_up_queue(queue);
        }
        self.write_status(self.status() | status::DRIVER_OK);
        queues
    }
}

/// Interrupts of queues by their MSI messages.
struct MsiQueues {
    msi: Arc<FakeMsi>,
    messages: Vec<MsiMessage>,
}

impl QueueInterrupts for MsiQueues {
    fn count(&self, queue: u16) -> u64 {
        self.msi.count(self.messages[usize::from(queue)])
    }

    fn wait(&self, queue: u16, count: u64) {
        self.msi.wait(self.messages[usize::from(queue)], count);
    }
}
