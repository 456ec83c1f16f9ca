//! Disks that come and go while the VM runs.
//!
//! Without a hotplug controller, the monitor puts the function on the bus and the agent has the guest rescan. A
//! function whose driver did not bind in time stays on the bus, as its state shows.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bellows_block::{Digest, FlatDisk, FlatImage, ImageMapping, LayerDisk, ReadSet, Reads, Recorded, ScratchDisk};
use bellows_devices::event_loop::{EventLoop, EventLoopHandle};
use bellows_devices::virtio::blk::BlockHandle;
use bellows_devices::virtio::limits::RateLimit;
use bellows_devices::virtio::{Block, Pmem};

use bellows_disk::{Disk, DiskError, DiskId, RawDisk};

use super::error::{DuplicateDisk, HotplugError};
use super::pmem::{PmemWindow, PmemWindows};
use super::table::{Change, Hotplug};
use crate::config::{DriveConfig, LayerConfig, Transport};
use crate::descriptors;
use crate::guest::agent::AgentClient;
use crate::guest::session::Session;
use crate::model::{DiskInfo, DiskState};
use crate::virtio_bus::{DeviceError, VirtioBus};

/// All disks of a VM, by serial number.
pub(crate) struct Disks {
    windows: Arc<PmemWindows>,
    /// The loop for devices whose requests take no time.
    event_loop: EventLoopHandle,
    /// Whether disks with layers record the pages that are read.
    pub(crate) record_reads: bool,
    pub(super) table: Hotplug<String, Entry>,
}

/// The right to change a VM's disks.
pub(crate) type DiskChange<'a> = Change<'a, String, Entry>;

impl Disks {
    /// An empty table. Devices whose requests take no time run on `event_loop`; each of the others has a thread.
    pub(crate) fn new(windows: Arc<PmemWindows>, event_loop: EventLoopHandle, record_reads: bool) -> Self {
        Self { windows, event_loop, record_reads, table: Hotplug::default() }
    }

    /// Puts a raw disk on the bus before the guest boots.
    pub(crate) fn add_drive(&self, bus: &VirtioBus, drive: &DriveConfig) -> Result<DiskInfo, HotplugError> {
        self.add(&self.change(), bus, Opened::drive(drive)?, DiskState::Attached)
    }

    /// Adds a raw disk; returns once a driver of the guest has bound.
    pub(crate) fn attach_drive(
        &self,
        session: &Session,
        bus: &VirtioBus,
        drive: &DriveConfig,
        timeout: Duration,
    ) -> Result<DiskInfo, HotplugError> {
        let agent = session.agent()?;
        descriptors::check_attach(descriptors::of_drive())?;
        let opened = Opened::drive(drive)?;
        let change = self.change();
        let info = self.add(&change, bus, opened, DiskState::Unbound)?;
        self.bind(&change, agent, std::slice::from_ref(&info), timeout)?;
        Ok(DiskInfo { state: DiskState::Attached, ..info })
    }

    /// Removes a disk: first the guest lets go of it, then it leaves the bus.
    pub(crate) fn detach(
        &self,
        change: &DiskChange<'_>,
        session: &Session,
        bus: &VirtioBus,
        serial: &str,
        timeout: Duration,
    ) -> Result<(), HotplugError> {
        self.detach_by(change, session.agent()?, bus, serial, timeout)
    }

    /// The same, by this agent.
    pub(super) fn detach_by(
        &self,
        change: &DiskChange<'_>,
        agent: &AgentClient,
        bus: &VirtioBus,
        serial: &str,
        timeout: Duration,
    ) -> Result<(), HotplugError> {
        let disk = self.find(serial).ok_or_else(|| HotplugError::NoDisk(serial.to_owned()))?;
        agent.detach(&[disk.address], timeout).map_err(|source| HotplugError::NotReleased {
            serial: disk.serial.clone(),
            address: disk.address,
            source,
        })?;
        Ok(self.remove(change, bus, &disk)?)
    }

