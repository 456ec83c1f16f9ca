use super::*;
use crate::compression::Compression;
use crate::oci::Platform;
use crate::read_set::PageRanges;
use crate::store::ImportOptions;
use crate::testing::{Archive, LayoutBuilder};
use crate::{ImageName, OciLayout};

fn image(store: &Store, file: &str) -> Image {
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file(file, file).finish(), Compression::None);
    let builder = builder.finish();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let image = OciLayout::open(builder.path()).unwrap().image(&platform, None).unwrap();
    store.import(&image, None, &ImportOptions::default()).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn read_set(files: &[Digest]) -> ReadSet {
    let mut read_set = ReadSet::default();
    for digest in files {
        read_set.insert(*digest, PageRanges::of([true, false, true, true]));
    }
    read_set
}

#[test]
fn a_profile_is_kept_for_an_image_and_goes_with_it() {
    let (_directory, store) = store();
    let (one, two) = (image(&store, "one"), image(&store, "two"));
    assert_eq!(store.read_set(&one), None);
    let known = read_set(&[one.layers[0], flat_digest(&one)]);
    let mut with_others = known.clone();
    with_others.extend(read_set(&[two.layers[0]]));
    store.keep_read_set(&one, &with_others).unwrap();
    assert_eq!((store.read_set(&one), store.read_set(&two)), (Some(known.clone()), None));
    let less = read_set(&one.layers);
    store.keep_read_set(&one, &less).unwrap();
    assert_eq!(store.read_set(&one), Some(less));
    assert!(Store::open(store.path()).is_ok());

    store.keep_read_set(&two, &read_set(&two.layers)).unwrap();
    store.remove(&ImageName::from(&one.digest)).unwrap();
    assert!(!store.read_set_path(&one.digest).exists());
    // As of a run that ended after its image was removed.
    store.keep_read_set(&one, &known).unwrap();
    store.collect().unwrap();
    assert!(!store.read_set_path(&one.digest).exists());
    assert!(store.read_set(&two).is_some());
}

#[test]
fn a_damaged_profile_is_none() {
    let (_directory, store) = store();
    let image = image(&store, "one");
    store.keep_read_set(&image, &read_set(&image.layers)).unwrap();
    let path = store.read_set_path(&image.digest);
    let digest = image.layers[0];
    let other = Digest::of(b"other");
    for bad in [
        String::new(),
        "{".into(),
        "[]".into(),
        "{\"x\": []}".into(),
        format!("{{\"{digest}\": [[0, 0]]}}"),
        format!("{{\"{digest}\": [[5, 1], [0, 1]]}}"),
        format!("{{\"{digest}\": [[0, 18446744073709551615]]}}"),
        format!("{{\"{other}\": [[0, 1]]}}"),
        " ".repeat(17 << 20),
    ] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bad).unwrap();
        assert_eq!(store.read_set(&image), None, "{:.100}", bad);
        assert!(store.load_read_set(&image).unwrap_err().to_string().contains(path.to_str().unwrap()), "{bad:.100}");
    }
    store.keep_read_set(&image, &read_set(&image.layers)).unwrap();
    assert_eq!(store.read_set(&image), Some(read_set(&image.layers)));
}
