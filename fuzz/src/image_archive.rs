//! The documents of an image: an archive of files with any names and contents, which may name each other by digest and size.
//! An image is found in it, or it is refused in a few printable words.

use std::cell::RefCell;
use std::io::Read as _;

use crate::{Input, Scratch, check_error, filled};
use bellows_block::archive::Limits;
use bellows_block::oci::ImageSource;
use bellows_block::{Cancel, Digest};

/// Names that mean something, with `@` for the digest of the file's own content.
const NAMES: [&str; 12] = [
    "blobs/sha256/@",
    "index.json",
    "oci-layout",
    "manifest.json",
    "./blobs/sha256/@",
    "sha256:@",
    "@.tar.gz",
    "@/layer.tar",
    "@.json",
    "repositories",
    "version",
    "etc/passwd",
];
const MAX_FILES: usize = 12;
/// What an archive may cost here.
const LIMITS: Limits = Limits { unpacked_bytes: 1 << 20, ratio: 200, entries: 100, metadata_bytes: 1 << 20 };

thread_local! {
    static ARCHIVE: RefCell<Scratch> = RefCell::default();
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while !input.is_empty() && files.len() < MAX_FILES {
        let name = NAMES[usize::from(input.byte()) % NAMES.len()];
        let length = usize::from(input.u16());
        let content = filled(input.bytes(length), |n| files.get(n).map(|(_, content)| content.as_slice()));
        files.push((name.replace('@', &Digest::of(&content).hex()), content));
    }
    ARCHIVE.with_borrow_mut(|file| {
        file.holding(&archive(&files));
        let platform = "linux/amd64".parse().expect("a platform");
        let source = ImageSource::open(&file.path(), "/dev/shm".as_ref(), LIMITS, &Cancel::default());
        let image = match source.and_then(|source| source.image(&platform, None)) {
            Ok(image) => image,
            Err(error) => return check_error(&error),
        };
        for layer in &image.layers {
            if let Ok((bytes, blob)) = layer.open() {
                let read = std::io::copy(&mut blob.take(LIMITS.unpacked_bytes), &mut std::io::sink());
                assert!(
                    bytes.is_none_or(|bytes| read.is_ok_and(|read| read == bytes)),
                    "a file in an archive has its length"
                );
            }
        }
    });
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_slice()).expect("a short name");
    }
    builder.into_inner().expect("room in memory")
}
