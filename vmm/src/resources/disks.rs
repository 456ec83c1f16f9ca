//! Disks that come and go while the VM runs.
//!
//! There is no hotplug controller: the function is put on the bus, and the agent has the guest look. A function whose
//! driver did not bind in time stays on the bus, and its state says so.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellows_block::{Digest, FlatDisk, FlatImage, ImageMapping, LayerDisk, ReadSet, Reads, Recorded};
use bellows_devices::event_loop::{EventLoop, EventLoopHandle};
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::{Block, Pmem};
use bellows_disk::{Disk, DiskError, DiskId, RawDisk};

use crate::config::{DriveConfig, LayerConfig, Transport};
use crate::descriptors::{self, TooFewDescriptors};
use crate::error::BuildError;
use crate::guest::agent::{AgentClient, AgentError};
use crate::resources::pmem::{PmemError, PmemWindow, PmemWindows};
use crate::virtio_bus::{DeviceError, VirtioBus};
use crate::vm::{NotRunning, Vm};

/// The serial number of the disk that carries the layer, or the flat image, that `digest` names: the start of the digest. A
/// virtio-pmem device has none that the guest could see; what stands for it here begins with a `p`, so that a layer can reach a
/// guest in both ways.
#[must_use]
pub fn serial_of(digest: &Digest, transport: Transport) -> String {
    match transport {
        Transport::Blk => serial(DiskId::from(digest)),
        Transport::Pmem => serial(DiskId::new(&format!("p{}", digest.hex()))),
    }
}

/// The serial number of a drive: the start of the digest of its path.
fn drive_id(path: &Path) -> DiskId {
    DiskId::from(&Digest::of(path.as_os_str().as_bytes()))
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
    /// Whether the guest can't write.
    pub read_only: bool,
    /// How it reaches the guest.
    pub transport: Transport,
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
    /// The process may not open enough files for it.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// It could not be put on the bus.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It could not be put into the guest's memory.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// There is no agent to ask.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// No disk has that serial number.
    #[error("no disk of the VM has the serial number `{0}`")]
    NoDisk(String),
    /// A driver of the guest did not bind. The disks stay on the bus as [`DiskState::Unbound`].
    #[error("no driver of the guest has bound the disk {serial} at {address}{}", or_others(*others))]
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

fn or_others(others: usize) -> String {
    if others == 0 { String::new() } else { format!(", or one of {others} others") }
}

/// All disks of a VM.
pub(crate) struct Disks {
    windows: Arc<PmemWindows>,
    /// Where devices run whose requests take no time.
    event_loop: EventLoopHandle,
    /// Whether disks with layers keep account of what is read.
    pub(crate) record_reads: bool,
    /// Held through a whole change; changes wait for the guest.
    change: Mutex<()>,
    /// By serial number.
    table: Mutex<BTreeMap<String, Entry>>,
}

struct Entry {
    info: DiskInfo,
    source: Source,
}

/// Where the guest's reads are served from.
enum Source {
    Blocks {
        reads: Option<Arc<Reads>>,
        /// The thread of its queue.
        _event_loop: EventLoop,
    },
    Memory(PmemWindow),
}

/// A disk whose files are open.
pub(crate) struct Opened {
    content: Content,
    serial: String,
    path: PathBuf,
}

enum Content {
    /// With a record of what is read, if that was asked for.
    Blocks(Arc<dyn Disk>, Option<Arc<Reads>>),
    Memory(ImageMapping),
}

impl Content {
    fn recorded<D: Disk + 'static>(disk: Recorded<D>) -> Self {
        let reads = disk.reads();
        Self::Blocks(Arc::new(disk), Some(reads))
    }
}

impl Opened {
    pub(crate) fn layer(layer: &LayerConfig, transport: Transport, record: bool) -> Result<Self, DiskError> {
        let content = match transport {
            Transport::Blk => {
                let disk = LayerDisk::open(&layer.into())?;
                if record { Content::recorded(disk.recorded()) } else { Content::Blocks(Arc::new(disk), None) }
            }
            Transport::Pmem => Content::Memory(ImageMapping::layer(&layer.into())?),
        };
        Ok(Self { content, serial: serial_of(&layer.digest, transport), path: layer.path.clone() })
    }

