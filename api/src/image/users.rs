//! The users of a file: processes that hold a lock on it, as VMs do on their layers.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The visible processes that hold a lock on `path`.
///
/// # Errors
/// The file or the kernel's list cannot be read.
pub(super) fn users(path: &Path) -> io::Result<BTreeSet<u32>> {
    let metadata = fs::metadata(path)?;
    let file = (libc::major(metadata.dev()), libc::minor(metadata.dev()), metadata.ino());
    Ok(holders(&fs::read_to_string("/proc/locks")?, file))
}

/// Finds a file in `/proc/locks`, whose lines are `1: FLOCK ADVISORY READ <pid> <major>:<minor>:<inode> <start> <end>`,
/// device numbers in hexadecimal (Linux, `fs/locks.c`, `lock_get_status`). Waiting processes have an arrow in between.
fn holders(locks: &str, file: (u32, u32, u64)) -> BTreeSet<u32> {
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, _, process, place) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let mut place = place.split(':');
        let device = |text: Option<&str>| u32::from_str_radix(text?, 16).ok();
        let found = (device(place.next())?, device(place.next())?, place.next()?.parse().ok()?);
        // Processes outside this namespace are numbered 0 or less.
        (kind == "FLOCK" && found == file).then(|| process.parse().ok().filter(|process| *process > 0)).flatten()
    };
    locks.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_of_one_file_are_found() {
        let locks = "1: POSIX  ADVISORY  READ 12 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 34 fe:0a:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 56 fe:00:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 57 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 58 fe:00:77 0 EOF\n\
                     5: FLOCK  ADVISORY  READ -1 fe:00:77 0 EOF\n\
                     6: OFDLCK nonsense\n";
        assert_eq!(holders(locks, (0xfe, 0, 77)), BTreeSet::from([56, 58]));
        assert!(holders("", (0, 0, 0)).is_empty());
    }

    #[test]
    fn a_lock_of_this_process_is_seen() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let file = fs::File::create(&path).unwrap();
        file.lock_shared().unwrap();
        assert!(users(&path).unwrap().contains(&std::process::id()));
        assert!(users(directory.path()).unwrap().is_empty());
    }
}
