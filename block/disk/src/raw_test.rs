use std::fs;

use super::*;
use crate::testing::LoopDevice;

fn open(path: &Path, read_only: bool) -> Result<RawDisk, DiskError> {
    RawDisk::open(path, read_only, DiskId::new("disk"))
}

#[test]
fn files_that_can_be_no_raw_disk_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("odd.raw");
    for bytes in [0, 700] {
        fs::write(&path, vec![0; bytes]).unwrap();
        let message = open(&path, false).unwrap_err().to_string();
        assert!(message.contains("odd.raw") && message.contains(&bytes.to_string()), "{message}");
    }
    let message = open(&directory.path().join("missing.raw"), false).unwrap_err().to_string();
    assert!(message.contains("missing.raw"), "{message}");
}

#[test]
fn a_block_device_is_a_raw_disk_and_a_character_device_is_none() {
    let message = open(Path::new("/dev/null"), true).unwrap_err().to_string();
    assert!(message.contains("`/dev/null` is neither"), "{message}");
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("disk.raw");
    fs::write(&path, [7; 8192]).unwrap();
    let Some(device) = LoopDevice::new(&path) else { return };
    let disk = open(device.path(), true).unwrap();
    assert_eq!((disk.sectors(), disk.read_only()), (16, true));
    let mut bytes = [0; 512];
    disk.read_at(4096, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn two_virtual_machines_never_write_one_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    fs::write(&path, [0; 4096]).unwrap();
    let writer = open(&path, false).unwrap();
    for read_only in [false, true] {
        assert!(matches!(open(&path, read_only), Err(DiskError::Busy { .. })));
    }
    drop(writer);
    let readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
    assert!(matches!(open(&path, false), Err(DiskError::Busy { .. })));
    assert!(readers[0].write_at(0, &[]).is_err());
}

#[test]
fn a_file_that_has_grown_is_the_same_disk_with_another_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("disk"), [7; 4096]).unwrap();
    fs::write(path("other"), [8; 4096]).unwrap();
    let disk = open(&path("disk"), false).unwrap();
    fs::write(path("disk"), [9; 8192]).unwrap();
    let again = disk.again(&path("disk"), DiskId::new("again")).unwrap().unwrap();
    assert_eq!((disk.sectors(), again.sectors(), again.read_only()), (8, 16, false));
    assert_eq!(again.id(), DiskId::new("again"));
    drop(disk);
    assert!(matches!(open(&path("disk"), false), Err(DiskError::Busy { .. })), "it has the lock, too");
    assert!(again.again(&path("other"), again.id()).unwrap().is_none());
    fs::write(path("disk"), [0; 100]).unwrap();
    let message = again.again(&path("disk"), again.id()).unwrap_err().to_string();
    assert!(message.contains("has 100 bytes"), "{message}");
    assert!(again.again(&path("missing"), again.id()).is_err());
    drop(again);
    open(&path("other"), false).unwrap();
}

#[test]
fn a_writable_disk_discards_and_a_read_only_one_refuses() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().join("disk.raw");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let disk = open(&path, false).unwrap();
    assert!(disk.discards());
    let blocks = || fs::metadata(&path).unwrap().blocks();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let before = blocks();
    disk.discard(0, 256 << 10).unwrap();
    disk.write_zeroes(256 << 10, 256 << 10, true).unwrap();
    assert!(blocks() + 1024 <= before, "{} of {before}", blocks());
    let after = blocks();
    disk.write_zeroes(512 << 10, 256 << 10, false).unwrap();
    assert!(blocks() >= after, "without unmapping the room stays");
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 1 << 20);
    assert!(content[..768 << 10].iter().all(|byte| *byte == 0));
    assert!(content[768 << 10..].iter().all(|byte| *byte == 7));
    drop(disk);
    let disk = open(&path, true).unwrap();
    assert!(!disk.discards());
    for result in [disk.discard(0, 512), disk.write_zeroes(0, 512, true), disk.write_zeroes(0, 512, false)] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn zeros_are_written_where_the_file_system_knows_no_other_way() {
    // Files in memory can have holes, and nothing else (shmem_fallocate).
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    let write = |bytes: &[u8]| std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    write(&[7; 8192]);
    for unmap in [true, false] {
        write_zeroes(&file, 1024, 4096, unmap).unwrap();
        let mut content = [1; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).unwrap();
        assert_eq!(content, [&[7; 1024][..], &[0; 4096], &[7; 3072]].concat()[..]);
        write(&[7; 8192]);
    }
}