    pub(crate) fn flat(image: &FlatImage, transport: Transport, record: bool) -> Result<Self, DiskError> {
        let content = match transport {
            Transport::Blk => {
                let disk = FlatDisk::open(image)?;
                if record { Content::recorded(disk.recorded()) } else { Content::Blocks(Arc::new(disk), None) }
            }
            Transport::Pmem => Content::Memory(ImageMapping::flat(image)?),
        };
        Ok(Self { content, serial: serial_of(&image.digest, transport), path: image.path.clone() })
    }

    pub(crate) fn drive(drive: &DriveConfig) -> Result<Self, DiskError> {
        let id = drive_id(&drive.path);
        let disk = RawDisk::open(&drive.path, drive.read_only, id)?;
        Ok(Self { content: Content::Blocks(Arc::new(disk), None), serial: serial(id), path: drive.path.clone() })
    }
}

impl Disks {
    /// No disks yet. Devices whose requests take no time run on `event_loop`; others have a thread each.
    pub(crate) fn new(windows: Arc<PmemWindows>, event_loop: EventLoopHandle, record_reads: bool) -> Self {
        Self { windows, event_loop, record_reads, change: Mutex::default(), table: Mutex::default() }
    }

    /// Puts a disk on the bus. Before the guest boots it is as good as attached.
    pub(crate) fn add(&self, bus: &VirtioBus, opened: Opened, state: DiskState) -> Result<DiskInfo, AddError> {
        let Opened { content, serial, path } = opened;
        if let Some(other) = self.table().get(&serial) {
            return Err(AddError::Duplicate(DuplicateDisk { path, other: other.info.path.clone(), serial }));
        }
        let name = format!("disk `{}`", path.display());
        let info = |transport, read_only, address| DiskInfo {
            serial: serial.clone(),
            path,
            read_only,
            transport,
            address,
            state,
        };
        let entry = match content {
            Content::Blocks(disk, reads) => {
                let read_only = disk.read_only();
                let event_loop = bus.event_loop("blk")?;
                let address = bus.add(&name, Block::new(disk), event_loop.handle())?;
                let source = Source::Blocks { reads, _event_loop: event_loop };
                Entry { info: info(Transport::Blk, read_only, address), source }
            }
            Content::Memory(mapping) => {
                let window = self.windows.open(mapping)?;
                let device = Pmem::new(window.start(), window.bytes());
                let address = bus.add(&name, device, self.event_loop.clone())?;
                Entry { info: info(Transport::Pmem, true, address), source: Source::Memory(window) }
            }
        };
        let info = entry.info.clone();
        self.table().insert(serial, entry);
        Ok(info)
    }

    /// The disk with that serial number.
    pub(crate) fn find(&self, serial: &str) -> Option<DiskInfo> {
        self.table().get(serial).map(|entry| entry.info.clone())
    }

    /// The pages of a disk's files that the guest has read, as far as that is kept account of.
    pub(crate) fn touched(&self, serial: &str) -> io::Result<ReadSet> {
        match self.table().get(serial).map(|entry| &entry.source) {
            Some(Source::Blocks { reads: Some(reads), .. }) => Ok(reads.read_set()),
            Some(Source::Memory(window)) => window.touched(),
            Some(Source::Blocks { reads: None, .. }) | None => Ok(ReadSet::default()),
        }
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
    Pmem(PmemError),
}

impl From<PmemError> for AddError {
    fn from(error: PmemError) -> Self {
        Self::Pmem(error)
    }
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
            AddError::Pmem(error) => error.into(),
        }
    }
}

impl From<AddError> for HotplugError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Disk(error) => error.into(),
            AddError::Duplicate(error) => error.into(),
            AddError::Device(error) => error.into(),
            AddError::Pmem(error) => error.into(),
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
        descriptors::check_attach(descriptors::of_drive())?;
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
    fn a_drives_serial_number_is_the_start_of_its_paths_digest() {
        // printf /disk.raw | sha256sum
        assert_eq!(serial(drive_id(Path::new("/disk.raw"))), "326f48deefa1687951a4");
    }

    #[test]
    fn a_layers_serial_number_is_the_start_of_its_digest() {
        let digest = Digest::of(b"layer");
        assert_eq!(serial_of(&digest, Transport::Blk), digest.hex()[..20]);
        assert_eq!(serial_of(&digest, Transport::Pmem), format!("p{}", &digest.hex()[..19]));
    }
}
