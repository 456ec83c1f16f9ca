//! Archives of layers, and images in a store of their own that are made of them.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_block::oci::{OciLayout, Platform, SourceLayer};
use bellows_block::testing::{Compression, LayoutBuilder};
use bellows_block::{Image, ImportOptions, Store};
use bellows_vmm::ImageConfig;
use flate2::read::GzDecoder;

use crate::fixture::{artefact, config_of};

/// An image in a store of its own.
pub struct Imported {
    _layout: LayoutBuilder,
    pub store: Store,
    pub image: Image,
}

impl Imported {
    pub fn config(&self) -> ImageConfig {
        config_of(&self.store, &self.image)
    }
}

/// An image of the archives, imported to a store of its own.
pub fn import(directory: &Path, archives: &[PathBuf]) -> Imported {
    let mut layout = LayoutBuilder::new();
    for archive in archives {
        layout.layer(&fs::read(archive).unwrap(), Compression::None);
    }
    let layout = layout.finish();
    let store = Store::open(directory.join("store")).unwrap();
    let opened = OciLayout::open(layout.path()).unwrap();
    let oci = opened.image(&Platform::host(), None).unwrap();
    let image = store.import(&oci, None, &ImportOptions::default()).unwrap();
    drop(opened);
    Imported { _layout: layout, store, image }
}

/// A directory on the disk that layers lie on.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(artefact("BELLOWS_IMAGE").parent().unwrap()).unwrap()
}

/// The layers of the image of busybox as plain archives, lowest first: a shell, and little to import.
pub fn small_archives(directory: &Path) -> Vec<PathBuf> {
    layout_archives(&artefact("BELLOWS_ALPINE_LIKE_IMAGE"), directory)
}

/// The same, and a layer with one file of `directory`.
pub fn above_small(directory: &Path, file: &str) -> Vec<PathBuf> {
    let archive = directory.join(file).with_extension("tar");
    tar(Command::new("tar").args(["-c", "-f"]).arg(&archive).arg(file), directory);
    let mut archives = small_archives(directory);
    archives.push(archive);
    archives
}

/// The layers of an image as plain archives in `directory`, lowest first.
pub fn layout_archives(layout: &Path, directory: &Path) -> Vec<PathBuf> {
    let layout = OciLayout::open(layout).unwrap();
    let image = layout.image(&Platform::host(), None).unwrap();
    let unpack = |(number, layer): (usize, &SourceLayer)| {
        let mut blob = Vec::new();
        layer.open().unwrap().1.read_to_end(&mut blob).unwrap();
        let mut reader: Box<dyn Read> = match blob[..2] {
            [0x1f, 0x8b] => Box::new(GzDecoder::new(&blob[..])),
            _ => Box::new(zstd::Decoder::new(&blob[..]).unwrap()),
        };
        let archive = directory.join(format!("layer-{number}.tar"));
        std::io::copy(&mut reader, &mut fs::File::create(&archive).unwrap()).unwrap();
        archive
    };
    image.layers.iter().enumerate().map(unpack).collect()
}

/// Runs GNU tar in a directory.
pub fn tar(command: &mut Command, directory: &Path) -> Vec<u8> {
    let output = command.current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Unpacks a layer over those below it as the OCI image specification says, with GNU tar.
pub fn unpack(archive: &Path, root: &Path) {
    let listing = tar(Command::new("tar").args(["-t", "--quoting-style=literal", "--null", "-f"]).arg(archive), root);
    for name in listing.split(|byte| *byte == b'\n') {
        let path = Path::new(OsStr::from_bytes(name));
        let Some(file_name) = path.file_name().map(OsStrExt::as_bytes) else { continue };
        let target = root.join(path);
        match file_name.strip_prefix(b".wh.") {
            Some(b".wh..opq") => {
                for entry in fs::read_dir(target.parent().unwrap()).unwrap() {
                    remove(&entry.unwrap().path());
                }
            }
            Some(hidden) => remove(&target.with_file_name(OsStr::from_bytes(hidden))),
            // tar merges directories and replaces everything else, but keeps a directory where it has a file.
            None if !name.ends_with(b"/") && target.symlink_metadata().is_ok_and(|found| found.is_dir()) => {
                remove(&target)
            }
            None => {}
        }
    }
    tar(
        Command::new("tar")
            .args(["-x", "-p", "--same-owner", "--numeric-owner", "--exclude=.wh.*"])
            .args(XATTRS)
            .arg("-f")
            .arg(archive),
        root,
    );
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Has GNU tar keep extended attributes.
pub const XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

/// Cuts a file of a store to so many bytes. Nobody may write to it, until its owner says otherwise.
pub fn cut_short(path: &Path, bytes: u64) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}
