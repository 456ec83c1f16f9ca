use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;

use super::*;
use crate::oci::{Compression, OciImage, OciLayout, Platform};
use crate::testing::{Archive, LayoutBuilder, Mount, check_with_fsck, snapshot};

fn open(builder: &LayoutBuilder) -> (OciLayout, OciImage) {
    let layout = OciLayout::open(builder.path()).unwrap();
    let platform = Platform { os: "linux".to_owned(), architecture: "amd64".to_owned() };
    let image = layout.image(&platform, None).unwrap();
    (layout, image)
}

fn twelve_layers() -> LayoutBuilder {
    let mut builder = LayoutBuilder::new();
    let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
    for (n, compression) in (0..12).zip(compressions.into_iter().cycle()) {
        builder.layer(&Archive::new().file(format!("file{n}"), vec![n; 10_000]).finish(), compression);
    }
    builder.finish()
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn leftovers(store: &Store) -> usize {
    fs::read_dir(store.tmp()).unwrap().count()
}

#[test]
fn an_image_of_twelve_layers() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("a/store")).unwrap();
    let (layout, image) = open(&builder);
    let mut reports = Vec::new();
    let stored = store.import(&layout, &image, Some(&name("twelve:latest")), &mut |p| reports.push(p)).unwrap();
    assert_eq!(stored.layers, image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
    assert_eq!(store.image(&name("twelve:latest")).unwrap(), stored);
    assert_eq!(store.image(&ImageName::from(&stored.digest)).unwrap(), stored);
    for (n, layer) in store.layers(&stored).unwrap().iter().enumerate() {
        check_with_fsck(&layer.path);
        assert_eq!(store.verify(&layer.digest).unwrap(), *layer);
        assert_eq!(fs::metadata(&layer.path).unwrap().permissions().mode() & 0o7777, 0o444);
        if let Some(mount) = Mount::new(&layer.path) {
            assert!(snapshot(mount.path()).contains_key(format!("file{n}").as_bytes()));
        }
    }
    let done = reports.iter().filter(|report| report.kind == ProgressKind::Done).count();
    assert_eq!((done, reports[0].layers, leftovers(&store)), (12, 12, 0));
    let last = reports.iter().rfind(|report| matches!(report.kind, ProgressKind::Reading { .. })).unwrap();
    let bytes = image.layers[11].bytes;
    assert_eq!((last.index, last.kind), (11, ProgressKind::Reading { bytes, total: bytes }));
}

/// Whiteouts do in the kernel's overlayfs what the image specification says.
#[test]
fn stacked_layers_hide_what_their_whiteouts_name() {
    let mut builder = LayoutBuilder::new();
    let base = ["a/file", "a/gone", "b/x", "b/y", "c/old", "d/old", "e"];
    let add = |archive: Archive, name: &&str| archive.file(*name, *name);
    builder.layer(&base.iter().fold(Archive::new(), add).finish(), Compression::Gzip);
    let changes = Archive::new()
        .file("a/.wh.gone", "")
        .file(".wh.b", "")
        .file("c/.wh..wh..opq", "")
        .file("c/new", "")
        .file(".wh.d", "")
        .file("d/new", "")
        .file("e", "changed");
    builder.layer(&changes.finish(), Compression::Zstd);
    builder.layer(&Archive::new().file("b/z", "").file("a/gone", "back").finish(), Compression::None);
    let builder = builder.finish();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (layout, image) = open(&builder);
    let stored = store.import(&layout, &image, None, &mut |_| {}).unwrap();
    let layers = store.layers(&stored).unwrap();
    let Some(mounts) = layers.iter().map(|layer| Mount::new(&layer.path)).collect::<Option<Vec<_>>>() else { return };
    let Some(overlay) = Mount::overlay(&mounts) else { return };
    let seen = snapshot(overlay.path());
    let files: Vec<_> = seen.iter().filter(|(_, node)| node.data.is_some()).map(|(name, _)| name.as_slice()).collect();
    assert_eq!(files, [&b"a/file"[..], b"a/gone", b"b/z", b"c/new", b"d/new", b"e"]);
    assert_eq!(seen[&b"a/gone"[..]].data, Some(LayerDigest::of(b"back")));
    assert_eq!(seen[&b"e"[..]].data, Some(LayerDigest::of(b"changed")));
}

#[test]
fn layers_that_are_there_are_not_read_again() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (layout, image) = open(&builder);
    let stored = store.import(&layout, &image, None, &mut |_| {}).unwrap();
    // Without its blobs nothing could be read.
    for layer in &image.layers {
        fs::remove_file(builder.blob_path(&layer.blob)).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    let mut present = 0;
    let again = store.import(&layout, &image, None, &mut |p| present += usize::from(p.kind == ProgressKind::Present));
    assert_eq!((again.unwrap(), present), (stored, 12));
}

