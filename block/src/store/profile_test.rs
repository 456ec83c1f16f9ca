use super::*;
use crate::compression::Compression;
use crate::oci::Platform;
use crate::profile::PageRanges;
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

fn profile(files: &[LayerDigest]) -> Profile {
    let mut profile = Profile::default();
    for digest in files {
        profile.insert(*digest, PageRanges::of([true, false, true, true]));
    }
    profile
}

#[test]
fn a_profile_is_kept_for_an_image_and_goes_with_it() {
    let (_directory, store) = store();
    let (one, two) = (image(&store, "one"), image(&store, "two"));
    assert_eq!(store.profile(&one), None);
    let known = profile(&[one.layers[0], flat_digest(&one)]);
    let mut with_others = known.clone();
    with_others.extend(profile(&[two.layers[0]]));
    store.keep_profile(&one, &with_others).unwrap();
    assert_eq!((store.profile(&one), store.profile(&two)), (Some(known.clone()), None));
    let less = profile(&one.layers);
    store.keep_profile(&one, &less).unwrap();
    assert_eq!(store.profile(&one), Some(less));
    assert!(Store::open(store.path()).is_ok());

    store.keep_profile(&two, &profile(&two.layers)).unwrap();
    store.remove(&ImageName::from(&one.digest)).unwrap();
    assert!(!store.profile_path(&one.digest).exists());
    // As of a run that ended after its image was removed.
    store.keep_profile(&one, &known).unwrap();
    store.collect().unwrap();
    assert!(!store.profile_path(&one.digest).exists());
    assert!(store.profile(&two).is_some());
}

#[test]
fn a_damaged_profile_is_none() {
    let (_directory, store) = store();
    let image = image(&store, "one");
    store.keep_profile(&image, &profile(&image.layers)).unwrap();
    let path = store.profile_path(&image.digest);
    let digest = image.layers[0];
    let other = LayerDigest::of(b"other");
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
        assert_eq!(store.profile(&image), None, "{:.100}", bad);
        assert!(store.read_profile(&image).unwrap_err().to_string().contains(path.to_str().unwrap()), "{bad:.100}");
    }
    store.keep_profile(&image, &profile(&image.layers)).unwrap();
    assert_eq!(store.profile(&image), Some(profile(&image.layers)));
}
