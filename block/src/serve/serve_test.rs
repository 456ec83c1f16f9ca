use std::fs;
use std::path::PathBuf;

use bellows_disk::Disk;
use vm_memory::VolatileSlice;

use super::*;
use crate::{Digest, StoredFile};

fn layer(path: PathBuf, bytes: u64) -> StoredFile {
    StoredFile { digest: Digest::of(b"layer"), path, bytes }
}

fn messages(layer: &StoredFile) -> [String; 2] {
    [LayerDisk::open(layer).unwrap_err().to_string(), MappedLayer::open(layer).unwrap_err().to_string()]
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
    let disks: [Box<dyn Disk>; 2] =
        [Box::new(LayerDisk::open(&layer).unwrap()), Box::new(MappedLayer::open(&layer).unwrap())];
    for disk in disks {
        let mut buffer = [0; 4096];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        assert!(disk.read_at(4096, &slices).is_ok());
        for offset in [4608, 8192, 1 << 40, u64::MAX - 4095, u64::MAX] {
            assert!(disk.read_at(offset, &slices).is_err(), "{offset:#x}");
        }
        assert_eq!(buffer, [7; 4096]);
    }
}
