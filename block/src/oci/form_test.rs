use std::collections::BTreeMap;

use super::*;
use crate::archive::{Limits, TarStream};
use crate::cancel::Cancel;
use crate::compression::Compression;
use crate::oci::ImageSource;
use crate::testing::{Archive, compress};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const INDEX_OF_IMAGES: &str = r#"{"schemaVersion": 2, "manifests": []}"#;
const IMAGES: &str = r#"[{"Config": "c.json", "Layers": []}]"#;
const IMAGE: &str = r#"{"schemaVersion": 2, "config": {}, "layers": []}"#;
const SKOPEO: &str = "Directory Transport Version: 1.1\n";

type Files<'a> = BTreeMap<String, &'a str>;

fn files<'a>(list: &[(&str, &'a str)]) -> Files<'a> {
    list.iter().map(|(name, data)| (name.replace("HEX", HEX), *data)).collect()
}

fn of_archive(files: &Files<'_>) -> Result<Form, OciError> {
    let data =
        files.iter().fold(Archive::new().directory("./"), |archive, (name, data)| archive.file(name, data)).finish();
    Form::of_archive(Path::new("place"), TarStream::new(&data[..]), |_| Ok(()))
}

fn of_directory(files: &Files<'_>) -> Result<Form, OciError> {
    let place = tempfile::tempdir().unwrap();
    for (name, data) in files {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    Form::of_directory(place.path())
}

#[test]
fn content_says_what_it_is() {
    for (list, expected) in [
        // Layouts, of which those of Docker 25 and later have both.
        (&[("oci-layout", "{}"), ("index.json", "{")][..], Form::Layout),
        (&[("oci-layout", "{}"), ("index.json", INDEX_OF_IMAGES), ("manifest.json", IMAGES)], Form::Layout),
        (&[("index.json", INDEX_OF_IMAGES)], Form::Layout),
        (&[("index.json", "{"), ("blobs/sha256/HEX", "")], Form::Layout),
        (&[("index.json", INDEX_OF_IMAGES), ("manifest.json", IMAGES), ("blobs/sha256/HEX", "")], Form::Docker),
        (&[("manifest.json", IMAGES)], Form::Docker),
        (&[("manifest.json", r#"[{"Layers": null}]"#), ("layers/a.tar", "")], Form::Docker),
        (&[("manifest.json", "[]"), ("sha256:HEX", "")], Form::Docker),
        (&[("manifest.json", "not JSON"), ("HEX/layer.tar", "")], Form::Docker),
        (&[("manifest.json", IMAGE), ("version", SKOPEO), ("HEX", "")], Form::Dir),
        (&[("manifest.json", IMAGE)], Form::Dir),
        (&[("manifest.json", INDEX_OF_IMAGES), ("HEX.manifest.json", "")], Form::Dir),
        (&[("manifest.json", "not JSON"), ("version", SKOPEO)], Form::Dir),
        // Applications have files of these names too, and directories of blobs.
        (&[], Form::RootFs),
        (&[("bin/sh", ""), ("etc/passwd", "")], Form::RootFs),
        (&[("manifest.json", r#"{"name": "App", "manifest_version": 3}"#), ("index.html", "")], Form::RootFs),
        (
            &[("manifest.json", r#"["a", {"b": 1}]"#), ("index.json", r#"{"entries": []}"#), ("version", "1.0")],
            Form::RootFs,
        ),
        (&[("manifest.json", "not JSON"), ("index.json", "neither"), ("repositories", "")], Form::RootFs),
        (&[("blobs/x", ""), ("blobs/sha256/readme", ""), ("usr/manifest.json", IMAGES)], Form::RootFs),
        (&[("srv/images/oci-layout", ""), ("srv/images/blobs/sha256/HEX", ""), ("srv/x", "")], Form::RootFs),
    ] {
        let files = files(list);
        assert_eq!(of_archive(&files).unwrap(), expected, "{files:?}");
        assert_eq!(of_directory(&files).unwrap(), expected, "{files:?}");
    }
}

#[test]
fn what_must_be_an_image_says_what_it_lacks() {
    for (list, words) in [
        (&[("oci-layout", "{}"), ("bin/sh", "")][..], &["`oci-layout`", "no `index.json`"][..]),
        (&[("blobs/sha256/HEX", "")], &["`blobs/sha256/0123", "no `index.json`"]),
        (&[("sha256:HEX", ""), ("HEX.tar.gz", "")], &[HEX, "no `manifest.json`"]),
        (&[("HEX/layer.tar", ""), ("HEX/json", "")], &[HEX, "no `manifest.json`"]),
        (&[("HEX/layer.tar", ""), ("repositories", "{}")], &["`repositories`", "Docker 1.10"]),
        (&[("version", SKOPEO)], &["`version`", "no `manifest.json`"]),
        (&[("layout/oci-layout", "{}"), ("layout/index.json", INDEX_OF_IMAGES)], &["below its directory `layout`"]),
        (&[("saved/manifest.json", IMAGES), ("saved/c.json", "")], &["below its directory `saved`"]),
        (&[("cut/HEX.tar.gz", "")], &["below its directory `cut`"]),
    ] {
        let files = files(list);
        for result in [of_archive(&files), of_directory(&files)] {
            let message = result.unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
        }
    }
}

/// Neither the order of entries, nor how their names are written, nor the compression decides.
#[test]
fn the_order_and_the_spelling_say_nothing() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("archive");
    let image = [
        ("a/", None),
        ("oci-layout", Some(r#"{"imageLayoutVersion": "1.0.0"}"#)),
        ("index.json", Some("{}")),
        ("b", Some("b")),
    ];
    for start in 0..image.len() {
        for prefix in ["", "./", "/", "x/../"] {
            let mut archive = Archive::new();
            for (name, data) in image[start..].iter().chain(&image[..start]) {
                let name = format!("{prefix}{name}");
                archive = match data {
                    Some(data) => archive.file(name, data),
                    None => archive.directory(name),
                };
            }
            let data = archive.finish();
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                fs::write(&path, compress(&data, compression)).unwrap();
                let source = ImageSource::open(&path, place.path(), Limits::default(), &Cancel::default()).unwrap();
                assert!(matches!(source, ImageSource::Layout(_)), "{start} {prefix} {compression:?}");
            }
        }
    }
}

#[test]
fn an_empty_file_is_no_archive() {
    let archive = |data: &[u8]| Form::of_archive(Path::new("place"), TarStream::new(data), |_| Ok(()));
    assert_eq!(archive(&[0; 1024]).unwrap(), Form::RootFs);
    assert_eq!(archive(b"").unwrap_err().to_string(), "`place` is empty");
}

#[test]
fn documents_that_are_too_large_are_not_read() {
    let large = " ".repeat(5 << 20);
    assert_eq!(of_archive(&files(&[("manifest.json", &large)])).unwrap(), Form::RootFs);
    assert_eq!(of_directory(&files(&[("index.json", &large), ("bin", "")])).unwrap(), Form::RootFs);
    assert_eq!(of_archive(&files(&[("manifest.json", &large), ("HEX.json", "")])).unwrap(), Form::Docker);
}
