use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::erofs::{Directory, Metadata};
use crate::import::{ImportedLayer, LayerError, import_layer};
use crate::oci::Digests;
use crate::testing::compress;

/// An image of a directory that `script` fills, made by erofs-utils.
pub(crate) fn image(script: &str, options: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (root, path) = (directory.path().join("root"), directory.path().join("image"));
    std::fs::create_dir(&root).unwrap();
    let made = Command::new("sh").args(["-ec", script]).current_dir(&root).status().unwrap();
    assert!(made.success());
    let output = Command::new("mkfs.erofs").args(options).args([path.as_path(), &root]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(path).unwrap()
}

const SCRIPT: &str = "
    mkdir -p d/e; seq 50 | head -c 100 >small; seq 9000 | head -c 9000 >d/large; ln d/large d/e/again; ln -s ../small d/link
    for n in $(seq 500); do : >d/e/a-file-with-a-rather-long-name-$n; done; : >empty; head -c 8192 /dev/zero >whole; mkfifo fifo";
const PLAIN: &str = "-Enoinline_data";

fn import(blob: &[u8]) -> Result<(ImportedLayer, tempfile::NamedTempFile), LayerError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let digests = Digests { blob: Some(Digest::of(blob)), diff_id: None };
    import_layer(blob, digests, Limits::default(), file.as_file()).map(|layer| (layer, file))
}

fn refused(blob: &[u8]) -> String {
    let Err(error) = import(blob) else { panic!("it was imported") };
    let sources = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn images_are_taken_as_they_are() {
    for options in [&[PLAIN][..], &[], &["--chunksize=4096", PLAIN]] {
        let image = image(SCRIPT, options);
        for blob in [image.clone(), compress(&image, crate::compression::Compression::Zstd)] {
            let (layer, file) = import(&blob).unwrap();
            assert_eq!((layer.diff_id, layer.bytes, layer.native), (Digest::of(&image), image.len() as u64, true));
            assert!(std::fs::read(file.path()).unwrap() == image);
        }
    }
}

#[test]
fn all_of_their_files_are_found() {
    for (options, tails) in [(&[PLAIN][..], false), (&[], true), (&["--chunksize=4096", PLAIN], false)] {
        let (_, file) = import(&image(SCRIPT, options)).unwrap();
        let tree = read_layer(file.as_file(), Origin::Native, 1).unwrap().tree;
        assert_eq!(inlined(&tree).is_some(), tails, "{options:?}");
        let find = |path: &str| tree.lookup(path.split('/').map(str::as_bytes)).unwrap();
        assert_eq!(find("d/large"), find("d/e/again"));
        assert_eq!(tree.directory(find("d/e")).unwrap().entries.len(), 501);
        assert_eq!(*tree.content(find("d/link")), Content::Symlink(b"../small"[..].into()));
        let Content::File(data) = tree.content(find("d/large")) else { panic!("no file") };
        let (map, mut reader) = crate::erofs::DataReader::new(file.as_file(), data).unwrap();
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!((map.bytes(), read.len()), (9000, 9000));
        let extracted = tempfile::tempdir().unwrap();
        let into = format!("--extract={}", extracted.path().join("out").display());
        assert!(Command::new("fsck.erofs").args([into.as_str()]).arg(file.path()).status().unwrap().success());
        assert!(std::fs::read(extracted.path().join("out/d/large")).unwrap() == read);
    }
}

#[test]
fn what_cant_be_taken_is_refused_with_the_reason() {
    let good = image(SCRIPT, &[PLAIN]);
    let with = |offset: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        // Without its checksum, so that what is wrong is found.
        image[1024 + 8] &= !1;
        image
    };
    let mut damaged = good.clone();
    damaged[1024 + 50] ^= 1;
    for (blob, words) in [
        (damaged, "checksum"),
        (with(1024 + 12, &[13]), "blocks of another size"),
        (with(1024 + 80, &[0x10]), "features that layers can't have"),
        (with(1024 + 80, &[0x08]), "features that layers can't have"),
        (with(1024 + 36, &u32::MAX.to_le_bytes()), "more blocks than there are"),
        (with(1024 + 14, &[0xff, 0xff]), "inode 65535 has an invalid"),
        (image(&format!("{SCRIPT}; yes | head -c 500000 >packed"), &["-zlz4hc", PLAIN]), "compress"),
        (good[..good.len() - 4096].to_vec(), "more blocks than there are"),
    ] {
        let error = refused(&blob);
        assert!(error.starts_with("the layer is an EROFS image") && error.contains(words), "{error}");
    }
}

#[test]
fn instructions_to_overlayfs_are_refused() {
    let with = |name: &[u8], value: &[u8], content: Content| {
        let mut tree = Tree::default();
        let id = tree.add(Metadata::default(), content);
        tree.metadata_mut(id).xattrs.insert(XattrName::new(name).unwrap(), value.to_vec());
        check(&tree).map_err(|problem| problem.to_string())
    };
    let directory = || Content::Directory(Directory::default());
    for name in ["redirect", "metacopy", "whiteouts", "whiteout"] {
        let name = format!("trusted.overlay.{name}");
        let problem = with(name.as_bytes(), b"/etc", directory()).unwrap_err();
        assert!(problem.contains(&name) && problem.contains("instructions"), "{problem}");
    }
    // A marker hides a directory below, in overlayfs's own words, and has one value.
    assert_eq!(with(b"trusted.overlay.opaque", b"y", directory()), Ok(()));
    assert!(with(b"trusted.overlay.opaque", b"x", directory()).is_err());
    assert!(with(b"trusted.overlay.opaque", b"y", Content::Fifo).is_err());
    for harmless in [&b"trusted.overlay.impure"[..], b"trusted.overlay.origin", b"user.overlay.redirect"] {
        assert_eq!(with(harmless, b"y", directory()), Ok(()));
    }
}

#[test]
fn an_archive_stays_an_archive() {
    let archive = crate::testing::Archive::new().file("x", vec![0; 600]).finish();
    let mut archive = archive;
    // In the data of its first file.
    archive[1024..1028].copy_from_slice(&MAGIC);
    assert!(!import(&archive).unwrap().0.native);
    assert!(!is_native(&archive) && is_native(&[&[0; 1024][..], &MAGIC].concat()) && !is_native(&[0; 1027]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Damage gives errors or other trees, and nothing else.
    #[test]
    fn damaged_images_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..60)) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = GOOD.get_or_init(|| image(SCRIPT, &[])).clone();
        bytes[1024 + 8] &= !1;
        let start = 1024 + 13;
        let length = bytes.len() - start;
        for (index, value) in changes {
            bytes[start + index.index(length)] = value;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        if let Ok(layer) = read_layer(&file, Origin::Native, 1) {
            let _ = crate::flat::unpack(&[layer], &[0]);
        }
    }
}
