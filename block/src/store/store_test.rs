use std::os::unix::fs::PermissionsExt as _;
use std::sync::Barrier;

use super::*;
use crate::cancel::Cancel;
use crate::compression::Compression;
use crate::oci::{OciLayout, Platform, SourceImage, SourceLayer};
use crate::testing::{Archive, LayoutBuilder, Mount, check_with_fsck, snapshot};

fn open(builder: &LayoutBuilder) -> SourceImage {
    OciLayout::open(builder.path()).unwrap().image(&"linux/amd64".parse::<Platform>().unwrap(), None).unwrap()
}

fn import(store: &Store, image: &SourceImage, name: Option<&ImageName>) -> Result<Image, StoreError> {
    store.import(image, name, &ImportOptions::default())
}

fn diff_id(layer: &SourceLayer) -> Digest {
    layer.digests.diff_id.unwrap()
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
    let image = open(&builder);
    let reports = std::sync::Mutex::new(Vec::new());
    let options = ImportOptions { progress: &|p| reports.lock().unwrap().push(p), ..ImportOptions::default() };
    let stored = store.import(&image, Some(&name("twelve:latest")), &options).unwrap();
    let reports = reports.into_inner().unwrap();
    assert_eq!(stored.layers, image.layers.iter().map(diff_id).collect::<Vec<_>>());
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
    for index in 0..12 {
        let of_layer =
            reports.iter().rfind(|report| report.index == index && matches!(report.kind, ProgressKind::Reading { .. }));
        let bytes = image.layers[index].open().unwrap().0.unwrap();
        assert_eq!(of_layer.unwrap().kind, ProgressKind::Reading { bytes, total: Some(bytes) });
    }
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
    let image = open(&builder);
    let stored = import(&store, &image, None).unwrap();
    let layers = store.layers(&stored).unwrap();
    let Some(mounts) = layers.iter().map(|layer| Mount::new(&layer.path)).collect::<Option<Vec<_>>>() else { return };
    let Some(overlay) = Mount::overlay(&mounts) else { return };
    let seen = snapshot(overlay.path());
    let files: Vec<_> = seen.iter().filter(|(_, node)| node.data.is_some()).map(|(name, _)| name.as_slice()).collect();
    assert_eq!(files, [&b"a/file"[..], b"a/gone", b"b/z", b"c/new", b"d/new", b"e"]);
    assert_eq!(seen[&b"a/gone"[..]].data, Some(Digest::of(b"back")));
    assert_eq!(seen[&b"e"[..]].data, Some(Digest::of(b"changed")));
}

#[test]
fn layers_that_are_there_are_not_read_again() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = open(&builder);
    let stored = import(&store, &image, None).unwrap();
    // Without its blobs nothing could be read.
    for layer in &image.layers {
        fs::remove_file(builder.blob_path(&layer.digests.blob.unwrap())).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    let present = std::sync::atomic::AtomicUsize::new(0);
    let progress = |p: Progress| {
        let _ = present.fetch_add((p.kind == ProgressKind::Present).into(), std::sync::atomic::Ordering::Relaxed);
    };
    let again = store.import(&image, None, &ImportOptions { progress: &progress, ..ImportOptions::default() });
    assert_eq!((again.unwrap(), present.into_inner()), (stored, 12));
}

