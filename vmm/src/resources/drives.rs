//! Drives that change while the VM runs: their files and their rate limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bellows_devices::virtio::limits::RateLimit;
use bellows_disk::{Disk as _, RawDisk};

use super::disks::{DiskChange, Disks, Drive, drive_id, serial};
use super::error::{DuplicateDisk, HotplugError};
use crate::descriptors;
use crate::model::DiskInfo;

impl Disks {
    /// Changes the rate limits of a drive.
    pub(crate) fn set_limits(&self, serial: &str, limits: RateLimit) -> Result<(), HotplugError> {
        let change = self.change();
        self.drive(serial)?.0.handle.set_limit(limits);
        change.update(&serial.to_owned(), |entry| entry.info.limits = limits);
        Ok(())
    }

    /// Puts the file at `path` in the place of a drive's, and tells the guest's driver of its size.
    pub(crate) fn replace(&self, serial: &str, path: &Path, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        let change = self.change();
        let (drive, info) = self.drive(serial)?;
        let file = self.open_instead(&drive, &info, path)?;
        let (sectors, read_only) = (file.sectors(), file.read_only());
        if !drive.handle.replace(file.clone(), timeout)? {
            tracing::warn!(
                path = %info.path.display(),
                "the drive has another file, but a request on the old one takes long: that file is still in use"
            );
        }
        tracing::info!(old = %info.path.display(), new = %path.display(), sectors, read_only, "exchanged a drive's file");
        Ok(exchanged(&change, info, path, file))
    }

    /// Opens the file at `path` as the drive's next. It may be the same, with another size.
    fn open_instead(&self, drive: &Drive, info: &DiskInfo, path: &Path) -> Result<Arc<RawDisk>, HotplugError> {
        let id = drive_id(path);
        let (serial, path) = (serial(id), path.to_owned());
        if let Some(other) = self.find(&serial).filter(|_| serial != info.serial) {
            return Err(DuplicateDisk { path, other: other.path, serial }.into());
        }
        descriptors::check_attach(1)?;
        let file = match drive.file.again(&path, id)? {
            Some(again) => again,
            None => RawDisk::open(&path, info.read_only, id)?,
        };
        Ok(Arc::new(file))
    }

    fn drive(&self, serial: &str) -> Result<(Drive, DiskInfo), HotplugError> {
        let found = self.table.read(&serial.to_owned(), |entry| (entry.drive().cloned(), entry.info.clone()));
        match found {
            None => Err(HotplugError::NoDisk(serial.to_owned())),
            Some((None, _)) => Err(HotplugError::NotDrive(serial.to_owned())),
            Some((Some(drive), info)) => Ok((drive, info)),
        }
    }
}

/// Writes down that the drive has another file.
fn exchanged(change: &DiskChange<'_>, info: DiskInfo, path: &Path, file: Arc<RawDisk>) -> DiskInfo {
    let after = DiskInfo { serial: serial(file.id()), path: path.to_owned(), ..info.clone() };
    change.rename(&info.serial, after.serial.clone(), |entry| {
        entry.info = after.clone();
        entry.set_file(file);
    });
    after
}
