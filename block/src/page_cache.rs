//! The host's page cache of files.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::Path;

use bellows_memory::host::{Access, Area, residency};

use crate::advice::dont_need;
use crate::read_set::{PAGE_SIZE, PageRanges};

/// The pages of a file, or of a block device, that are in the host's page cache now. A device has pages of its own, apart from
/// those of file systems on it.
///
/// # Errors
/// The file cannot be opened or mapped, or `mincore` fails.
pub fn resident(path: &Path) -> io::Result<PageRanges> {
    let file = File::open(path)?;
    // The metadata of a device does not give its length.
    let bytes = usize::try_from((&file).seek(SeekFrom::End(0))?).map_err(io::Error::other)?;
    if bytes == 0 {
        return Ok(PageRanges::default());
    }
    let area = Area::reserve(bytes.next_multiple_of(PAGE_SIZE as usize), Access::Read)?;
    area.map_file(0..bytes, &file)?;
    let mut states = vec![0; bytes.div_ceil(PAGE_SIZE as usize)];
    Ok(PageRanges::of(residency(area.address(), bytes, &mut states)?))
}

/// Drops the pages of a file that no process uses from the host's page cache.
///
/// # Errors
/// The file cannot be opened, or the kernel refuses.
pub fn evict(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Pages that have not reached the disk stay.
    file.sync_all()?;
    dont_need(&file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn pages_come_and_go() {
        // Next to the sources: /tmp may be a tmpfs, whose pages stay in memory.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        assert_eq!(resident(&path).unwrap().bytes(), 1 << 20);
        evict(&path).unwrap();
        assert!(resident(&path).unwrap().is_empty());
        File::open(&path).unwrap().read_exact_at(&mut [0], 5 * PAGE_SIZE).unwrap();
        let some = resident(&path).unwrap();
        assert!(!some.is_empty() && some.bytes() <= 1 << 20);
        fs::read(&path).unwrap();
        assert_eq!(resident(&path).unwrap().bytes(), 1 << 20);
    }

    #[test]
    fn an_empty_file_has_no_pages() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(resident(file.path()).unwrap().is_empty());
        assert!(resident(Path::new("/nowhere")).is_err());
    }
}