#[test]
fn a_failed_import_leaves_no_image_and_can_be_repeated() {
    let builder = twelve_layers();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let image = open(&builder);
    let broken = builder.blob_path(&image.layers[7].digests.blob.unwrap());
    let good = fs::read(&broken).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&broken, bad).unwrap();
    // One after the other: a failure ends those beside it.
    let options = ImportOptions { threads: std::num::NonZero::<usize>::MIN, ..ImportOptions::default() };
    let error = store.import(&image, Some(&name("x")), &options).unwrap_err();
    assert!(error.to_string().contains(&image.layers[7].digests.blob.unwrap().hex()), "{error}");
    assert!(matches!(store.image(&name("x")), Err(StoreError::NoImage { .. })));
    assert!(store.layer(&diff_id(&image.layers[6])).is_ok());
    assert!(matches!(store.layer(&diff_id(&image.layers[7])), Err(StoreError::NoLayer { .. })));
    assert_eq!(leftovers(&store), 0);

    // What a killed import leaves behind goes with the next one.
    fs::write(store.tmp().join("left"), "half").unwrap();
    fs::write(store.layer_path(&diff_id(&image.layers[7])), "a layer without a record").unwrap();
    fs::write(&broken, good).unwrap();
    import(&store, &image, Some(&name("x"))).unwrap();
    assert!(image.layers.iter().all(|layer| store.verify(&diff_id(layer)).is_ok()));
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
                let image = open(builder);
                let name = name(&format!("image{n}"));
                let stored = import(&store, &image, Some(&name)).unwrap();
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
    let image = open(&builder);
    let digest = import(&store, &image, None).unwrap().layers[0];
    let layer = store.layer(&digest).unwrap();

    fs::set_permissions(&layer.path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut data = fs::read(&layer.path).unwrap();
    data[5000] ^= 1;
    fs::write(&layer.path, &data).unwrap();
    let message = store.verify(&digest).unwrap_err().to_string();
    assert!(message.contains(&digest.to_string()) && message.contains(&Digest::of(&data).to_string()), "{message}");

    data.truncate(4096);
    fs::write(&layer.path, &data).unwrap();
    let message = store.layer(&digest).unwrap_err().to_string();
    assert!(message.contains("4096") && message.contains(&layer.bytes.to_string()), "{message}");

    // A layer that is there but damaged in size is imported again.
    import(&store, &image, None).unwrap();
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
    let image = open(&builder);
    for _ in 0..2 {
        let stored = import(&store, &image, None).unwrap();
        assert_eq!(stored.layers, [diff_id(&image.layers[1]), diff_id(&image.layers[2])]);
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

#[test]
fn the_same_layer_twice_is_read_once() {
    let mut builder = LayoutBuilder::new();
    let archive = Archive::new().file("x", "x").finish();
    for compression in [Compression::None, Compression::Gzip, Compression::None] {
        builder.layer(&archive, compression);
    }
    let builder = builder.finish();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let done = std::sync::Mutex::new(0);
    let progress = |p: Progress| *done.lock().unwrap() += usize::from(p.kind == ProgressKind::Done);
    let options = ImportOptions { progress: &progress, ..ImportOptions::default() };
    let stored = store.import(&open(&builder), None, &options).unwrap();
    assert_eq!((stored.layers.len(), *done.lock().unwrap()), (3, 1));
}

#[test]
fn root_file_systems_are_images_of_one_layer() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bin")).unwrap();
    fs::write(root.path().join("bin/sh"), "shell").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let options = ImportOptions::default();
    let import = |path: &Path| {
        let source = store.open_source(path, &options).unwrap();
        store.import(&source.image(&Platform::host(), None).unwrap(), Some(&name("root")), &options).unwrap()
    };
    let image = import(root.path());
    assert_eq!(import(root.path()), image);
    assert_eq!(store.image(&name("root")).unwrap(), image);
    assert!(store.image(&ImageName::from(&image.digest)).is_ok());
    let layer = store.verify(&image.layers[0]).unwrap();
    let seen = crate::testing::read_independently(&layer.path, &[]);
    assert_eq!(seen[&b"bin/sh"[..]].data, Some(Digest::of(b"shell")));
    // The image of the archive is the same if the archive is.
    let archive = directory.path().join("tmp/archive");
    let mut file = File::create(&archive).unwrap();
    io::copy(&mut crate::archive::DirectoryArchive::new(root.path().to_owned(), None), &mut file).unwrap();
    assert_eq!(store.open_source(&archive, &options).unwrap().image(&Platform::host(), None).unwrap().layers.len(), 1);
}

#[test]
fn a_directory_is_imported_without_the_store_in_it() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("data/bin")).unwrap();
    fs::write(root.path().join("data/bin/sh"), "shell").unwrap();
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.path().join("data/store"), other.path().join("store")).unwrap();
    fs::create_dir(root.path().join("data/store")).unwrap();
    // Its name says nothing: here it is a link.
    let store = Store::open(other.path().join("store")).unwrap();
    let options = ImportOptions::default();
    let import = |path: &Path| {
        let source = store.open_source(path, &options)?;
        store.import(&source.image(&Platform::host(), None).unwrap(), None, &options)
    };
    let image = import(root.path()).unwrap();
    let seen = crate::testing::read_independently(&store.layer(&image.layers[0]).unwrap().path, &[]);
    let names: Vec<_> = seen.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["", "data", "data/bin", "data/bin/sh"]);
    assert_eq!(import(root.path()).unwrap(), image);
    for path in ["data/store", "data/bin/../store/images"] {
        let message = import(&root.path().join(path)).unwrap_err().to_string();
        assert!(message.contains(path) && message.contains("is in the layer store"), "{message}");
    }
}

/// Whatever moment it comes at: no image, no half layer, nothing left over; what was finished is not read again.
#[test]
fn a_cancelled_import_leaves_the_store_as_it_was_and_can_go_on() {
    let builder = twelve_layers();
    let image = open(&builder);
    let mut finished = 0;
    for moment in (0..60).step_by(7) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let cancel = Cancel::default();
        let reports = std::sync::atomic::AtomicUsize::new(0);
        let progress = |_: Progress| {
            if reports.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == moment {
                cancel.cancel();
            }
        };
        let options = ImportOptions { progress: &progress, cancel: cancel.clone(), ..ImportOptions::default() };
        let result = store.import(&image, Some(&name("x")), &options);
        assert!(matches!(result, Err(StoreError::Cancelled)), "{moment}: {result:?}");
        assert_eq!(leftovers(&store), 0);
        assert_eq!(fs::read_dir(directory.path().join("images")).unwrap().count(), 0);
        finished += image.layers.iter().filter(|layer| store.verify(&diff_id(layer)).is_ok()).count();
        import(&store, &image, Some(&name("x"))).unwrap();
    }
    assert!(finished > 0);
}
