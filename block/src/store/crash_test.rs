//! Imports that are killed at any moment.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::compression::Compression;
use crate::oci::{OciLayout, Platform, SourceImage};
use crate::testing::{Archive, LayoutBuilder, check_with_fsck};

/// The child's work, as `layout` and `store`.
const WORK: [&str; 2] = ["BELLOWS_TEST_CRASH_LAYOUT", "BELLOWS_TEST_CRASH_STORE"];
/// How often the test kills; a few times by default.
const KILLS: &str = "BELLOWS_TEST_KILLS";

fn image(layout: &Path) -> SourceImage {
    let platform: Platform = "linux/amd64".parse().unwrap();
    OciLayout::open(layout).unwrap().image(&platform, None).unwrap()
}

fn import(layout: &Path, store: &Path) -> Image {
    let options = ImportOptions::default();
    Store::open(store).unwrap().import(&image(layout), Some(&"name".parse().unwrap()), &options).unwrap()
}

/// Not a test by itself: what the next one starts and kills.
#[test]
fn an_import_to_be_killed() {
    if let [Some(layout), Some(store)] = WORK.map(std::env::var_os) {
        import(Path::new(&layout), Path::new(&store));
    }
}

fn layout() -> LayoutBuilder {
    let mut builder = LayoutBuilder::new();
    for n in 0..6_u8 {
        let data: Vec<_> = (0..400_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n).collect();
        let archive = (0..20).fold(Archive::new(), |archive, i| archive.file(format!("layer{n}/{i}"), &data[i..]));
        builder.layer(&archive.finish(), Compression::Zstd);
    }
    builder.finish()
}

/// After each kill the store is one that an import has not begun, has gone a part of its way, or has ended.
#[test]
fn killed_imports_leave_a_valid_store() {
    let kills: u32 = std::env::var(KILLS).map_or(8, |text| text.parse().unwrap());
    let builder = layout();
    let expected = image(builder.path());
    let directory = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    let reference = import(builder.path(), &directory.path().join("reference"));
    let duration = start.elapsed() + Duration::from_millis(50);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut partly = 0;
    let mut path = directory.path().join("store0");
    for round in 0..kills {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "store::crash_tests::an_import_to_be_killed", "--quiet"]);
        child.env(WORK[0], builder.path()).env(WORK[1], &path).stdout(std::process::Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(duration * u32::try_from(seed >> 48).unwrap() / 0xffff);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() || status.signal() == Some(libc::SIGKILL), "{status}");

        if path.exists() && path.join("format").exists() {
            let store = Store::open(&path).unwrap();
            let mut present = 0;
            for layer in &expected.layers {
                match store.verify(&layer.digests.diff_id.unwrap()) {
                    Ok(layer) => {
                        check_with_fsck(&layer.path);
                        present += 1;
                    }
                    Err(StoreError::NoLayer { .. }) => {}
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
            partly += usize::from((1..expected.layers.len()).contains(&present));
            for named in store.images().unwrap() {
                assert_eq!((named.image, present), (reference.clone(), expected.layers.len()));
            }
        }
        // Every third one begins anew; the others go on where the killed one was.
        if round % 3 == 2 {
            assert_eq!(import(builder.path(), &path), reference);
            let store = Store::open(&path).unwrap();
            // A child that another test is starting may hold the lock for a moment longer.
            let collected = || !matches!(store.collect(), Err(StoreError::Busy { .. }));
            assert!((0..200).any(|_| collected() || {
                std::thread::sleep(Duration::from_millis(20));
                false
            }));
            assert!(reference.layers.iter().all(|layer| store.verify(layer).is_ok()));
            assert_eq!(std::fs::read_dir(path.join("tmp")).unwrap().count(), 0);
            path = directory.path().join(format!("store{round}-"));
        }
    }
    eprintln!("{kills} imports killed, {partly} of them between the first and the last layer");
}
