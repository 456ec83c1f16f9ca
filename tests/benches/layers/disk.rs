//! The disk that images lie on: what is read from it, and how to forget what was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::page_cache;

use crate::Result;

/// What `stat` counts in, whatever the disk's own sectors are (Linux, `Documentation/block/stat.rst`).
const SECTOR: u64 = 512;

/// The disk below a directory.
pub struct Disk(PathBuf);

impl Disk {
    pub fn below(directory: &Path) -> Result<Self> {
        let device = fs::metadata(directory)?.dev();
        let counters = format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device)).into();
        let disk = Self(counters);
        disk.bytes_read().map_err(|error| format!("{} lies on no single disk: {error}", directory.display()))?;
        Ok(disk)
    }

    /// Bytes that were ever read from it.
    pub fn bytes_read(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.0).map_err(|error| format!("{}: {error}", self.0.display()))?;
        let sectors = text.split_ascii_whitespace().nth(2).and_then(|sectors| sectors.parse::<u64>().ok());
        Ok(sectors.ok_or_else(|| format!("{}: {text:?}", self.0.display()))? * SECTOR)
    }
}

/// A disk with the content of a file and a page cache of its own, as a copy has, or a device that device-mapper makes.
/// Nothing is copied: it's a loop device that reads past the file's page cache. It goes when this is dropped.
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
        // A device that stays is seen and can be detached by hand.
        let _ = Command::new(LOSETUP).arg("--detach").arg(&self.0).status();
    }
}

const LOSETUP: &str = "/usr/sbin/losetup";

/// Has the host forget a file, or all files in a directory, that nobody maps.
pub fn evict(path: &Path) -> Result<()> {
    if fs::metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            evict(&entry?.path())?;
        }
        return Ok(());
    }
    Ok(page_cache::evict(path)?)
}
