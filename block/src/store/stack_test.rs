use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tar::EntryType;

use super::*;
use crate::compression::Compression;
use crate::flat::FlatImage;
use crate::oci::{OciLayout, Platform};
use crate::read_set::{PageRanges, ReadSet};
use crate::store::ImportOptions;
use crate::testing::{Archive, Entry, LayoutBuilder, LoopDevice, Mount, Node, check_with_fsck, difference, snapshot};

type Nodes = BTreeMap<Vec<u8>, Node>;

struct Imported {
    directory: tempfile::TempDir,
    store: Store,
    image: Image,
}

fn try_import(layers: impl IntoIterator<Item = Archive>) -> Result<Imported, StoreError> {
    let mut builder = LayoutBuilder::new();
    for layer in layers {
        builder.layer(&layer.finish(), Compression::None);
    }
    import_layout(builder)
}

fn import_layout(builder: LayoutBuilder) -> Result<Imported, StoreError> {
    let builder = builder.finish();
    let source =
        OciLayout::open(builder.path()).unwrap().image(&"linux/amd64".parse::<Platform>().unwrap(), None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("store")).unwrap();
    let image = store.import(&source, None, &ImportOptions::default())?;
    Ok(Imported { directory, store, image })
}

fn import(layers: impl IntoIterator<Item = Archive>) -> Imported {
    try_import(layers).unwrap()
}

/// All that is stacked.
fn files(store: &Store, image: &Image) -> Vec<StoredFile> {
    let Stack { layers, fixup } = store.stack(image).unwrap();
    layers.into_iter().chain(fixup).collect()
}

/// What overlayfs shows of a stack, where it can be asked.
fn stacked(stack: &[StoredFile]) -> Option<Nodes> {
    let mounts: Option<Vec<_>> = stack.iter().map(|layer| Mount::new(&layer.path)).collect();
    let mounts = mounts?;
    let overlay = Mount::overlay(&mounts)?;
    Some(snapshot(overlay.path()))
}

/// What a mount of a flat image shows, where it can be had.
fn mounted(flat: &FlatImage) -> Option<Nodes> {
    let devices: Option<Vec<_>> = flat.layers.iter().map(|(_, layer)| LoopDevice::new(&layer.path)).collect();
    let devices = devices?;
    let mount = Mount::with_devices(&flat.path, &devices.iter().collect::<Vec<_>>())?;
    Some(snapshot(mount.path()))
}

/// Layers whose names lead through links of others.
fn linked() -> [Archive; 4] {
    let sparse = Entry { data: vec![1; 700], ..Entry::new("lib/sparse", EntryType::Regular) };
    let sparse = sparse.pax("GNU.sparse.size", "90000").pax("GNU.sparse.map", "0,200,50000,500");
    let base = Archive::new()
        .add(Entry::new("usr/", EntryType::Directory).mode(0o711).owner(3, 4))
        .directory("usr/bin/")
        .file("usr/bin/sh", "shell")
        .file("usr/bin/gone", "gone")
        .symlink("bin", "usr/bin")
        .directory("usr/lib/")
        .symlink("lib", "/usr/lib")
        .directory("opaque/")
        .file("opaque/below", "");
    let upper = Archive::new()
        .file("bin/tool", vec![7; 10_000])
        .file("bin/.wh.gone", "")
        .add(sparse)
        .hard_link("opt/shell", "bin/sh")
        .directory("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/.wh.nothing", "");
    let top = Archive::new().symlink("tools", "bin").file("tools/more", "more").hard_link("tools/same", "lib/sparse");
    [base, upper, top, Archive::new().file("usr/share/doc", "")]
}

fn comparable(nodes: Nodes) -> Nodes {
    // Overlayfs counts links of files as their layer does, of directories not at all, and numbers inodes of several layers alike.
    nodes.into_iter().map(|(name, node)| (name.clone(), Node { links: 1, same_as: name, ..node })).collect()
}

#[test]
fn a_stack_and_a_flat_image_show_the_same() {
    let Imported { directory: _directory, store, image } = import(linked());
    let stack = files(&store, &image);
    assert_eq!(stack.len(), image.layers.len() + 1);
    let fixup = stack.last().unwrap();
    assert_eq!(store.fixup(&image).unwrap().as_ref(), Some(fixup));
    check_with_fsck(&fixup.path);
    assert_eq!(store.verify(&fixup.digest).unwrap(), *fixup);
    assert_eq!(fs::metadata(&fixup.path).unwrap().permissions().mode() & 0o7777, 0o444);
    // Files that are where they were are not copied.
    assert!(fixup.bytes < 60_000, "{}", fixup.bytes);

    let (Some(overlay), Some(flat)) = (stacked(&stack), mounted(&store.flat(&image).unwrap())) else { return };
    assert_eq!(difference(&comparable(flat.clone()), &comparable(overlay)), None);
    let node = |name: &str| &flat[name.as_bytes()];
    assert_eq!(node("usr/bin/tool").data, Some(Digest::of(&[7; 10_000])));
    assert_eq!((node("usr").mode & 0o7777, node("usr").uid), (0o711, 3));
    assert_eq!((&*node("usr/bin/sh").same_as, node("usr/lib/sparse").links), (&b"opt/shell"[..], 2));
    assert!(!flat.contains_key(&b"usr/bin/gone"[..]) && !flat.contains_key(&b"opaque/nothing"[..]));
}