    /// Waits for the turn to change the disks.
    pub(crate) fn change(&self) -> DiskChange<'_> {
        self.table.change()
    }

    /// Puts a disk on the bus. Before the guest boots this counts as attached.
    pub(crate) fn add(
        &self,
        change: &DiskChange<'_>,
        bus: &VirtioBus,
        opened: Opened,
        state: DiskState,
    ) -> Result<DiskInfo, HotplugError> {
        let Opened { content, serial, path, limits } = opened;
        if let Some(other) = self.table.read(&serial, |entry| entry.info.path.clone()) {
            return Err(DuplicateDisk { path, other, serial }.into());
        }
        let name = format!("disk `{}`", path.display());
        let file_path = path.clone();
        let info = |transport, read_only, address| DiskInfo {
            serial: serial.clone(),
            path,
            read_only,
            transport,
            address,
            state,
            limits,
        };
        let entry = match content {
            Content::Blocks(disk, reads) => {
                let read_only = disk.read_only();
                let event_loop = bus.event_loop("blk")?;
                let address = bus.add(&name, Block::new(disk), event_loop.handle())?;
                let source = Source::Blocks { reads, _event_loop: event_loop };
                Entry { info: info(Transport::Blk, read_only, address), source }
            }
            Content::Drive(file) => {
                let read_only = file.read_only();
                let event_loop = bus.event_loop("blk")?;
                let failed = |source| HotplugError::Control { path: file_path.clone(), source };
                let device = Block::controlled(file.clone() as Arc<dyn Disk>, limits).map_err(failed)?;
                let handle = device.handle();
                let address = bus.add(&name, device, event_loop.handle())?;
                let source = Source::Drive { drive: Drive { file, handle }, _event_loop: event_loop };
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
        change.insert(serial, entry);
        Ok(info)
    }

    /// The disk with that serial number.
    pub(crate) fn find(&self, serial: &str) -> Option<DiskInfo> {
        self.table.read(&serial.to_owned(), |entry| entry.info.clone())
    }

    /// All disks, by serial number.
    pub(crate) fn infos(&self) -> Vec<DiskInfo> {
        self.table.map(|entry| entry.info.clone())
    }

    /// The pages of a disk's files that the guest has read, if they are recorded.
    pub(crate) fn touched(&self, serial: &str) -> io::Result<ReadSet> {
        let touched = self.table.read(&serial.to_owned(), |entry| match &entry.source {
            Source::Blocks { reads: Some(reads), .. } => Ok(reads.read_set()),
            Source::Blocks { reads: None, .. } | Source::Drive { .. } => Ok(ReadSet::default()),
            Source::Memory(window) => window.touched(),
        });
        touched.unwrap_or_else(|| Ok(ReadSet::default()))
    }

    /// Has the guest look for `disks`; returns once a driver has bound all of them.
    pub(crate) fn bind(
        &self,
        change: &DiskChange<'_>,
        agent: &AgentClient,
        disks: &[DiskInfo],
        limit: Duration,
    ) -> Result<(), HotplugError> {
        let Some(first) = disks.first() else { return Ok(()) };
        let functions: Vec<_> = disks.iter().map(|disk| disk.address).collect();
        agent.attach(&functions, limit).map_err(|source| HotplugError::NotBound {
            serial: first.serial.clone(),
            address: first.address,
            others: disks.len() - 1,
            source,
        })?;
        for disk in disks {
            change.update(&disk.serial, |entry| entry.info.state = DiskState::Attached);
        }
        Ok(())
    }

    /// Takes a disk that the guest does not use off the bus.
    pub(crate) fn remove(&self, change: &DiskChange<'_>, bus: &VirtioBus, disk: &DiskInfo) -> Result<(), DeviceError> {
        bus.remove(&format!("disk `{}`", disk.path.display()), disk.address)?;
        // Joins its thread.
        drop(change.remove(&disk.serial));
        Ok(())
    }
}

pub(crate) struct Entry {
    pub(super) info: DiskInfo,
    source: Source,
}

impl Entry {
    /// What makes it a drive, if it is one.
    pub(super) fn drive(&self) -> Option<&Drive> {
        match &self.source {
            Source::Drive { drive, .. } => Some(drive),
            Source::Blocks { .. } | Source::Memory(_) => None,
        }
    }

    /// A drive has another file.
    pub(super) fn set_file(&mut self, file: Arc<RawDisk>) {
        if let Source::Drive { drive, .. } = &mut self.source {
            drive.file = file;
        }
    }
}

/// What a drive has beside what every disk has.
#[derive(Clone)]
pub(super) struct Drive {
    pub(super) file: Arc<RawDisk>,
    pub(super) handle: BlockHandle,
}

/// The files that serve the guest's reads.
enum Source {
    Blocks {
        reads: Option<Arc<Reads>>,
        /// The thread of its queue.
        _event_loop: EventLoop,
    },
    Drive {
        drive: Drive,
        _event_loop: EventLoop,
    },
    Memory(PmemWindow),
}

/// A disk whose files are open.
pub(crate) struct Opened {
    content: Content,
    serial: String,
    path: PathBuf,
    limits: RateLimit,
}

enum Content {
    /// Records the pages that are read, if configured so.
    Blocks(Arc<dyn Disk>, Option<Arc<Reads>>),
    Drive(Arc<RawDisk>),
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
        let (serial, path) = (serial_of(&layer.digest, transport), layer.path.clone());
        Ok(Self { content, serial, path, limits: RateLimit::default() })
    }

    pub(crate) fn flat(image: &FlatImage, transport: Transport, record: bool) -> Result<Self, DiskError> {
        let content = match transport {
            Transport::Blk => {
                let disk = FlatDisk::open(image)?;
                if record { Content::recorded(disk.recorded()) } else { Content::Blocks(Arc::new(disk), None) }
            }
            Transport::Pmem => Content::Memory(ImageMapping::flat(image)?),
        };
        let (serial, path) = (serial_of(&image.digest, transport), image.path.clone());
        Ok(Self { content, serial, path, limits: RateLimit::default() })
    }

    pub(crate) fn drive(drive: &DriveConfig) -> Result<Self, DiskError> {
        let id = drive_id(&drive.path);
        let content = match drive.transport {
            Transport::Blk => Content::Drive(Arc::new(RawDisk::open(&drive.path, drive.read_only, id)?)),
            Transport::Pmem => Content::Memory(ImageMapping::file(&drive.path)?),
        };
        Ok(Self { content, serial: serial(id), path: drive.path.clone(), limits: drive.limits })
    }

    pub(super) fn scratch(disk: ScratchDisk, folder: &Path) -> Self {
        let serial = serial(disk.id());
        let content = Content::Blocks(Arc::new(disk), None);
        Self { content, serial, path: folder.to_owned(), limits: RateLimit::default() }
    }
}

/// The serial number of the disk that carries the layer, or the flat image, of this digest: the start of the digest. A
/// virtio-pmem device shows the guest no serial number; the one used here begins with a `p`, so that a layer can reach a guest
/// over both transports.
#[must_use]
pub fn serial_of(digest: &Digest, transport: Transport) -> String {
    match transport {
        Transport::Blk => serial(DiskId::from(digest)),
        Transport::Pmem => serial(DiskId::new(&format!("p{}", digest.hex()))),
    }
}

/// The serial number of a drive: the start of the digest of its path.
pub(super) fn drive_id(path: &Path) -> DiskId {
    DiskId::from(&Digest::of(path.as_os_str().as_bytes()))
}

pub(super) fn serial(id: DiskId) -> String {
    String::from_utf8_lossy(id.as_bytes()).trim_end_matches('\0').to_owned()
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
