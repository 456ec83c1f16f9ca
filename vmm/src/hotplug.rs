//! Disks that come and go while the VM runs.
//!
//! There is no hotplug controller: the function is put on the bus, and the agent has the guest look. A function whose
//! driver did not bind in time stays on the bus, and its state says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellows_block::{Disk, DiskError, DiskId, FlatDisk, FlatImage, Layer, LayerDigest, RawDisk, open_layer};
use bellows_devices::event_loop::EventLoop;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::Block;

use crate::agent::{AgentClient, AgentError};
use crate::config::{DriveConfig, LayerConfig};
use crate::error::BuildError;
use crate::virtio_bus::{DeviceError, VirtioBus};
use crate::vm::{NotRunning, Vm};

/// The serial number of the disk that carries the layer, or the flat image, that `digest` names.
#[must_use]
pub fn serial_of(digest: &LayerDigest) -> String {
    serial(DiskId::from(digest))
}

fn serial(id: DiskId) -> String {
    String::from_utf8_lossy(id.as_bytes()).trim_end_matches('\0').to_owned()
}

/// Where a disk stands with the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskState {
    /// It was there when the guest booted, or a driver has bound.
    Attached,
    /// It is on the bus, but the guest did not say that a driver has bound.
    Unbound,
}

/// A disk of a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskInfo {
    /// Its serial number.
    pub serial: String,
    /// Its file.
    pub path: PathBuf,
    /// Whether the guest can write.
    pub read_only: bool,
    /// Where it is on the bus.
    pub address: PciAddress,
    /// Where it stands with the guest.
    pub state: DiskState,
}

/// Two disks with one serial number.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the disk `{path}` has the serial number {serial} of `{other}`")]
pub struct DuplicateDisk {
    /// File of the disk that was to be added.
    pub path: PathBuf,
    /// File of the disk that is there.
    pub other: PathBuf,
    /// What they have in common.
    pub serial: String,
}

