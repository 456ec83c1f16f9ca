use std::fs;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn write(disk: &ScratchDisk, offset: u64, mut bytes: Vec<u8>) {
    disk.write_at(offset, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
}

#[test]
fn a_disk_has_no_name_and_takes_what_is_written_to_it() {
    let folder = folder();
    let disk = ScratchDisk::create(folder.path(), ByteSize::gib(1), DiskId::new("s")).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!((disk.sectors(), disk.read_only(), disk.discards()), (1 << 21, false, true));
    let empty = disk.taken().unwrap().get();
    assert!(empty <= 256 << 10, "{empty}");
    write(&disk, 512 << 20, vec![7; 1 << 20]);
    disk.file.sync_all().unwrap();
    let full = disk.taken().unwrap().get();
    assert!(full >= empty + (1 << 20), "{full}");
    disk.write_zeroes(512 << 20, 512 << 10, false).unwrap();
    disk.discard((512 << 20) + (512 << 10), 512 << 10).unwrap();
    disk.file.sync_all().unwrap();
    // The host's file system may need a few blocks to say where the rest is.
    let taken = disk.taken().unwrap().get();
    assert!(taken <= full - (1 << 20) + (64 << 10), "{taken} of {full}");
    let mut bytes = [1; 4096];
    disk.read_at(512 << 20, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    assert_eq!(bytes, [0; 4096]);
    // The file system is still as it was made.
    let path = format!("/proc/{}/fd/{}", std::process::id(), disk.file.as_raw_fd());
    let output = Command::new("e2fsck").args(["-f", "-n", &path]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("10/65536 files"), "{text}");
}

#[test]
fn no_two_disks_are_the_same_file_system() {
    let folder = folder();
    let uuid = || {
        let disk = ScratchDisk::create(folder.path(), ByteSize::mib(16), DiskId::new("s")).unwrap();
        let mut uuid = [0; 16];
        disk.file.read_exact_at(&mut uuid, 1024 + 0x68).unwrap();
        uuid
    };
    assert_ne!(uuid(), uuid());
}

#[test]
fn what_cannot_be_is_refused_with_figures() {
    let folder = folder();
    let create = |folder: &Path, size| ScratchDisk::create(folder, size, DiskId::new("s")).unwrap_err().to_string();
    let message = create(folder.path(), ByteSize::kib(4));
    assert!(message.contains("4 KiB") && message.contains("1 MiB") && message.contains("8 TiB"), "{message}");
    let message = create(&folder.path().join("missing"), ByteSize::mib(16));
    assert!(message.contains("missing"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn files_in_memory_are_told_from_files_on_a_disk() {
    assert!(is_in_memory(Path::new("/dev/shm")).unwrap());
    assert!(!is_in_memory(Path::new("/proc")).unwrap());
    assert!(is_in_memory(Path::new("/missing")).is_err());
}
