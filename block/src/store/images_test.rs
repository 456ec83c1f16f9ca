use super::*;
use crate::compression::Compression;
use crate::store::ImportOptions;
use crate::stored_file::StoredFile;
use crate::testing::{Archive, LayoutBuilder};
use crate::{LayerDisk, OciLayout, oci::Platform};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

/// Imports an image of layers with one file each, called as the layer is.
fn import(store: &Store, layers: &[&str], name: Option<&str>) -> Image {
    let mut builder = LayoutBuilder::new();
    for layer in layers {
        builder.layer(&Archive::new().file(layer, *layer).finish(), Compression::None);
    }
    let builder = builder.finish();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let image = OciLayout::open(builder.path()).unwrap().image(&platform, None).unwrap();
    store.import(&image, name.map(|name| name.parse().unwrap()).as_ref(), &ImportOptions::default()).unwrap()
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// Collects until `done`: a child that another test is starting holds what this process has locked for a moment longer.
fn collect_until(store: &Store, done: impl Fn(&Collected) -> bool) -> Collected {
    for _ in 0..200 {
        match store.collect() {
            Ok(collected) if done(&collected) => return collected,
            Ok(_) | Err(StoreError::Busy { .. }) => std::thread::sleep(std::time::Duration::from_millis(20)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{:?}", store.collect());
}

fn collect(store: &Store) -> Collected {
    collect_until(store, |_| true)
}

#[test]
fn images_go_with_their_last_name() {
    let (_directory, store) = store();
    let image = import(&store, &["a", "b"], Some("one"));
    import(&store, &["a", "b"], Some("team/two:latest"));
    let other = import(&store, &["c"], None);
    let listed = store.images().unwrap();
    assert_eq!(listed.len(), 2);
    let named = listed.iter().find(|named| named.image == image).unwrap();
    assert_eq!(named.names, [name("one"), name("team/two:latest")]);

    assert!(!store.remove(&name("team/two:latest")).unwrap());
    assert!(matches!(store.remove(&name("team/two:latest")), Err(StoreError::NoImage { .. })));
    assert!(store.image(&ImageName::from(&image.digest)).is_ok());
    assert!(store.remove(&name("one")).unwrap());
    assert!(store.image(&ImageName::from(&image.digest)).is_err());

    import(&store, &["a", "b"], Some("one"));
    assert!(store.remove(&ImageName::from(&image.digest)).unwrap());
    assert!(store.image(&name("one")).is_err());
    assert_eq!(store.images().unwrap(), [NamedImage { image: other, names: Vec::new() }]);
}

#[test]
fn layers_go_when_no_image_has_them() {
    let (directory, store) = store();
    let image = import(&store, &["shared", "a"], Some("a"));
    let other = import(&store, &["shared", "b"], Some("b"));
    assert_eq!(collect(&store), Collected::default());
    store.remove(&name("a")).unwrap();
    let bytes = store.layer(&image.layers[1]).unwrap().bytes;
    // Leftovers of a crash: in tmp, a file without a record, a record without a file.
    let orphans = ["x", "y"].map(|text| Digest::of(text.as_bytes()));
    fs::write(store.tmp().join("half"), "half").unwrap();
    fs::write(store.layer_path(&orphans[0]), "file").unwrap();
    fs::write(store.record_path(&orphans[1]), "{}").unwrap();
    let collected = collect(&store);
    let mut expected = vec![image.layers[1], orphans[0], orphans[1]];
    expected.sort();
    assert_eq!(collected, Collected { layers: expected, in_use: Vec::new(), bytes: bytes + 4 });
    assert!(other.layers.iter().all(|layer| store.verify(layer).is_ok()));
    assert!(matches!(store.layer(&image.layers[1]), Err(StoreError::NoLayer { .. })));
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 4);
    assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
}

#[test]
fn layers_in_use_stay() {
    let (_directory, store) = store();
    let image = import(&store, &["a"], None);
    let layer = store.layer(&image.layers[0]).unwrap();
    let disks = [LayerDisk::open(&layer).unwrap(), LayerDisk::open(&layer).unwrap()];
    store.remove(&ImageName::from(&image.digest)).unwrap();
    let in_use = Collected { in_use: image.layers.clone(), ..Collected::default() };
    assert_eq!(collect(&store), in_use);
    assert!(store.verify(&image.layers[0]).is_ok());
    // As before once all who use it are gone.
    let [first, second] = disks;
    drop(first);
    assert_eq!(collect(&store), in_use);
    drop(second);
    assert_eq!(collect_until(&store, |collected| !collected.layers.is_empty()).layers, image.layers);
    assert!(matches!(LayerDisk::open(&layer), Err(bellows_disk::DiskError::Open { .. })));
}

/// Whoever opens a layer while it is removed has it, or an error; never a file that is gone.
#[test]
fn opening_and_removing_at_the_same_time() {
    let (_directory, store) = store();
    for _ in 0..30 {
        let image = import(&store, &["a"], None);
        let layer: StoredFile = store.layer(&image.layers[0]).unwrap();
        store.remove(&ImageName::from(&image.digest)).unwrap();
        let (opened, collected) = std::thread::scope(|scope| {
            let opened = scope.spawn(|| LayerDisk::open(&layer));
            let collected = collect(&store);
            (opened.join().unwrap(), collected)
        });
        assert_eq!(opened.is_ok(), collected.layers.is_empty(), "{:?}", opened.err());
        drop(opened);
        collect(&store);
    }
}

#[test]
fn nothing_is_removed_while_an_import_runs() {
    let (_directory, store) = store();
    let lock = store.lock_for_import().unwrap();
    let message = store.collect().unwrap_err().to_string();
    assert!(message.contains("is running"), "{message}");
    drop(lock);
    collect(&store);
}

#[test]
fn details_of_a_layer() {
    let (_directory, store) = store();
    let image = import(&store, &["a"], None);
    let details = store.inspect(&image.layers[0]).unwrap();
    let data = fs::read(&details.layer.path).unwrap();
    assert_eq!((details.sha256, details.layer.bytes), (Digest::of(&data), data.len() as u64));
    assert!(!details.opaque_root);
}