/// Why a disk was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The file can't be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest could not tell it apart from another.
    #[error(transparent)]
    Duplicate(#[from] DuplicateDisk),
    /// It could not be put on the bus.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no agent to ask.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// No disk has that serial number.
    #[error("no disk of the VM has the serial number `{0}`")]
    NoDisk(String),
    /// A driver of the guest did not bind. The disks stay on the bus as [`DiskState::Unbound`].
    #[error("no driver of the guest has bound the disk {serial} at {address}, or one of {others} others")]
    NotBound {
        /// The first disk.
        serial: String,
        /// Where it is.
        address: PciAddress,
        /// How many disks were attached with it.
        others: usize,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// The guest did not let go of it. The disk stays as it was.
    #[error("the guest has not let go of the disk {serial} at {address}")]
    NotReleased {
        /// The disk.
        serial: String,
        /// Where it is.
        address: PciAddress,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
}

/// All disks of a VM.
#[derive(Default)]
pub(crate) struct Disks {
    /// Held through a whole change; changes wait for the guest.
    change: Mutex<()>,
    /// By serial number.
    table: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    info: DiskInfo,
    /// The thread of its queue.
    _event_loop: EventLoop,
}

/// A disk whose files are open.
pub(crate) struct Opened {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Opened {
    pub(crate) fn layer(layer: &LayerConfig) -> Result<Self, DiskError> {
        Ok(Self { disk: open_layer(&Layer::from(layer))?.into(), path: layer.path.clone() })
    }

    pub(crate) fn flat(image: &FlatImage) -> Result<Self, DiskError> {
        Ok(Self { disk: Arc::new(FlatDisk::open(image)?), path: image.path.clone() })
    }

    pub(crate) fn drive(drive: &DriveConfig) -> Result<Self, DiskError> {
        Ok(Self { disk: Arc::new(RawDisk::open(&drive.path, drive.read_only)?), path: drive.path.clone() })
    }
}

impl Disks {
    /// Puts a disk on the bus. Before the guest boots it is as good as attached.
    pub(crate) fn add(&self, bus: &VirtioBus, opened: Opened, state: DiskState) -> Result<DiskInfo, AddError> {
        let Opened { disk, path } = opened;
        let serial = serial(disk.id());
        if let Some(other) = self.table().get(&serial) {
            return Err(AddError::Duplicate(DuplicateDisk { path, other: other.info.path.clone(), serial }));
        }
        let name = format!("disk `{}`", path.display());
        let read_only = disk.read_only();
        let event_loop = bus.event_loop("blk")?;
        let address = bus.add(&name, Block::new(disk), event_loop.handle())?;
        let info = DiskInfo { serial: serial.clone(), path, read_only, address, state };
        self.table().insert(serial, Entry { info: info.clone(), _event_loop: event_loop });
        Ok(info)
    }

    /// The disk with that serial number.
    pub(crate) fn find(&self, serial: &str) -> Option<DiskInfo> {
        self.table().get(serial).map(|entry| entry.info.clone())
    }

    /// Has the guest look for `disks`; returns once a driver has bound all of them.
    pub(crate) fn bind(&self, agent: &AgentClient, disks: &[DiskInfo], limit: Duration) -> Result<(), HotplugError> {
        let Some(first) = disks.first() else { return Ok(()) };
        let functions: Vec<_> = disks.iter().map(|disk| disk.address).collect();
        agent.attach(&functions, limit).map_err(|source| HotplugError::NotBound {
            serial: first.serial.clone(),
            address: first.address,
            others: disks.len() - 1,
            source,
        })?;
        for disk in disks {
            if let Some(entry) = self.table().get_mut(&disk.serial) {
                entry.info.state = DiskState::Attached;
            }
        }
        Ok(())
    }

    /// Has the guest let go of a disk and takes it off the bus.
    pub(crate) fn detach(
        &self,
        agent: &AgentClient,
        bus: &VirtioBus,
        serial: &str,
        limit: Duration,
    ) -> Result<(), HotplugError> {
        let disk = self.find(serial).ok_or_else(|| HotplugError::NoDisk(serial.to_owned()))?;
        agent.detach(&[disk.address], limit).map_err(|source| HotplugError::NotReleased {
            serial: disk.serial.clone(),
            address: disk.address,
            source,
        })?;
        Ok(self.remove(bus, &disk)?)
    }

    /// Takes a disk off the bus that the guest does not use.
    pub(crate) fn remove(&self, bus: &VirtioBus, disk: &DiskInfo) -> Result<(), DeviceError> {
        bus.remove(&format!("disk `{}`", disk.path.display()), disk.address)?;
        let entry = self.table().remove(&disk.serial);
        // Joins its thread, outside the lock.
        drop(entry);
        Ok(())
    }

    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Disks::add`] can meet.
pub(crate) enum AddError {
    Disk(DiskError),
    Duplicate(DuplicateDisk),
    Device(DeviceError),
}

impl From<DiskError> for AddError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<DeviceError> for AddError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<AddError> for BuildError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Disk(error) => error.into(),
            AddError::Duplicate(error) => error.into(),
            AddError::Device(error) => error.into(),
        }
    }
}

impl From<AddError> for HotplugError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Disk(error) => error.into(),
            AddError::Duplicate(error) => error.into(),
            AddError::Device(error) => error.into(),
        }
    }
}

impl Vm {
    /// Adds a raw disk while the VM runs; returns once a driver of the guest has bound.
    ///
    /// # Errors
    /// See [`HotplugError`]. After [`HotplugError::NotBound`] the disk is there all the same.
    pub fn attach_drive(&self, drive: &DriveConfig, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        let agent = self.agent()?;
        let opened = Opened::drive(drive)?;
        let _change = self.disks.change();
        let info = self.disks.add(&self.bus, opened, DiskState::Unbound)?;
        self.disks.bind(agent, std::slice::from_ref(&info), timeout)?;
        Ok(DiskInfo { state: DiskState::Attached, ..info })
    }

    /// Removes a disk while the VM runs: first the guest lets go of it, then it leaves the bus.
    ///
    /// # Errors
    /// See [`HotplugError`]; the disk is still there.
    pub fn detach_disk(&self, serial: &str, timeout: Duration) -> Result<(), HotplugError> {
        let agent = self.agent()?;
        let _change = self.disks.change();
        self.disks.detach(agent, &self.bus, serial, timeout)
    }

    /// The disks there are now, by serial number.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskInfo> {
        self.disks.table().values().map(|entry| entry.info.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_serial_number_is_the_start_of_its_digest() {
        let digest = LayerDigest::of(b"layer");
        assert_eq!(serial_of(&digest), digest.hex()[..20]);
    }
}
