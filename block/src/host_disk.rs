//! Bytes read from the host's disks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The disk that a file lies on.
#[derive(Clone, Debug)]
pub struct HostDisk {
    stat: PathBuf,
    name: String,
}

impl HostDisk {
    /// The disk under `path`; `None` if the file system has no disk (tmpfs) or does not name it (overlay, btrfs).
    ///
    /// # Errors
    /// `path` is missing.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        let device = fs::metadata(path)?.dev();
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
        let Ok(target) = fs::canonicalize(&folder) else { return Ok(None) };
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self { stat: folder.join("stat"), name }))
    }

    /// Its name among the kernel's disks.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes read from it since the host booted.
    ///
    /// # Errors
    /// The kernel has no such counter.
    pub fn bytes_read(&self) -> io::Result<u64> {
        let text = fs::read_to_string(&self.stat)?;
        parse_stat(&text).ok_or_else(|| {
            let (file, text) = (self.stat.display(), text.trim());
            io::Error::other(format!("`{file}` is `{text}`: expected the count of sectors read as the third number"))
        })
    }
}

/// Unit of the counters in `/sys/dev/block/*/stat`, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// Bytes read, by a disk's counters (`Documentation/block/stat.rst`).
fn parse_stat(text: &str) -> Option<u64> {
    let sectors: u64 = text.split_whitespace().nth(2)?.parse().ok()?;
    Some(sectors.saturating_mul(SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_statistics_count_sectors() {
        assert_eq!(parse_stat("   10  0  2048 5 0 0 0 0 0 5 5\n"), Some(1 << 20));
        assert_eq!(parse_stat("10 0"), None);
        assert_eq!(parse_stat("10 0 many"), None);
    }
}
