//! The bus of the virtio devices, and the resources that every device on it gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use bellows_devices::bus::{BusError, Doorbells};
use bellows_devices::event_loop::{EventLoop, EventLoopHandle};
use bellows_devices::interrupt::MsiController;
use bellows_devices::pci::{PciAddress, PciError, PciSegment, SegmentLayout};
use bellows_devices::virtio::{TransportError, VirtioDevice, VirtioPci};
use bellows_memory::sync::Mutex;
use bellows_memory::{GuestAddress, GuestView};

use crate::arch::legacy::Misplaced;
use crate::arch::{Buses, RootBus, layout};
use crate::config_pages::{ConfigPages, ConfigPagesError};
use crate::kind::ErrorKind;
use crate::kvm::{ExitNotice, ExitReason, Machine};

/// Fewest root buses: 247 functions.
const MIN_BUSES: u8 = 8;
/// Functions that fit on each bus.
const PER_BUS: usize = 31;

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device is impossible, or interrupts ran out.
    #[error("cannot make the PCI function of the {device}")]
    Transport {
        /// The device.
        device: String,
        /// The cause.
        #[source]
        source: TransportError,
    },
    /// Its interrupt line could not be wired.
    #[error("cannot wire the interrupt line of the {device}")]
    Line {
        /// The device.
        device: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The guest's CPUs have no interrupt vectors for it.
    #[error("the {device} needs {needed} interrupt vectors: {taken} of the {limit} that the vCPUs have are taken")]
    Vectors {
        /// The device.
        device: String,
        /// Vectors that it needs.
        needed: usize,
        /// Vectors that are taken.
        taken: usize,
        /// Vectors of the guest.
        limit: usize,
    },
    /// The bus is full, or has no such device to remove.
    #[error("cannot change the PCI bus for the {device}")]
    Pci {
        /// The device.
        device: String,
        /// The cause.
        #[source]
        source: PciError,
    },
    /// An address range is taken.
    #[error("cannot put the {device} where it belongs")]
    Bus {
        /// The device.
        device: &'static str,
        /// The cause.
        #[source]
        source: BusError,
    },
    /// The guest cannot have configuration space as memory.
    #[error(transparent)]
    ConfigPages(#[from] ConfigPagesError),
    /// The system has no thread.
    #[error("cannot start the thread of the {device}")]
    EventLoop {
        /// The device.
        device: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl DeviceError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Pci { source: PciError::Full { .. }, .. } | Self::Vectors { .. } => ErrorKind::Conflict,
            Self::Pci { source: PciError::NotFound(_), .. } => ErrorKind::NotFound,
            Self::Transport { source: TransportError::Vectors { .. }, .. }
            | Self::Line { .. }
            | Self::ConfigPages(_)
            | Self::EventLoop { .. } => ErrorKind::Host,
            Self::Transport { .. } | Self::Pci { .. } | Self::Bus { .. } => ErrorKind::Internal,
        }
    }
}

impl From<Misplaced> for DeviceError {
    fn from((device, source): Misplaced) -> Self {
        Self::Bus { device, source }
    }
}

/// The PCI segment, and the parts of the machine that its functions need.
pub(crate) struct VirtioBus {
    segment: Arc<PciSegment>,
    msi: Arc<dyn MsiController>,
    doorbells: Arc<dyn Doorbells>,
    memory: GuestView,
    notice: ExitNotice,
    vectors: Mutex<Vectors>,
}

/// Interrupt vectors of the guest's CPUs.
struct Vectors {
    limit: usize,
    /// The resources of each function.
    taken: BTreeMap<PciAddress, usize>,
}

impl VirtioBus {
    /// Puts a segment with room for `functions`, and as many again on a bus of their own, on the machine's address spaces. The
    /// guest has `vectors` interrupt vectors for them.
    pub(crate) fn new(
        machine: &Machine,
        memory: GuestView,
        notice: ExitNotice,
        functions: usize,
        vectors: usize,
        buses: &Buses,
    ) -> Result<Self, DeviceError> {
        let count =
            u8::try_from(functions / PER_BUS + 2).unwrap_or(layout::MAX_BUSES).clamp(MIN_BUSES, layout::MAX_BUSES);
        let segment_layout = SegmentLayout {
            buses: count,
            window_base: layout::DEVICE_WINDOWS.start,
            window_per_bus: layout::DEVICE_WINDOW_PER_BUS,
        };
        let segment = PciSegment::new(segment_layout, &buses.mmio)
            .map_err(|source| DeviceError::Pci { device: "host bridge".into(), source })?;
        buses
            .mmio
            .insert(layout::ECAM.start, segment_layout.ecam_bytes(), segment.ecam())
            .map_err(|source| DeviceError::Bus { device: "PCI configuration space", source })?;
        let pages = ConfigPages::new(GuestAddress(layout::ECAM.start), segment_layout.ecam_bytes(), machine.slots())?;
        segment.show_in(Arc::new(pages));
        let vectors = Mutex::new(Vectors { limit: vectors, taken: BTreeMap::new() });
        Ok(Self { segment, msi: machine.msi(), doorbells: machine.doorbells(), memory, notice, vectors })
    }

