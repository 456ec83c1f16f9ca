//! The host's disks: what is read from them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Unit of the counters in `/sys/dev/block/*/stat`, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// The disk that a file lies on.
#[derive(Clone, Debug)]
pub(super) struct HostDisk {
    stat: PathBuf,
    name: String,
}

impl HostDisk {
    /// The disk under `path`; `None` where the file system has no disk (tmpfs) or does not name it (overlay, btrfs).
    ///
    /// # Errors
    /// `path` is missing.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let device = fs::metadata(path)?.dev();
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
        let Ok(target) = fs::canonicalize(&folder) else { return Ok(None) };
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self { stat: folder.join("stat"), name }))
    }

    /// Its name among the kernel's disks.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes read from it since the host booted.
    ///
    /// # Errors
    /// The kernel has no such counter.
    pub(super) fn bytes_read(&self) -> io::Result<u64> {
        parse_stat(&fs::read_to_string(&self.stat)?)
    }
}

/// `Documentation/block/stat.rst`: the third field counts sectors read.
fn parse_stat(text: &str) -> io::Result<u64> {
    let sectors = text.split_whitespace().nth(2).and_then(|field| field.parse::<u64>().ok());
    let sectors = sectors.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no disk statistics"))?;
    Ok(sectors.saturating_mul(SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_statistics_count_sectors() {
        assert_eq!(parse_stat("   10  0  2048 5 0 0 0 0 0 5 5\n").unwrap(), 1 << 20);
        assert!(parse_stat("10 0").is_err());
    }
}
