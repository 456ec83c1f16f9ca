//! Scratch disks: each is room that one instance can write to, and ends with it.
//!
//! Its page cache is the instance's: its cgroup is charged for what its processes write and read.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bellows_protocol::values::{InstanceId, PciAddress, VolumePath};
use nix::mount::MsFlags;

use crate::error::{AgentError, Result};
use crate::sync::Mutex;
use crate::{mounts, sys};

/// The request for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchDisk {
    /// The function of its disk.
    pub address: PciAddress,
    /// Its place in the instance.
    pub path: VolumePath,
}

/// The functions whose disks are mounted, or about to be, and by which instance.
#[derive(Debug, Default)]
pub struct Users(Mutex<HashMap<PciAddress, InstanceId>>);

/// The mount of one. It stays until [`Mount::undo`].
#[derive(Debug)]
pub struct Mount {
    address: PciAddress,
    folder: PathBuf,
    is_mounted: OnceLock<()>,
}

impl Users {
    /// Reserves the disk for an instance.
    ///
    /// # Errors
    /// [`AgentError::InUse`].
    pub fn begin(&self, disk: &ScratchDisk, id: &InstanceId, folder: &Path) -> Result<Mount> {
        let mut users = self.0.lock();
        if let Some(user) = users.get(&disk.address) {
            return Err(in_use(&disk.address, user));
        }
        users.insert(disk.address.clone(), id.clone());
        Ok(Mount { address: disk.address.clone(), folder: folder.to_owned(), is_mounted: OnceLock::new() })
    }

    /// Refuses if an instance has the disk of one of these functions.
    ///
    /// # Errors
    /// [`AgentError::InUse`].
    pub fn check_unused(&self, addresses: &[PciAddress]) -> Result<()> {
        let users = self.0.lock();
        let used = addresses.iter().find_map(|address| Some((address, users.get(address)?)));
        used.map_or(Ok(()), |(address, user)| Err(in_use(address, user)))
    }
}

impl Mount {
    /// Mounts the block device `node`.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn mount(&self, node: &Path) -> Result<&Path> {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        // What is deleted goes back to the host.
        mounts::mount_at(node.to_str(), &self.folder, "ext4", flags, "discard")?;
        // There is one mount.
        let _ = self.is_mounted.set(());
        Ok(&self.folder)
    }

    /// Unmounts it, if it is mounted, without writing what nobody will read. Again is fine.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn undo(&self, users: &Users) -> Result<()> {
        if !users.0.lock().contains_key(&self.address) {
            return Ok(());
        }
        if self.is_mounted.get().is_some() {
            if let Err(error) = File::open(&self.folder).and_then(|folder| sys::abandon_file_system(&folder)) {
                tracing::debug!(%error, "a scratch disk is written before it goes");
            }
            mounts::unmount(&self.folder)?;
        }
        users.0.lock().remove(&self.address);
        Ok(())
    }
}

fn in_use(address: &PciAddress, user: &InstanceId) -> AgentError {
    AgentError::InUse { what: format!("PCI function {address}"), by: format!("instance {user}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_one_user_until_it_is_unmounted() {
        let folder = tempfile::tempdir().unwrap();
        let users = Users::default();
        let disk = |address: &str| ScratchDisk { address: address.parse().unwrap(), path: "/tmp".parse().unwrap() };
        let (one, other) = (disk("0000:01:04.0"), disk("0000:01:05.0"));
        let mount = users.begin(&one, &"a".parse().unwrap(), folder.path()).unwrap();
        let refused = users.begin(&one, &"b".parse().unwrap(), folder.path()).unwrap_err();
        assert_eq!(refused.to_string(), "PCI function 0000:01:04.0 is in use by instance a");
        assert!(users.check_unused(&[other.address.clone(), one.address.clone()]).is_err());
        users.check_unused(&[other.address]).unwrap();
        // Nothing is mounted there.
        mount.undo(&users).unwrap();
        users.check_unused(std::slice::from_ref(&one.address)).unwrap();
        users.begin(&one, &"b".parse().unwrap(), folder.path()).unwrap();
        mount.undo(&users).unwrap();
    }
}
