use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use bellows_disk::Disk;
use bellows_memory::host::catch_faults;
use vm_memory::VolatileSlice;

use super::*;
use crate::{Digest, StoredFile};

fn layer(path: PathBuf, bytes: u64) -> StoredFile {
    StoredFile { digest: Digest::of(b"layer"), path, bytes }
}

fn messages(layer: &StoredFile) -> [String; 2] {
    [LayerDisk::open(layer).unwrap_err().to_string(), ImageMapping::layer(layer).unwrap_err().to_string()]
}

/// A layer that is read, and one that is copied from its mapping.
fn disks(layer: &StoredFile) -> [LayerDisk; 2] {
    catch_faults().unwrap();
    [LayerDisk::open(layer).unwrap().unmapped(), LayerDisk::open(layer).unwrap()]
}

fn read(disk: &impl Disk, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0xff; bytes];
    let (first, second) = data.split_at_mut(bytes / 3);
    disk.read_at(offset, &[VolatileSlice::from(first), VolatileSlice::from(second)])?;
    Ok(data)
}

#[test]
fn files_that_cannot_be_a_layer_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layer.erofs");
    let name = path.display().to_string();
    for message in messages(&layer(path.clone(), 4096)) {
        assert!(message.contains(&name), "{message}");
    }
    fs::write(&path, [0; 4608]).unwrap();
    for message in messages(&layer(path.clone(), 4096)) {
        assert!(message.contains(&name) && message.contains("4608") && message.contains("4096"), "{message}");
    }
    for bytes in [0, 700] {
        fs::write(&path, vec![0; bytes]).unwrap();
        for message in messages(&layer(path.clone(), bytes as u64)) {
            assert!(message.contains(&name) && message.contains(&bytes.to_string()), "{message}");
        }
    }
    for message in messages(&layer(directory.path().to_owned(), 4096)) {
        assert!(message.contains("not a regular file"), "{message}");
    }
    let status = std::process::Command::new("mkfifo").arg(directory.path().join("pipe")).status().unwrap();
    assert!(status.success());
    for message in messages(&layer(directory.path().join("pipe"), 4096)) {
        assert!(message.contains("not a regular file"), "{message}");
    }
}

#[test]
fn reads_never_reach_beyond_a_mapping() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layer.erofs");
    fs::write(&path, [7; 8192]).unwrap();
    let layer = layer(path, 8192);
    for disk in disks(&layer) {
        let mut buffer = [0; 4096];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        assert!(disk.read_at(4096, &slices).is_ok());
        for offset in [4608, 8192, 1 << 40, u64::MAX - 4095, u64::MAX] {
            assert!(disk.read_at(offset, &slices).is_err(), "{offset:#x}");
        }
        assert_eq!(buffer, [7; 4096]);
    }
}

#[test]
fn a_file_that_is_cut_short_is_an_error_even_in_the_middle_of_a_page() {
    // The last page is not whole.
    const BYTES: u64 = (300 << 10) + 512;
    for left in [0, 4096, 5000, 8191, BYTES - 4096, BYTES - 1] {
        for had_been_read in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("layer");
            fs::write(&path, vec![5; BYTES as usize]).unwrap();
            let layer = layer(path.clone(), BYTES);
            for disk in disks(&layer) {
                fs::write(&path, vec![5; BYTES as usize]).unwrap();
                let whole = if had_been_read { BYTES as usize } else { 512 };
                assert!(read(&disk, 0, whole).unwrap().iter().all(|byte| *byte == 5));
                File::options().write(true).open(&path).unwrap().set_len(left).unwrap();
                // The page with the new end, and some behind it.
                for offset in [left / 4096 * 4096, left.max(200 << 10) / 512 * 512, BYTES - 512] {
                    let result = read(&disk, offset, 4096.min(BYTES - offset) as usize);
                    assert!(result.is_err(), "{disk:?}: {offset} with {left} bytes left, read {had_been_read}");
                }
            }
        }
    }
}

#[test]
fn a_page_that_vanishes_after_it_was_read_loses_its_layer_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| {
        fs::write(directory.path().join(name), [5; 16384]).unwrap();
        layer(directory.path().join(name), 16384)
    });
    let (first, file) = (disks(&first), File::options().write(true).open(&first.path).unwrap());
    let second = disks(&second);
    first.iter().for_each(|disk| assert_eq!(read(disk, 0, 16384).unwrap(), [5; 16384]));
    file.set_len(4096).unwrap();
    first.iter().for_each(|disk| assert!(read(disk, 8192, 4096).is_err()));
    // Longer again, with other contents: for the one that is mapped it is lost.
    file.set_len(16384).unwrap();
    let [read_again, mapped] = first.each_ref().map(|disk| read(disk, 0, 512).is_ok());
    assert!(read_again && !mapped);
    second.iter().for_each(|disk| assert_eq!(read(disk, 0, 16384).unwrap(), [5; 16384]));
}

#[test]
fn pages_of_zeros_are_read_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layer");
    fs::write(&path, [0; 16384]).unwrap();
    for disk in disks(&layer(path, 16384)) {
        assert_eq!(read(&disk, 512, 9000).unwrap(), [0; 9000]);
    }
}
