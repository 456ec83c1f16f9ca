//! What files and processes cost the host: page cache, disk, memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr;

const PAGE: u64 = 4096;
/// Unit of the counters in `/sys/dev/block/*/stat`, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// Drops the page cache of a file as far as nobody uses it.
///
/// # Errors
/// The file can't be opened or the kernel refused.
pub(crate) fn evict(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // What has not reached the disk yet could not be dropped.
    file.sync_all()?;
    // SAFETY: the call takes no memory, and the descriptor is open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Bytes of a file that are in the host's page cache now.
///
/// # Errors
/// The file can't be opened or mapped, or the kernel won't tell.
pub(crate) fn resident_bytes(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if bytes == 0 {
        return Ok(0);
    }
    // SAFETY: a new mapping at an address of the kernel's choice; it is never read.
    let address = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut states = vec![0_u8; bytes.div_ceil(PAGE as usize)];
    // SAFETY: the range is the mapping, and `states` has a byte for each of its pages.
    let result = match unsafe { libc::mincore(address, bytes, states.as_mut_ptr()) } {
        0 => Ok(states.iter().map(|state| u64::from(state & 1)).sum::<u64>() * PAGE),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the mapping is ours and nothing refers to it.
    unsafe { libc::munmap(address, bytes) };
    result
}

/// The disk that a file lies on.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    stat: PathBuf,
    pub(crate) name: String,
}

impl Disk {
    /// The disk under `path`; `None` where the file system is on none (tmpfs) or does not say (overlay, btrfs).
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        let device = fs::metadata(path)?.dev();
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
        let Ok(target) = fs::canonicalize(&folder) else { return Ok(None) };
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self { stat: folder.join("stat"), name }))
    }

    /// Bytes read from it since the host booted.
    pub(crate) fn bytes_read(&self) -> io::Result<u64> {
        parse_stat(&fs::read_to_string(&self.stat)?)
    }
}

/// `Documentation/block/stat.rst`: the third field counts sectors read.
fn parse_stat(text: &str) -> io::Result<u64> {
    let sectors = text.split_whitespace().nth(2).and_then(|field| field.parse::<u64>().ok());
    let sectors = sectors.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no disk statistics"))?;
    Ok(sectors.saturating_mul(SECTOR))
}

/// Resident memory of this process, shared pages included.
pub(crate) fn process_rss() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * PAGE)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn page_cache_is_counted_and_dropped() {
        // Next to the sources rather than in /tmp, which may have no disk to go to.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        assert_eq!(resident_bytes(&path).unwrap(), 1 << 20);
        evict(&path).unwrap();
        let cold = resident_bytes(&path).unwrap();
        assert!(cold == 0 || Disk::of(&path).unwrap().is_none(), "{cold}");
        let mut text = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut text).unwrap();
        assert_eq!(resident_bytes(&path).unwrap(), 1 << 20);
    }

    #[test]
    fn an_empty_file_has_no_pages() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(resident_bytes(file.path()).unwrap(), 0);
    }

    #[test]
    fn disk_statistics_count_sectors() {
        assert_eq!(parse_stat("   10  0  2048 5 0 0 0 0 0 5 5\n").unwrap(), 1 << 20);
        assert!(parse_stat("10 0").is_err());
        assert!(process_rss().unwrap() > PAGE);
    }
}