#[test]
fn a_failed_import_leaves_no_image_and_can_be_repeated() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (layout, image) = open(&builder);
    let broken = builder.blob_path(&image.layers[7].blob);
    let good = fs::read(&broken).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&broken, bad).unwrap();
    let error = store.import(&layout, &image, Some(&name("x")), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains(&image.layers[7].blob.hex()), "{error}");
    assert!(matches!(store.image(&name("x")), Err(StoreError::NoImage { .. })));
    assert!(store.layer(&image.layers[6].diff_id).is_ok());
    assert!(matches!(store.layer(&image.layers[7].diff_id), Err(StoreError::NoLayer { .. })));
    assert_eq!(leftovers(&store), 0);

    // What a killed import leaves behind goes with the next one.
    fs::write(store.tmp().join("left"), "half").unwrap();
    fs::write(store.layer_path(&image.layers[7].diff_id), "a layer without a record").unwrap();
    fs::write(&broken, good).unwrap();
    store.import(&layout, &image, Some(&name("x")), &mut |_| {}).unwrap();
    assert!(image.layers.iter().all(|layer| store.verify(&layer.diff_id).is_ok()));
    assert_eq!(leftovers(&store), 0);
}

#[test]
fn imports_at_the_same_time() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (builder, path, barrier) = (&builder, &path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let store = Store::open(path).unwrap();
                let (layout, image) = open(builder);
                let name = name(&format!("image{n}"));
                let stored = store.import(&layout, &image, Some(&name), &mut |_| {}).unwrap();
                for digest in &stored.layers {
                    store.verify(digest).unwrap();
                }
                assert_eq!(store.image(&name).unwrap(), stored);
            });
        }
    });
    assert_eq!(leftovers(&Store::open(&path).unwrap()), 0);
}

#[test]
fn damage_is_found() {
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file("x", "x").finish(), Compression::None);
    let builder = builder.finish();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (layout, image) = open(&builder);
    let digest = store.import(&layout, &image, None, &mut |_| {}).unwrap().layers[0];
    let layer = store.layer(&digest).unwrap();

    fs::set_permissions(&layer.path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut data = fs::read(&layer.path).unwrap();
    data[5000] ^= 1;
    fs::write(&layer.path, &data).unwrap();
    let message = store.verify(&digest).unwrap_err().to_string();
    assert!(
        message.contains(&digest.to_string()) && message.contains(&LayerDigest::of(&data).to_string()),
        "{message}"
    );

    data.truncate(4096);
    fs::write(&layer.path, &data).unwrap();
    let message = store.layer(&digest).unwrap_err().to_string();
    assert!(message.contains("4096") && message.contains(&layer.bytes.to_string()), "{message}");

    // A layer that is there but damaged in size is imported again.
    store.import(&layout, &image, None, &mut |_| {}).unwrap();
    assert_eq!(store.verify(&digest).unwrap(), layer);

    fs::remove_file(store.record_path(&digest)).unwrap();
    fs::write(store.record_path(&digest), "{}").unwrap();
    assert!(store.layer(&digest).unwrap_err().to_string().contains(&digest.hex()));
}

#[test]
fn layers_below_an_opaque_root_are_left_out() {
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file("hidden", "").finish(), Compression::None);
    builder.layer(&Archive::new().file(".wh..wh..opq", "").finish(), Compression::None);
    builder.layer(&Archive::new().file("top", "").finish(), Compression::None);
    let builder = builder.finish();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (layout, image) = open(&builder);
    for _ in 0..2 {
        let stored = store.import(&layout, &image, None, &mut |_| {}).unwrap();
        assert_eq!(stored.layers, [image.layers[1].diff_id, image.layers[2].diff_id]);
    }
}

#[test]
fn other_directories_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("precious"), "").unwrap();
    let message = Store::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("not a layer store"), "{message}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("format"), "bellows layer store 2\n").unwrap();
    let message = Store::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("store 2") && message.contains("store 1"), "{message}");
}

#[test]
fn image_names_are_no_paths() {
    for good in ["a", "debian:bookworm", "docker.io/library/python:3.12-slim", "x@sha256:00"] {
        let name = name(good);
        assert!(!name.file_name().contains('/'), "{good}");
    }
    for bad in ["", ".", "..", "../x", ".hidden", "a b", "a\0", "a%b", "\u{e4}", &"x".repeat(201)] {
        let error = bad.parse::<ImageName>().unwrap_err();
        assert!(error.to_string().contains(bad.get(..1).unwrap_or("")), "{error}");
    }
}