/// Layers that are EROFS images, between archives.
#[test]
fn erofs_images_are_layers() {
    let base =
        Archive::new().symlink("bin", "usr/bin").directory("usr/bin/").file("usr/bin/sh", "").file("gone", "").finish();
    let top = Archive::new().file("bin/top", "").hard_link("again", "native/file").finish();
    let script = "mkdir native usr; seq 2000 >native/file; echo short >usr/short; mknod gone c 0 0";
    for (options, flat) in [(&["-Enoinline_data"][..], true), (&[], false)] {
        let native = crate::import::native_image(script, options);
        let mut builder = LayoutBuilder::new();
        builder.layer(&base, Compression::None);
        let blob = crate::testing::compress(&native, Compression::Zstd);
        builder.blob_layer(&blob, Digest::of(&native), "application/vnd.oci.image.layer.v1.tar+zstd");
        builder.layer(&top, Compression::None);
        let Imported { directory: _directory, store, image } = import_layout(builder).unwrap();
        let stack = files(&store, &image);
        assert!(fs::read(&stack[1].path).unwrap() == native && store.inspect(&stack[1].digest).is_ok());
        let stacked = stacked(&stack);
        if let Some(stacked) = &stacked {
            let names =
                ["again", "bin", "native", "native/file", "usr", "usr/bin", "usr/bin/sh", "usr/bin/top", "usr/short"];
            assert!(stacked.keys().skip(1).eq(names.iter().map(|name| name.as_bytes())), "{:?}", stacked.keys());
            assert_eq!(stacked[&b"native/file"[..]].data, stacked[&b"again"[..]].data);
        }
        match store.flat(&image) {
            Ok(made) => {
                assert!(flat);
                let Some((flat, stacked)) = mounted(&made).zip(stacked) else { continue };
                assert_eq!(difference(&comparable(flat), &comparable(stacked)), None);
            }
            Err(StoreError::NotFlat { layer }) => assert_eq!((flat, layer), (false, stack[1].digest)),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn a_stack_that_shows_it_all_has_no_fixup() {
    let layers = [
        Archive::new().directory("d/").file("d/a", ""),
        Archive::new().directory("d/").file("d/b", "").file("d/.wh.a", ""),
    ];
    let Imported { directory: _directory, store, image } = import(layers);
    assert_eq!(files(&store, &image).len(), 2);
    assert!(store.stack_path(&stack_digest(&image)).exists() && store.fixup(&image).unwrap().is_none());
}

/// The same layer below and above another.
#[test]
fn a_layer_may_come_several_times() {
    let a = || Archive::new().directory("d/").file("d/a", "a").file("x", "a");
    let b = || Archive::new().directory("d/").file("d/b", "b").file("d/.wh.a", "").file("x", "b");
    let hard = || Archive::new().hard_link("y", "x");
    for layers in [vec![a(), b(), a()], vec![a(), b(), a(), b()], vec![a(), hard(), b(), a()]] {
        let count = layers.len();
        let Imported { directory: _directory, store, image } = import(layers);
        assert_eq!(image.layers.len(), count);
        let stack = files(&store, &image);
        let flat = store.flat(&image).unwrap();
        let mut digests: Vec<_> = stack.iter().map(|layer| layer.digest).collect();
        assert!(flat.layers.iter().map(|(_, layer)| &layer.digest).eq(&digests[..flat.layers.len()]));
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), stack.len(), "each layer is there once");
        let Some(seen) = stacked(&stack) else { return };
        let last = if count == 4 && !seen.contains_key(&b"y"[..]) { b"b" } else { b"a" };
        assert_eq!(seen[&b"x"[..]].data, Some(Digest::of(last)));
        assert!(seen.contains_key(&b"d/b"[..]));
    }
}

#[test]
fn what_cant_be_put_together_is_no_image() {
    for (layers, words) in [
        (
            [Archive::new().file("a", ""), Archive::new().hard_link("l", "d/none")],
            "`l` is a hard link to `d/none`, which is not a file",
        ),
        (
            [Archive::new().file("a", ""), Archive::new().file("a/b", "")],
            "`a/b` lies below `a`, which is not a directory",
        ),
        ([Archive::new().symlink("a", "a"), Archive::new().file("a/.wh.b", "")], "`a/.wh.b` lies behind more than 40"),
        (
            [Archive::new().file("later", ""), Archive::new().hard_link("l", "d").directory("d/")],
            "`l` is a hard link to `d`",
        ),
    ] {
        let Err(error) = try_import(layers) else { panic!("imported: {words}") };
        let StoreError::Unpack { number: 2, layers: 2, ref source, .. } = error else { panic!("{error:?}") };
        assert!(source.to_string().contains(words), "{source}");
        assert!(error.to_string().ends_with("2 of 2 from below"), "{error}");
    }
}

#[test]
fn a_fixup_is_kept_made_again_and_goes_with_its_image() {
    let Imported { directory: _directory, store, image } = import(linked());
    let fixup = store.fixup(&image).unwrap().unwrap();
    let bytes = fs::read(&fixup.path).unwrap();
    fs::remove_file(store.record_path(&fixup.digest)).unwrap();
    assert!(store.fixup(&image).unwrap().is_none());
    store.stack(&image).unwrap();
    assert!(fs::read(&fixup.path).unwrap() == bytes, "made of the same layers it has the same bytes");
    fs::remove_file(store.stack_path(&fixup.digest)).unwrap();
    assert_eq!(store.stack(&image).unwrap().fixup.as_ref(), Some(&fixup));

    let mut profile = ReadSet::default();
    profile.insert(fixup.digest, PageRanges::of([true]));
    store.keep_read_set(&image, &profile).unwrap();
    assert_eq!(store.read_set(&image), Some(profile));

    assert!(store.collect().unwrap().layers.is_empty());
    store.remove(&(&image.digest).into()).unwrap();
    for _ in 0..200 {
        // What a child of another test holds it does not hold for long.
        let _ = store.collect();
        if !fixup.path.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!fixup.path.exists() && !store.stack_path(&fixup.digest).exists());
}
