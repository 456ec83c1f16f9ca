//! What the fuzz targets do with one input, and what they share. `libfuzzer/` runs them with libFuzzer; `tests/corpora.rs` tries what
//! it has found before.

// A target panics where something does not hold.
#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod agent_answers;
pub mod agent_requests;
pub mod configuration;
pub mod erofs_reader;
pub mod image_archive;
pub mod layer_archive;
pub mod pci_config;
pub mod registry_answers;
pub mod virtio_balloon;
pub mod virtio_blk;
pub mod virtio_mem;
pub mod virtio_net;
pub mod virtio_pci;
pub mod virtio_pmem;
pub mod vsock;

use std::error::Error;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use bellows_block::Digest;
use nix::sched::{CloneFlags, unshare};

/// Takes numbers off the front of what the fuzzer made; zeros once it is used up.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Starts at the front of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether all was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next number.
    pub fn byte(&mut self) -> u8 {
        self.number::<1>()[0]
    }

    /// The next number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    /// The next number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    /// The next number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.bytes(N);
        let mut number = [0; N];
        number[..taken.len()].copy_from_slice(taken);
        number
    }
}

/// A file in memory, for code that reads or writes one: emptied and filled anew for each input.
pub struct Scratch(File);

impl Scratch {
    /// An empty one.
    ///
    /// # Panics
    /// The host is out of memory.
    pub fn new() -> Self {
        Self(tempfile::tempfile_in("/dev/shm").expect("a file in memory"))
    }

    /// The file, with `content` and nothing else in it.
    ///
    /// # Panics
    /// The host is out of memory.
    pub fn holding(&mut self, content: &[u8]) -> &File {
        self.0.set_len(0).and_then(|()| self.0.rewind()).expect("an empty file");
        self.0.write_all(content).expect("room in memory");
        &self.0
    }

    /// A name of it, for as long as it lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Longest message of an error with all its causes, in characters: some words of ours, some excerpts of what was wrong, and URLs.
const MAX_MESSAGE: usize = 4096;

/// Checks an error's message and those of its causes.
///
/// # Panics
/// They are long or not printable.
pub fn check_error(error: &(dyn Error + 'static)) {
    let errors = std::iter::successors(Some(error), |error| Error::source(*error));
    check_message(&errors.map(ToString::to_string).collect::<Vec<_>>().join(": "));
}

/// Checks what is said of something that went wrong.
///
/// # Panics
/// It is long or not printable.
pub fn check_message(message: &str) {
    assert!(message.chars().count() <= MAX_MESSAGE, "{} bytes: {message}", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

/// Gives this thread, and those that it starts, a network of their own with nothing but a loopback.
///
/// # Panics
/// The system does not allow that.
pub fn isolate() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which takes CAP_SYS_ADMIN");
    bellows_agent::settings::bring_up_loopback().expect("a loopback");
}

/// `text` with `@n` replaced by the digest of the document with that digit's number, and `#n` by its size.
pub fn filled<'a>(text: &[u8], document: impl Fn(usize) -> Option<&'a [u8]>) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        let named = |digit: &u8| document(usize::from(digit.wrapping_sub(b'0')));
        match (byte, rest.as_slice().first().and_then(named)) {
            (b'@', Some(content)) => filled.extend(Digest::of(content).hex().as_bytes()),
            (b'#', Some(content)) => filled.extend(content.len().to_string().as_bytes()),
            _ => {
                filled.push(*byte);
                continue;
            }
        }
        rest.next();
    }
    filled
}

/// Bytes of a tar archive's blocks.
const TAR_BLOCK: usize = 512;

/// Makes the checksum of each block right that looks like a tar header: it keeps accidents out, not authors.
pub fn sign_tar_headers(archive: &mut [u8]) {
    for block in archive.as_chunks_mut::<TAR_BLOCK>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Makes the checksum of an EROFS superblock right: CRC-32C of the first block behind its first KiB, without the checksum
/// itself (`erofs_superblock_csum_verify()` in Linux).
pub fn sign_erofs(image: &mut [u8]) {
    let Some(superblock) = image.get_mut(1024..4096) else { return };
    superblock[4..8].fill(0);
    let sum = superblock.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    superblock[4..8].copy_from_slice(&sum.to_le_bytes());
}
