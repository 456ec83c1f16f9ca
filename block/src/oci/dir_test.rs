use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::archive::Limits;
use crate::cancel::Cancel;
use crate::compression::Compression;
use crate::oci::{ImageSource, OciLayout};
use crate::testing::{Archive, LayoutBuilder};

/// The blobs of a layout as skopeo's `dir:` has them, without the manifest.
fn copy(builder: &LayoutBuilder, to: &Path) {
    for blob in fs::read_dir(builder.path().join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), to.join(blob.file_name())).unwrap();
    }
    fs::write(to.join("version"), "Directory Transport Version: 1.1\n").unwrap();
}

fn blob(builder: &LayoutBuilder, descriptor: &Value) -> std::path::PathBuf {
    builder.blob_path(&serde_json::from_value(descriptor["digest"].clone()).unwrap())
}

fn open(path: &Path) -> Result<SourceImage, OciError> {
    let source = ImageSource::open(path, path, Limits::default(), &Cancel::default())?;
    assert!(matches!(source, ImageSource::Dir(_)));
    source.image(&"linux/amd64".parse().unwrap(), None)
}

#[test]
fn the_manifest_is_beside_the_blobs() {
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file("a", "a").finish(), Compression::Gzip);
    builder.layer(&Archive::new().file("b", "b").finish(), Compression::None);
    let (amd64, arm64) = (builder.manifest("amd64"), builder.manifest("arm64"));
    builder.index(std::slice::from_ref(&amd64));
    let expected = OciLayout::open(builder.path()).unwrap().image(&"linux/amd64".parse().unwrap(), None).unwrap();

    let place = tempfile::tempdir().unwrap();
    copy(&builder, place.path());
    fs::rename(blob(&builder, &amd64), place.path().join("manifest.json")).unwrap();
    let same = |image: SourceImage| {
        assert_eq!(image.digest, expected.digest);
        for (layer, expected) in image.layers.iter().zip(&expected.layers) {
            assert_eq!(layer.digests, expected.digests);
            layer.open().unwrap();
        }
    };
    same(open(place.path()).unwrap());
    fs::write(place.path().join("manifest.json"), "{}").unwrap();
    let message = open(place.path()).unwrap_err().to_string();
    assert!(message.contains("neither a manifest nor an index"), "{message}");

    // All platforms of an image: the manifests that its index lists have names of their own.
    let index = json!({"schemaVersion": 2, "manifests": [&arm64, &amd64]}).to_string();
    fs::write(place.path().join("manifest.json"), index).unwrap();
    for manifest in [&arm64, &amd64] {
        let hex = manifest["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let path = place.path().join(hex);
        if path.exists() {
            fs::rename(path, place.path().join(format!("{hex}.manifest.json"))).unwrap();
        }
    }
    same(open(place.path()).unwrap());
}
