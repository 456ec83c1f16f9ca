//! Files of images: as separate disks, and dropped from the page cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::{HostDisk, page_cache};

use crate::Result;

/// A disk with the content of a file and its own page cache, like a copy, or a device of device-mapper. It copies
/// nothing: it is a loop device that bypasses the file's page cache. Dropping this detaches it.
pub struct Copy(pub PathBuf);

impl Copy {
    pub fn attach(file: &Path) -> Result<Self> {
        let mut attach = Command::new(LOSETUP);
        let output = attach.args(["--find", "--show", "--read-only", "--direct-io=on"]).arg(file).output()?;
        if !output.status.success() {
            return Err(format!("{LOSETUP}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        Ok(Self(String::from_utf8(output.stdout)?.trim().into()))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A device that stays is visible and can be detached by hand.
        let _ = Command::new(LOSETUP).arg("--detach").arg(&self.0).status();
    }
}

const LOSETUP: &str = "/usr/sbin/losetup";

/// Bytes that the host has read from the disk under `path` since it booted.
pub fn bytes_read(path: &Path) -> Result<u64> {
    let disk = HostDisk::of(path)?.ok_or_else(|| format!("{} lies on no single disk", path.display()))?;
    Ok(disk.bytes_read()?)
}

/// Drops a file, or all files in a directory, from the host's page cache. They must not be mapped.
pub fn evict(path: &Path) -> Result<()> {
    if fs::metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            evict(&entry?.path())?;
        }
        return Ok(());
    }
    Ok(page_cache::evict(path)?)
}
