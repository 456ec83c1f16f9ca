//! Disks that come and go while the VM runs.
//!
//! There is no hotplug controller: the function is put on the bus, and the agent has the guest look. A function whose
//! driver did not bind in time stays on the bus, and its state says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellows_block::{Disk, DiskError, DiskId, Layer, LayerDigest, RawDisk, open_layer};
use bellows_devices::event_loop::EventLoop;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::Block;

use crate::agent::AgentError;
use crate::config::{DriveConfig, LayerConfig};
use crate::error::BuildError;
use crate::virtio_bus::{DeviceError, VirtioBus};
use crate::vm::{NotRunning, Vm};

/// The serial number of the disk that carries layer `digest`: how the guest finds it.
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
    /// The guest's driver did not bind. The disk stays on the bus as [`DiskState::Unbound`].
    #[error("no driver of the guest has bound the disk {serial} at {address}")]
    NotBound {
        /// The disk.
        serial: String,
        /// Where it is.
        address: PciAddress,
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

struct Opened {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

fn open_layer_disk(layer: &LayerConfig) -> Result<Opened, DiskError> {
    let disk = open_layer(&Layer::from(layer))?;
    Ok(Opened { disk: disk.into(), path: layer.path.clone() })
}

fn open_drive(drive: &DriveConfig) -> Result<Opened, DiskError> {
    let disk = RawDisk::open(&drive.path, drive.read_only)?;
    Ok(Opened { disk: Arc::new(disk), path: drive.path.clone() })
}

impl Disks {
    /// Puts the disks of a configuration on the bus, before the guest boots.
    pub(crate) fn add_all(
        &self,
        bus: &VirtioBus,
        layers: &[LayerConfig],
        drives: &[DriveConfig],
    ) -> Result<(), BuildError> {
        // Layers first, so that what depends on the order of discovery finds them in order.
        let opened = layers.iter().map(open_layer_disk).chain(drives.iter().map(open_drive));
        for opened in opened {
            self.add(bus, opened?, DiskState::Attached)?;
        }
        Ok(())
    }

    fn add(&self, bus: &VirtioBus, opened: Opened, state: DiskState) -> Result<DiskInfo, AddError> {
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

    fn set_state(&self, serial: &str, state: DiskState) {
        if let Some(entry) = self.table().get_mut(serial) {
            entry.info.state = state;
        }
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Disks::add`] can meet.
enum AddError {
    Duplicate(DuplicateDisk),
    Device(DeviceError),
}

impl From<DeviceError> for AddError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<AddError> for BuildError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Duplicate(error) => error.into(),
            AddError::Device(error) => error.into(),
        }
    }
}

impl From<AddError> for HotplugError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Duplicate(error) => error.into(),
            AddError::Device(error) => error.into(),
        }
    }
}

impl Vm {
    /// Adds a layer while the VM runs; returns once a driver of the guest has bound, with the disk's serial number.
    ///
    /// # Errors
    /// See [`HotplugError`]. After [`HotplugError::NotBound`] the disk is there all the same.
    pub fn attach_layer(&self, layer: &LayerConfig, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        self.attach(open_layer_disk(layer)?, timeout)
    }

    /// Adds a raw disk while the VM runs; see [`Vm::attach_layer`].
    ///
    /// # Errors
    /// See [`HotplugError`].
    pub fn attach_drive(&self, drive: &DriveConfig, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        self.attach(open_drive(drive)?, timeout)
    }

    fn attach(&self, opened: Opened, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        let agent = self.agent()?;
        let _change = self.disks.change();
        let mut info = self.disks.add(&self.bus, opened, DiskState::Unbound)?;
        agent.attach(&[info.address], timeout).map_err(|source| HotplugError::NotBound {
            serial: info.serial.clone(),
            address: info.address,
            source,
        })?;
        info.state = DiskState::Attached;
        self.disks.set_state(&info.serial, info.state);
        Ok(info)
    }

    /// Removes a disk while the VM runs: first the guest lets go of it, then it leaves the bus.
    ///
    /// # Errors
    /// See [`HotplugError`]; the disk is still there.
    pub fn detach_disk(&self, serial: &str, timeout: Duration) -> Result<(), HotplugError> {
        let agent = self.agent()?;
        let _change = self.disks.change();
        let info = self.disks.table().get(serial).map(|entry| entry.info.clone());
        let info = info.ok_or_else(|| HotplugError::NoDisk(serial.to_owned()))?;
        agent.detach(&[info.address], timeout).map_err(|source| HotplugError::NotReleased {
            serial: info.serial.clone(),
            address: info.address,
            source,
        })?;
        self.bus.remove(&format!("disk `{}`", info.path.display()), info.address)?;
        let entry = self.disks.table().remove(serial);
        // Joins its thread, outside the lock.
        drop(entry);
        Ok(())
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