    /// The buses, as the firmware tables describe them.
    pub(crate) fn root_buses(&self) -> Vec<RootBus> {
        let layout = self.segment.layout();
        let window = |number| {
            let range = layout.window(number)?;
            // An end of exactly 4 GiB would not fit; the windows end far below.
            let mmio32 = u32::try_from(range.first()).ok()?..u32::try_from(range.last()).ok()?.checked_add(1)?;
            Some(RootBus { number, mmio32, mmio64: None })
        };
        (0..layout.buses).filter_map(window).collect()
    }

    /// What devices see of guest memory.
    pub(crate) const fn memory(&self) -> &GuestView {
        &self.memory
    }

    /// A thread for queues whose failure ends the VM.
    pub(crate) fn event_loop(&self, name: &str) -> Result<EventLoop, DeviceError> {
        let notice = self.notice.clone();
        EventLoop::spawn(name, move |error| notice.report(ExitReason::Error(Box::new(error))))
            .map_err(|source| DeviceError::EventLoop { device: name.to_owned(), source })
    }

    /// Puts `device`, called `name` in errors, on the bus.
    pub(crate) fn add(
        &self,
        name: &str,
        device: impl VirtioDevice + 'static,
        event_loop: EventLoopHandle,
    ) -> Result<PciAddress, DeviceError> {
        let device: Box<dyn VirtioDevice> = Box::new(device);
        let mut vectors = self.vectors.lock();
        let needed = vectors.check(name, &*device)?;
        let (memory, doorbells) = (self.memory.clone(), self.doorbells.clone());
        let function = VirtioPci::new(device, memory, &*self.msi, doorbells, event_loop)
            .map_err(|source| DeviceError::Transport { device: name.to_owned(), source })?;
        let address =
            self.segment.add(function).map_err(|source| DeviceError::Pci { device: name.to_owned(), source })?;
        vectors.taken.insert(address, needed);
        tracing::debug!(device = name, %address, "added a device to the bus");
        Ok(address)
    }

    /// Takes the device at `address` off the bus; it has stopped when this returns.
    pub(crate) fn remove(&self, name: &str, address: PciAddress) -> Result<(), DeviceError> {
        self.segment.remove(address).map_err(|source| DeviceError::Pci { device: name.to_owned(), source })?;
        self.vectors.lock().taken.remove(&address);
        tracing::debug!(device = name, %address, "a device has left the bus");
        Ok(())
    }

    /// Suspends every device: when this returns, none touches guest memory. The vCPUs have stopped.
    pub(crate) fn suspend(&self) {
        self.segment.suspend();
    }

    /// Resumes every device.
    pub(crate) fn resume(&self) {
        self.segment.resume();
    }
}

impl Vectors {
    /// Reserves the vectors that `device` needs.
    fn check(&self, name: &str, device: &dyn VirtioDevice) -> Result<usize, DeviceError> {
        // One for each queue, and one for the configuration.
        let needed = device.queue_max_sizes().len() + 1;
        let taken: usize = self.taken.values().sum();
        if needed <= self.limit.saturating_sub(taken) {
            return Ok(needed);
        }
        Err(DeviceError::Vectors { device: name.to_owned(), needed, taken, limit: self.limit })
    }
}

#[cfg(test)]
mod tests {
    use bellows_devices::virtio::Rng;

    use super::*;

    #[test]
    fn a_device_without_vectors_is_refused_with_the_figures() {
        let address = |device| PciAddress::new(0, device, 0).unwrap();
        let mut vectors = Vectors { limit: 5, taken: BTreeMap::new() };
        for device in 1..=2 {
            let needed = vectors.check("disk", &Rng::new()).unwrap();
            vectors.taken.insert(address(device), needed);
        }
        let error = vectors.check("disk `x`", &Rng::new()).unwrap_err().to_string();
        assert_eq!(error, "the disk `x` needs 2 interrupt vectors: 4 of the 5 that the vCPUs have are taken");
        vectors.taken.remove(&address(1));
        assert_eq!(vectors.check("disk", &Rng::new()).unwrap(), 2);
    }
}
