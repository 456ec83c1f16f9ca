//! Scratch disks: each is a file of the host without a name, which one instance writes to. It comes with the start of the instance and
//! goes with its removal, and with the process at the latest.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bellows_block::{Digest, ScratchDisk, ScratchError, scratch};
use bellows_disk::DiskId;
use bellows_memory::ByteSize;
use bellows_protocol::DISK_LIMIT;
use bellows_protocol::agent::{self, StartInstanceRequest};
use bellows_protocol::values::{InstanceId, VolumePath};

use super::disks::{DiskChange, Disks, Opened, serial};
use super::error::{HotplugError, InstanceError};
use crate::descriptors;
use crate::guest::agent::AgentClient;
use crate::model::{DiskInfo, DiskState};
use crate::virtio_bus::VirtioBus;

/// Where the file lies if the configuration does not say: the first of these that is a folder. Systems clear the second at each boot,
/// and may have it in memory.
const FOLDERS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Room that an instance can write to without using its memory up: a disk with an empty file system, which everybody in the instance
/// may write to. It takes room on the host only for what is written and not deleted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScratchSpec {
    size: ByteSize,
    /// Where the instance finds it.
    pub path: VolumePath,
}

impl ScratchSpec {
    /// One of `size`, at `path`.
    ///
    /// # Errors
    /// [`ScratchError::Size`].
    pub fn new(size: ByteSize, path: VolumePath) -> Result<Self, ScratchError> {
        ScratchDisk::check(size)?;
        Ok(Self { size, path })
    }

    /// The size of its disk; files have a little less.
    #[must_use]
    pub fn size(&self) -> ByteSize {
        self.size
    }
}

/// Makes the scratch disks of a VM's instances, and takes them away. It keeps no part of the VM.
#[derive(Clone, Default)]
pub(crate) struct ScratchDisks {
    folder: Option<PathBuf>,
    disks: Weak<Disks>,
    bus: Weak<VirtioBus>,
}

impl ScratchDisks {
    pub(crate) fn new(folder: Option<PathBuf>, disks: &Arc<Disks>, bus: &Arc<VirtioBus>) -> Self {
        Self { folder, disks: Arc::downgrade(disks), bus: Arc::downgrade(bus) }
    }

    /// Calls `start` with the request for an instance, once the guest has its scratch disk, if it is to have one. If the start fails,
    /// the disk goes again.
    pub(super) fn with<T>(
        &self,
        agent: &AgentClient,
        (id, scratch): (&InstanceId, Option<&ScratchSpec>),
        mut request: StartInstanceRequest,
        start: impl FnOnce(StartInstanceRequest) -> Result<T, InstanceError>,
    ) -> Result<T, InstanceError> {
        let Some(scratch) = scratch else { return start(request) };
        let disk = self.attach(agent, id, scratch.size)?;
        request.scratch_disk = Some(agent::ScratchDisk {
            pci_address: disk.address.to_string(),
            path: scratch.path.to_string(),
            ..Default::default()
        })
        .into();
        start(request).inspect_err(|_| self.roll_back(agent, id))
    }

    /// Takes the scratch disk of an instance away, if it has one. Nothing of the instance is left in the guest.
    pub(super) fn remove(&self, agent: &AgentClient, id: &InstanceId, limit: Duration) -> Result<(), InstanceError> {
        // With the VM its disks go.
        let (Some(disks), Some(bus)) = (self.disks.upgrade(), self.bus.upgrade()) else { return Ok(()) };
        let serial = serial(disk_id(id));
        if disks.find(&serial).is_none() {
            return Ok(());
        }
        let removed = disks.detach_by(&disks.change(), agent, &bus, &serial, limit);
        removed.map_err(|source| failed("take away", id, source))
    }

    fn attach(&self, agent: &AgentClient, id: &InstanceId, size: ByteSize) -> Result<DiskInfo, InstanceError> {
        // A VM that has ended has no agent to ask, either.
        let (Some(disks), Some(bus)) = (self.disks.upgrade(), self.bus.upgrade()) else {
            return Err(InstanceError::ScratchLeft(id.clone()));
        };
        let change = disks.change();
        if disks.find(&serial(disk_id(id))).is_some() {
            return Err(InstanceError::ScratchLeft(id.clone()));
        }
        let failed = |source| failed("attach", id, source);
        descriptors::check_attach(descriptors::of_scratch_disk()).map_err(|error| failed(error.into()))?;
        let folder = self.folder();
        let disk = ScratchDisk::create(folder, size, disk_id(id));
        let disk = disk.map_err(|source| InstanceError::Scratch { id: id.clone(), source })?;
        if scratch::is_in_memory(folder).unwrap_or(false) {
            tracing::warn!(folder = %folder.display(), "the folder of scratch disks is in memory: what instances write there is, too");
        }
        let added = disks.add(&change, &bus, Opened::scratch(disk, folder), DiskState::Unbound).map_err(failed)?;
        if let Err(error) = disks.bind(&change, agent, std::slice::from_ref(&added), DISK_LIMIT) {
            give_back(&disks, &change, agent, &bus, &added.serial);
            return Err(failed(error));
        }
        Ok(added)
    }

    /// Takes the disk of an instance that did not start away, unless the guest may still use it.
    fn roll_back(&self, agent: &AgentClient, id: &InstanceId) {
        if let (Some(disks), Some(bus)) = (self.disks.upgrade(), self.bus.upgrade()) {
            give_back(&disks, &disks.change(), agent, &bus, &serial(disk_id(id)));
        }
    }

    fn folder(&self) -> &Path {
        self.folder.as_deref().unwrap_or_else(|| default_scratch_folder())
    }
}

/// The folder in whose file system scratch disks lie if the configuration names none: `/var/tmp`, or `/tmp` where that is missing.
#[must_use]
pub fn default_scratch_folder() -> &'static Path {
    let [first, second] = FOLDERS.map(Path::new);
    if first.is_dir() { first } else { second }
}

fn give_back(disks: &Disks, change: &DiskChange<'_>, agent: &AgentClient, bus: &VirtioBus, serial: &str) {
    if let Err(error) = disks.detach_by(change, agent, bus, serial, DISK_LIMIT) {
        tracing::error!(disk = serial, %error, "the scratch disk of an instance that did not start stays: remove the instance");
    }
}

/// Its serial number: no layer's, which has hexadecimal digits alone, or begins with a `p`.
fn disk_id(id: &InstanceId) -> DiskId {
    DiskId::new(&format!("s{}", Digest::of(id.as_str().as_bytes()).hex()))
}

fn failed(action: &'static str, id: &InstanceId, source: HotplugError) -> InstanceError {
    InstanceError::ScratchDisk { action, id: id.clone(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_disk_has_is_refused() {
        let new = |size| ScratchSpec::new(size, "/tmp".parse().unwrap());
        assert_eq!(new(ByteSize::mib(1)).unwrap().size(), ByteSize::mib(1));
        for size in [0, 1023, 9 << 30] {
            assert!(new(ByteSize::kib(size)).unwrap_err().to_string().contains("expected 1 MiB to 8 TiB"));
        }
    }

    #[test]
    fn the_disks_of_two_instances_differ() {
        let disk = |id: &str| serial(disk_id(&id.parse().unwrap()));
        // printf main | sha256sum
        assert_eq!(disk("main"), "s0d6e4079e36703ebd37");
        assert_ne!(disk("main"), disk("other"));
    }
}
