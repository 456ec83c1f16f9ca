//! A file tree as the kernel shows it, and EROFS images as the kernel and erofs-utils read them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use bellows_disk::testing::LoopDevice;

use crate::digest::Digest;

/// All that can be seen of a file, but its inode number and what depends on the file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Type and permissions, as `stat` gives them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Number of names.
    pub links: u64,
    /// Number of the device that a device file stands for.
    pub device: u64,
    /// Size of a regular file.
    pub bytes: u64,
    /// Digest of a regular file's data.
    pub data: Option<Digest>,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same inode.
    pub same_as: Vec<u8>,
}

/// Every file below `root`, which is the empty name, by its path.
pub fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    let mut names = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    let mut sorted = Vec::new();
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| relative.join(entry.unwrap().file_name())));
        }
        sorted.push((relative.as_os_str().as_bytes().to_vec(), path, metadata));
    }
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, path, metadata) in sorted {
        assert_ne!(metadata.ino(), 0, "`readdir` hides what has inode number 0");
        let kind = metadata.file_type();
        let same_as = names.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let xattrs = xattr::list(&path).map(|list| {
            list.map(|key| {
                let value = xattr::get(&path, &key).unwrap().unwrap();
                (key.as_bytes().to_vec(), value)
            })
            .collect()
        });
        let node = Node {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: metadata.nlink(),
            device: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            bytes: if kind.is_file() { metadata.len() } else { 0 },
            data: kind.is_file().then(|| Digest::of(&fs::read(&path).unwrap())),
            target: kind.is_symlink().then(|| fs::read_link(&path).unwrap().into_os_string().into_vec()),
            xattrs: xattrs.unwrap_or_default(),
            same_as,
        };
        nodes.insert(name, node);
    }
    nodes
}

/// The first file that two trees differ in.
pub fn difference(a: &BTreeMap<Vec<u8>, Node>, b: &BTreeMap<Vec<u8>, Node>) -> Option<String> {
    let name = a.keys().chain(b.keys()).find(|name| a.get(*name) != b.get(*name))?;
    Some(format!("{}: {:?} and {:?}", name.escape_ascii(), a.get(name), b.get(name)))
}

/// A mount, there for as long as this lives.
pub struct Mount {
    point: TempDir,
}

impl Mount {
    /// Mounts with the kernel; `None` where that has no EROFS or the test no right to.
    pub fn new(image: &Path) -> Option<Self> {
        Self::attach("erofs", "ro,loop", image)
    }

    /// Mounts an image whose data is on `devices`.
    pub fn with_devices(image: &Path, devices: &[&LoopDevice]) -> Option<Self> {
        let devices: String = devices.iter().map(|device| format!(",device={}", device.path().display())).collect();
        Self::attach("erofs", &format!("ro,loop{devices}"), image)
    }

    /// Stacks mounts with overlayfs, lowest first.
    pub fn overlay(layers: &[Self]) -> Option<Self> {
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.path().to_str().unwrap()).collect();
        Self::attach("overlay", &format!("ro,lowerdir={}", lower.join(":")), Path::new("overlay"))
    }

    fn attach(kind: &str, options: &str, source: &Path) -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", kind, "-o", options]).args([source, point.path()]).output().unwrap();
        if output.status.success() {
            return Some(Self { point });
        }
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let known = fs::read_to_string("/proc/filesystems").unwrap().contains(kind);
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        assert!(!(known && root && Path::new("/dev/loop-control").exists()), "cannot mount: {message}");
        eprintln!("not compared with the kernel's view: {message}");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.point.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = || Command::new("umount").arg(self.point.path()).output().is_ok_and(|o| o.status.success());
        // A child that another test is starting may still hold a file of it open for a moment.
        let patience = std::iter::repeat_n(std::time::Duration::from_millis(20), 200);
        let done = unmounted() || patience.inspect(|pause| std::thread::sleep(*pause)).any(|_| unmounted());
        assert!(done || std::thread::panicking());
    }
}

/// Has erofs-utils read the whole image.
pub fn check_with_fsck(image: &Path) {
    let output = Command::new("fsck.erofs").arg("--extract").arg(image).output().expect("erofs-utils is installed");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
