use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::Command;

use super::*;

const IDENTITY: Identity = Identity { uuid: *b"0123456789abcdef", hash_seed: [7; 16], made: 1_700_000_000 };
const MIB: u64 = 1 << 20;

/// A sparse file of `bytes` bytes with an empty file system.
fn made(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(bytes).unwrap();
    for (offset, piece) in empty(bytes, &IDENTITY).unwrap() {
        assert!(offset + piece.len() as u64 <= bytes);
        file.as_file().write_all_at(&piece, offset).unwrap();
    }
    file
}

/// Whatever the size, down to groups that end early: e2fsprogs finds nothing wrong.
#[test]
fn fsck_finds_nothing_wrong() {
    // A group is 128 MiB; its bitmaps, its table and the least of data take 578 blocks.
    let group = 128 * MIB;
    let edge = group + 578 * BLOCK_SIZE;
    let odd =
        [MIB, MIB + 512, 4 * MIB + 4096, 100 * MIB, group - 4096, group, group + 4096, edge - 4096, edge, 8 * group];
    for bytes in odd.into_iter().chain([1 << 30, 5 * group + 70 * MIB, 40 << 30, 1 << 40]) {
        let file = made(bytes);
        let output = Command::new("e2fsck").args(["-f", "-n"]).arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // The place for what a repair finds is the one thing that it misses: nothing is ever repaired.
        let problems: Vec<_> = text.lines().filter(|line| line.ends_with("? no")).collect();
        let expected = "/lost+found not found.  Create? no";
        assert!(problems.iter().all(|problem| *problem == expected), "{bytes}: {text}");
        assert!(text.contains("10/") || text.contains("/10 ") || text.contains(": 10"), "{bytes}: {text}");
    }
}

#[test]
fn it_takes_little_of_the_host_however_large_the_disk() {
    for (bytes, most) in [(MIB, 64 << 10), (1 << 30, 64 << 10), (1 << 40, 512 << 10)] {
        let file = made(bytes);
        let metadata = File::open(file.path()).unwrap();
        metadata.sync_all().unwrap();
        let taken = metadata.metadata().unwrap().blocks() * 512;
        assert!(taken <= most, "{taken} of {bytes}");
    }
}

#[test]
fn sizes_that_no_file_system_has_are_refused() {
    for bytes in [0, 4096, MIB - 1, (8 << 40) + 1, u64::MAX] {
        assert!(empty(bytes, &IDENTITY).is_none(), "{bytes}");
    }
    assert!(empty(*SIZES.start(), &IDENTITY).is_some() && empty(*SIZES.end(), &IDENTITY).is_some());
}

#[test]
fn the_checksum_is_the_usual_one() {
    // CRC-16/ARC begins with 0, and its check value is that of these digits.
    assert_eq!(b"123456789".iter().fold(0, crc16), 0xbb3d);
}
