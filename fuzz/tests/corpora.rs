//! The inputs that fuzzing has found worth keeping, each whole and cut short.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Into so many pieces an input is cut; it is tried without its last one, its last two, and so on.
const PIECES: usize = 4;

macro_rules! targets {
    ($($target:ident)*) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),*];

        $(#[test]
        fn $target() {
            replay(stringify!($target), bellows_fuzz::$target::run);
        })*
    };
}

targets! {
    agent_answers agent_requests configuration erofs_reader image_archive layer_archive pci_config registry_answers
    virtio_balloon virtio_blk virtio_mem virtio_net virtio_pci virtio_pmem vsock
}

fn replay(target: &str, run: fn(&[u8])) {
    if target == "registry_answers" {
        bellows_fuzz::isolate();
    }
    let inputs = fs::read_dir(corpora().join(target)).unwrap().map(|entry| entry.unwrap().path());
    for path in inputs {
        let input = fs::read(&path).unwrap();
        for pieces in (1..=PIECES).rev() {
            let tried = &input[..input.len() * pieces / PIECES];
            let _named = NamedInPanic { path: &path, bytes: tried.len() };
            run(tried);
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let mut folders: Vec<_> =
        fs::read_dir(corpora()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders, TARGETS);
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/Cargo.toml")).unwrap();
    let programs: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("path = \"targets/")).collect();
    assert_eq!(programs, TARGETS.iter().map(|target| format!("{target}.rs\"")).collect::<Vec<_>>());
}

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Says which input it was that something did not hold for.
struct NamedInPanic<'a> {
    path: &'a Path,
    bytes: usize,
}

impl Drop for NamedInPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is the first {} bytes of {}", self.bytes, self.path.display());
        }
    }
}
