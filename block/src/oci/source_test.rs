use std::process::Command;

use super::*;
use crate::compression::Compression;
use crate::testing::{Archive, LayoutBuilder, compress};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, data: &[u8]) -> PathBuf {
        let path = self.directory.path().join("archive");
        fs::write(&path, data).unwrap();
        path
    }

    fn open(&self, data: &[u8]) -> Result<ImageSource, OciError> {
        ImageSource::open(&self.write(data), self.directory.path(), Limits::default(), &Cancel::default())
    }
}

fn host() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn layout() -> LayoutBuilder {
    let mut builder = LayoutBuilder::new();
    for (name, compression) in [("a", Compression::None), ("b", Compression::Gzip), ("c", Compression::Zstd)] {
        builder.layer(&Archive::new().file(name, vec![b'x'; 5000]).finish(), compression);
    }
    builder.finish()
}

/// The archive of a directory; in the order of `names`, which tools choose as they like.
fn tar(directory: &Path, names: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-c").args(names).current_dir(directory).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn content(layer: &SourceLayer) -> Vec<u8> {
    let (bytes, mut stream) = layer.open().unwrap();
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert_eq!(bytes, Some(data.len() as u64));
    data
}

#[test]
fn an_archive_of_a_layout_is_that_layout() {
    let builder = layout();
    let expected = OciLayout::open(builder.path()).unwrap().image(&host(), None).unwrap();
    let place = Place::new();
    for names in [&["blobs", "index.json", "oci-layout"][..], &["./oci-layout", "./index.json", "./blobs"], &["."]] {
        let archive = tar(builder.path(), names);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let source = place.open(&compress(&archive, compression)).unwrap();
            assert!(matches!(source, ImageSource::Layout(_)));
            let image = source.image(&host(), None).unwrap();
            assert_eq!((image.digest, &image.config), (expected.digest, &expected.config));
            for (layer, expected) in image.layers.iter().zip(&expected.layers) {
                assert_eq!(layer.digests, expected.digests);
                assert_eq!(content(layer), content(expected));
                assert!(layer.path().starts_with(place.directory.path().join("archive/blobs/sha256")));
            }
        }
    }
}

#[test]
fn damaged_archives_are_named() {
    let builder = layout();
    let place = Place::new();
    let archive = tar(builder.path(), &["blobs", "index.json", "oci-layout"]);
    let message = |data: &[u8]| {
        let error = place.open(data).and_then(|source| source.image(&host(), None)).unwrap_err();
        let sources = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    for cut in [archive.len() - 12_000, 3000, 513] {
        let message = message(&archive[..cut]);
        assert!(
            message.contains("archive") && message.contains(&cut.to_string()) || message.contains("at entry"),
            "{message}"
        );
    }
    let mut gzip = compress(&archive, Compression::Gzip);
    gzip.truncate(gzip.len() / 2);
    assert!(message(&gzip).contains("cannot unpack"), "{}", message(&gzip));
    let only_blobs = tar(builder.path(), &["blobs", "oci-layout"]);
    assert!(message(&only_blobs).contains("index.json"), "{}", message(&only_blobs));
    let up = Archive::new().file("oci-layout", "{}").file("index.json", "{}").file("../up", "").finish();
    assert!(message(&up).contains("`../up` has a name that leaves the image"), "{}", message(&up));
    assert!(message(&[b'x'; 2000]).contains("header at byte 0"));

    // What is to be unpacked beside the store is bounded as a layer is.
    let bomb = Archive::new().file("oci-layout", vec![0; 8 << 20]).finish();
    let path = place.write(&compress(&bomb, Compression::Gzip));
    let limits = Limits { unpacked_bytes: 1 << 20, ..Limits::default() };
    let error = ImageSource::open(&path, place.directory.path(), limits, &Cancel::default()).unwrap_err();
    assert!(matches!(error, OciError::Archive { .. }));
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 1);
}

#[test]
fn everything_else_is_a_root_file_system() {
    let place = Place::new();
    let plain = Archive::new().directory("./").directory("./bin").file("./bin/sh", "").finish();
    for data in [plain, Archive::new().finish()] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let source = place.open(&compress(&data, compression)).unwrap();
            assert!(matches!(source, ImageSource::RootFs(_)));
            let image = source.image(&"linux/riscv64".parse().unwrap(), None).unwrap();
            assert_eq!((image.digest, image.layers.len()), (None, 1));
        }
    }
    let directory = place.directory.path().join("directory");
    fs::create_dir(&directory).unwrap();
    let open = || ImageSource::open(&directory, &directory, Limits::default(), &Cancel::default());
    assert!(matches!(open().unwrap(), ImageSource::RootFs(_)));
}

#[test]
fn opening_can_be_cancelled() {
    let builder = layout();
    let place = Place::new();
    let path = place.write(&compress(&tar(builder.path(), &["blobs", "oci-layout"]), Compression::Gzip));
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(ImageSource::open(&path, place.directory.path(), Limits::default(), &cancel).is_err());
}
