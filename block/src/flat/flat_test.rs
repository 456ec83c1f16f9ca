use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bellows_disk::Disk as _;
use tar::EntryType;
use vm_memory::VolatileSlice;

use super::*;
use crate::compression::Compression;
use crate::store::{Image, ImportOptions, Store, StoreError};
use crate::testing::{
    Archive, Entry, LayoutBuilder, LoopDevice, Mount, Node, difference, read_independently, snapshot,
};
use crate::{FlatDisk, OciLayout, oci::Platform};

struct Flattened {
    directory: tempfile::TempDir,
    store: Store,
    image: Image,
    flat: FlatImage,
}

fn flatten(layers: &[Vec<u8>]) -> Flattened {
    let mut builder = LayoutBuilder::new();
    for layer in layers {
        builder.layer(layer, Compression::None);
    }
    let builder = builder.finish();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let source = OciLayout::open(builder.path()).unwrap().image(&platform, None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    let image = store.import(&source, None, &ImportOptions::default()).unwrap();
    let flat = store.flat(&image).unwrap();
    Flattened { directory, store, image, flat }
}

impl Flattened {
    /// The disk's content, in a file.
    fn disk(&self) -> PathBuf {
        let disk = FlatDisk::open(&self.flat).unwrap();
        let path = self.directory.path().join("disk");
        let mut file = fs::File::create(&path).unwrap();
        let mut buffer = vec![0_u8; 1 << 20];
        let bytes = disk.sectors() * 512;
        let mut offset = 0;
        while offset < bytes {
            let count = usize::try_from((bytes - offset).min(1 << 20)).unwrap();
            disk.read_at(offset, &[VolatileSlice::from(&mut buffer[..count])]).unwrap();
            file.write_all(&buffer[..count]).unwrap();
            offset += count as u64;
        }
        path
    }

    /// What all readers of the flat image see.
    fn snapshot(&self) -> BTreeMap<Vec<u8>, Node> {
        let layers: Vec<_> = self.flat.layers.iter().map(|(_, layer)| layer.path.as_path()).collect();
        let read = read_independently(&self.flat.path, &layers);
        let disk = self.disk();
        if let Some(mount) = Mount::new(&disk) {
            assert_eq!(difference(&snapshot(mount.path()), &read), None);
        }
        // It wants to see the devices too, and reads what is mapped from the whole.
        let mut fsck = Command::new("fsck.erofs");
        fsck.arg("--extract").args(layers.iter().map(|path| format!("--device={}", path.display())));
        let output = fsck.arg(&disk).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        read
    }

    /// What overlayfs shows of the layers, where it can be asked.
    fn overlay(&self) -> Option<BTreeMap<Vec<u8>, Node>> {
        let mounts: Option<Vec<_>> = self.flat.layers.iter().map(|(_, layer)| Mount::new(&layer.path)).collect();
        let mounts = mounts?;
        let overlay = Mount::overlay(&mounts)?;
        Some(snapshot(overlay.path()))
    }
}

/// Without what overlayfs says differently from what it means: links of directories, numbers of inodes.
fn comparable(nodes: BTreeMap<Vec<u8>, Node>) -> BTreeMap<Vec<u8>, Node> {
    let strip = |(name, node): (Vec<u8>, Node)| (name.clone(), Node { links: 1, same_as: name, ..node });
    nodes.into_iter().map(strip).collect()
}

/// Layers with all that layers do to each other.
fn torture() -> Vec<Vec<u8>> {
    let data = |n: u8| vec![n; 10_000 + usize::from(n)];
    let base = Archive::new()
        .add(Entry::new("./", EntryType::Directory).mode(0o751).owner(1, 2))
        .add(Entry::new("kept/", EntryType::Directory).mode(0o700).owner(3, 4))
        .file("kept/a", data(1))
        .hard_link("kept/link", "kept/a")
        .symlink("kept/symlink", "a")
        .file("gone", data(2))
        .file("dir-gone/x", data(3))
        .file("opaque/old", data(4))
        .file("opaque/sub/old", data(5))
        .file("file-to-dir", data(6))
        .file("dir-to-file/x", data(7))
        .file("replaced/deep/down/old", data(8))
        .device("char", EntryType::Char, 5, 1)
        .file("changed", data(9))
        .add(Entry::new("attributes/", EntryType::Directory).pax("SCHILY.xattr.user.layer", "base"))
        .add(
            Entry { data: vec![1; 200_000], ..Entry::new("sparse", EntryType::Regular) }
                .pax("GNU.sparse.size", "4000000")
                .pax("GNU.sparse.map", "0,100000,3000000,100000"),
        );
    let changes = Archive::new()
        .file(".wh.gone", "")
        .file(".wh.dir-gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", data(10))
        .file("opaque/sub/new", data(11))
        .directory("file-to-dir/")
        .file("file-to-dir/x", data(12))
        .file("dir-to-file", data(13))
        .file(".wh.replaced", "")
        .directory("replaced/")
        .file("replaced/new", data(14))
        .file("changed", data(15))
        .add(Entry::new("attributes/", EntryType::Directory).mode(0o711).pax("SCHILY.xattr.user.layer", "changes"));
    let top = Archive::new()
        .file("gone", data(16))
        .file("dir-gone/y", data(17))
        .directory("opaque/sub/")
        .file("opaque/sub/newest", data(18))
        .file("kept/.wh.symlink", "")
        .directory("file-to-dir/")
        .file("file-to-dir/.wh.x", "")
        .add(Entry::new("kept/", EntryType::Directory).mode(0o755).owner(5, 6))
        .add(Entry::new("./", EntryType::Directory).mode(0o755));
    [base, changes, top].map(Archive::finish).into()
}

#[test]
fn a_flat_image_shows_what_overlayfs_shows() {
    let flattened = flatten(&torture());
    let seen = flattened.snapshot();
    assert_eq!(
        (seen[&b"kept/a"[..]].links, seen[&b"kept/a"[..]].same_as == seen[&b"kept/link"[..]].same_as),
        (2, true)
    );
    assert!(seen.values().all(|node| !node.xattrs.keys().any(|name| name.starts_with(b"trusted.overlay."))));
    assert!(seen.values().all(|node| (node.mode & libc::S_IFMT, node.device) != (libc::S_IFCHR, 0)));
    if let Some(overlay) = flattened.overlay() {
        assert_eq!(difference(&comparable(seen), &comparable(overlay)), None);
    }
}

/// The same metadata serves who has a device for each layer, as a host that mounts the image has.
#[test]
fn metadata_and_a_device_for_each_layer_do_as_well() {
    let flattened = flatten(&torture());
    let devices = flattened.flat.layers.iter().map(|(_, layer)| LoopDevice::new(&layer.path));
    let Some(devices) = devices.collect::<Option<Vec<_>>>() else { return };
    if let Some(mount) = Mount::with_devices(&flattened.flat.path, &devices.iter().collect::<Vec<_>>()) {
        assert_eq!(difference(&snapshot(mount.path()), &flattened.snapshot()), None);
    }
}

#[test]
fn directories_that_nobody_described_keep_what_is_below() {
    let base = Archive::new().add(Entry::new("d/", EntryType::Directory).mode(0o1777).owner(7, 8)).file("d/a", "");
    let flattened = flatten(&[base.finish(), Archive::new().file("d/b", "").file("e/f", "").finish()]);
    let seen = flattened.snapshot();
    let node = |name: &str| &seen[name.as_bytes()];
    assert_eq!((node("d").mode & 0o7777, node("d").uid, node("d").gid), (0o1777, 7, 8));
    assert_eq!(node("e").mode & 0o7777, 0o755);
    assert!(seen.contains_key(&b"d/a"[..]) && seen.contains_key(&b"d/b"[..]));
}

#[test]
fn an_opaque_root_hides_all_below() {
    // A whiteout of nothing leaves nothing; overlayfs would list it where no layer below has the directory.
    let layers = [
        Archive::new().file("hidden", "").finish(),
        Archive::new().file(".wh..wh..opq", "").file("seen", "").file(".wh.nothing", "").finish(),
        Archive::new().file("top", "").finish(),
    ];
    let flattened = flatten(&layers);
    assert_eq!(flattened.snapshot().into_keys().collect::<Vec<_>>(), [&b""[..], b"seen", b"top"]);
}

/// Mounted once, whatever device slots and options a mount of its layers would take.
#[test]
fn an_image_of_120_layers() {
    let layer = |n: u32| {
        let archive = Archive::new().file(format!("own/{n}"), n.to_string().repeat(2000)).file("shared", n.to_string());
        if n.is_multiple_of(3) { archive.file(format!("own/.wh.{}", n.wrapping_sub(2)), "") } else { archive }
    };
    let layers: Vec<_> = (0..120).map(|n| layer(n).finish()).collect();
    let flattened = flatten(&layers);
    fs::remove_file(&flattened.flat.path).unwrap();
    let start = Instant::now();
    assert_eq!(flattened.store.flat(&flattened.image).unwrap(), flattened.flat);
    eprintln!("composed 120 layers in {:?}, {} bytes of metadata", start.elapsed(), flattened.flat.bytes);
    assert_eq!(flattened.flat.layers.len(), 120);
    assert!(flattened.flat.bytes < 100_000);
    let seen = flattened.snapshot();
    assert_eq!(seen[&b"shared"[..]].data, Some(Digest::of(b"119")));
    assert!(seen.contains_key(&b"own/119"[..]) && !seen.contains_key(&b"own/115"[..]));
    assert_eq!(seen.keys().filter(|name| name.starts_with(b"own/")).count(), 120 - 39);
}

#[test]
fn layers_begin_where_huge_pages_do() {
    let flattened = flatten(&torture());
    let mut end = flattened.flat.bytes;
    for (start, layer) in &flattened.flat.layers {
        assert!(start.is_multiple_of(2 << 20) && *start >= end && start - end < 2 << 20);
        end = start + layer.bytes;
    }
    assert_eq!(FlatDisk::open(&flattened.flat).unwrap().sectors() * 512, end);
}

#[test]
fn requests_may_cross_parts_and_gaps() {
    let flattened = flatten(&torture());
    let whole = fs::read(flattened.disk()).unwrap();
    let disk = FlatDisk::open(&flattened.flat).unwrap();
    assert!(disk.read_only() && disk.write_at(0, &[]).is_err());
    let starts = flattened.flat.layers.iter().flat_map(|(start, layer)| [*start, start + layer.bytes]);
    for edge in [flattened.flat.bytes].into_iter().chain(starts) {
        for before in [0, 512, 5000 * 512] {
            let offset = edge.saturating_sub(before);
            let length = (whole.len() as u64 - offset).min(3 << 20);
            let mut data = vec![0xff; usize::try_from(length).unwrap()];
            let third = data.len() / 3 / 512 * 512;
            let (first, rest) = data.split_at_mut(third);
            disk.read_at(offset, &[VolatileSlice::from(first), VolatileSlice::from(rest)]).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert!(data == whole[from..from + data.len()], "{offset}");
        }
    }
    let mut buffer = [0; 1024];
    for offset in [whole.len() as u64 - 512, whole.len() as u64, u64::MAX - 511] {
        assert!(disk.read_at(offset, &[VolatileSlice::from(&mut buffer[..])]).is_err());
    }
}

#[test]
fn a_truncated_layer_fails_by_itself() {
    use std::os::unix::fs::PermissionsExt as _;
    let flattened = flatten(&torture());
    let disk = FlatDisk::open(&flattened.flat).unwrap();
    let (start, layer) = &flattened.flat.layers[1];
    fs::set_permissions(&layer.path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(&layer.path).unwrap().set_len(4096).unwrap();
    let mut buffer = [0; 4096];
    let mut read = |offset: u64| disk.read_at(offset, &[VolatileSlice::from(&mut buffer[..])]);
    assert!(read(*start).is_ok() && read(start + 4096).is_err() && read(flattened.flat.layers[2].0).is_ok());
    assert!(matches!(flattened.store.flat(&flattened.image), Err(StoreError::Size { .. })));
}

#[test]
fn flat_images_are_kept_and_go_with_their_image() {
    let Flattened { directory: _directory, store, image, flat } = flatten(&torture());
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let first = written(&flat.path);
    assert_eq!(store.flat(&image).unwrap(), flat);
    assert_eq!(written(&flat.path), first);
    let bytes = fs::read(&flat.path).unwrap();
    fs::remove_file(&flat.path).unwrap();
    store.flat(&image).unwrap();
    assert!(fs::read(&flat.path).unwrap() == bytes, "made of the same layers it has the same bytes");

    let disk = FlatDisk::open(&flat).unwrap();
    store.remove(&(&image.digest).into()).unwrap();
    let collect = |done: &dyn Fn() -> bool| {
        for _ in 0..200 {
            // What a child of another test holds it does not hold for long.
            let _ = store.collect();
            if done() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("{:?}", store.collect());
    };
    store.collect().ok();
    assert!(flat.path.exists() && image.layers.iter().all(|layer| store.layer(layer).is_ok()));
    drop(disk);
    collect(&|| fs::read_dir(store.path().join("flat")).unwrap().count() == 0);
}
