//! A layer store on a file system with fs-verity. It needs no guest, only a kernel with fs-verity, such as the lab's.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::testing::{Compression, LayoutBuilder};
use bellows_block::{ImportOptions, LayerDisk, Store};

/// The kernel's file for ext4's support.
const SUPPORTED: &str = "/sys/fs/ext4/features/verity";

/// A file system in a file, mounted for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, point: PathBuf) -> Self {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).args([image, &point]));
        Self(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A sealed layer cannot be written to; one that changed below the file system cannot be read any more.
#[test]
fn layers_are_sealed_where_the_file_system_can() {
    if !Path::new(SUPPORTED).exists() {
        assert!(std::env::var_os("BELLOWS_IN_LAB").is_none(), "the lab's kernel has no fs-verity");
        eprintln!("not tested: this kernel has no fs-verity");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (image, point) = (directory.path().join("image"), directory.path().join("mount"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    fs::create_dir(&point).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-O", "verity", "-b", "4096"]).arg(&image));

    let (archive, marker) = archive();
    let mut layout = LayoutBuilder::new();
    layout.layer(&archive, Compression::None);
    let layout = layout.finish();
    let mounted = Mounted::new(&image, point.clone());
    let store = Store::open(point.join("store")).unwrap();
    let source = OciLayout::open(layout.path()).unwrap().image(&Platform::host(), None).unwrap();
    let digest = store.import(&source, None, &ImportOptions::default()).unwrap().layers[0];
    let details = store.inspect(&digest).unwrap();
    assert!(details.verity.is_some());
    let path = details.layer.path.clone();
    // Not even by root.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(File::options().write(true).open(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    store.verify(&digest).unwrap();
    assert!(LayerDisk::open(&details.layer).is_ok());
    drop((store, mounted));

    let disk = File::options().read(true).write(true).open(&image).unwrap();
    let mut data = Vec::new();
    (&disk).read_to_end(&mut data).unwrap();
    let at = data.windows(marker.len()).position(|window| window == marker).expect("the layer's data is on the disk");
    disk.write_all_at(b"X", at as u64).unwrap();
    disk.sync_all().unwrap();

    let _mounted = Mounted::new(&image, point.clone());
    let store = Store::open(point.join("store")).unwrap();
    let error = store.verify(&digest).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert_eq!(File::open(&path).unwrap().read_to_end(&mut Vec::new()).unwrap_err().raw_os_error(), Some(libc::EIO));
}

/// An archive with a file, and a text that only this file has.
fn archive() -> (Vec<u8>, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let marker = b"bytes that are on the disk once and only once".repeat(20);
    fs::write(directory.path().join("file"), &marker).unwrap();
    let output = Command::new("tar").args(["-c", "file"]).current_dir(directory.path()).output().unwrap();
    assert!(output.status.success());
    (output.stdout, marker)
}
