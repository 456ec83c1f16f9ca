//! EROFS images as a reader sees them that shares no code with the writer.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use erofs_rs::types::Inode;

use super::Node;
use crate::digest::Digest;

/// Every file of the image by its path, the root under the empty name.
pub fn read_independently(image: &Path, devices: &[&Path]) -> BTreeMap<Vec<u8>, Node> {
    let image = fs::read(image).unwrap();
    let devices: Vec<_> = devices.iter().map(|path| fs::read(path).unwrap()).collect();
    let devices = devices.iter().map(|data| SliceImage::new(data)).collect();
    let filesystem = EroFS::new_with_devices(SliceImage::new(&image), devices).unwrap();
    let root = filesystem.get_inode(filesystem.super_block().root_inode_id()).unwrap();
    let mut inodes = BTreeMap::from([(Vec::new(), root)]);
    for entry in filesystem.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().as_bytes()[1..].to_vec();
        inodes.insert(path, entry.inode);
    }
    let mut names = BTreeMap::new();
    let node = |(name, inode): (Vec<u8>, Inode)| {
        let data = || {
            let mut data = Vec::new();
            filesystem.open_inode_file(inode).unwrap().read_to_end(&mut data).unwrap();
            Digest::of(&data)
        };
        let (kind, device) = match inode.file_type().as_raw_mode() {
            libc::S_IFCHR if inode.device().is_none() => (libc::S_IFCHR, (0, 0)),
            kind => (kind, inode.device().unwrap_or((0, 0))),
        };
        let (seconds, nanoseconds) = inode.modified_unix();
        let node = Node {
            mode: kind | inode.permissions().mode() & 0o7777,
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: (seconds, nanoseconds.into()),
            links: inode.nlink().into(),
            device: libc::makedev(device.0, device.1),
            bytes: if inode.is_file() { inode.data_size() } else { 0 },
            data: inode.is_file().then(data),
            target: inode.is_symlink().then(|| filesystem.read_link_inode(inode).unwrap().as_bytes().to_vec()),
            xattrs: filesystem.xattrs_inode(inode).unwrap(),
            same_as: names.entry(inode.id()).or_insert_with(|| name.clone()).clone(),
        };
        (name, node)
    };
    inodes.into_iter().map(node).collect()
}
