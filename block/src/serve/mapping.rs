//! Files of the store as memory: read-only, and shared by all processes that map them.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bellows_disk::{DiskError, open_shared};
use bellows_memory::host::{Access, Area};

use crate::digest::Digest;
use crate::flat::FlatImage;
use crate::read_set::{PAGE_SIZE, PageRanges, ReadSet};
use crate::stored_file::StoredFile;

/// Mappings begin and end at multiples of this: a huge page, and the unit in which Linux adds device memory.
const ALIGNMENT: u64 = 2 << 20;
/// Size in bytes of a page's entry in `/proc/self/pagemap`.
const ENTRY: usize = 8;
/// The bit of an entry that is set for a page in the page table.
const PRESENT: u64 = 1 << 63;
/// Entries that are read at once.
const ENTRIES: u64 = 8192;
/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;

/// A layer, or the files of a flat image behind each other, as memory for a guest. Gaps and the space behind the end read as
/// zeros.
///
/// This process must not touch the memory itself: a page of a truncated file raises SIGBUS. The guest's accesses don't: the
/// hypervisor looks pages up in the kernel, which answers with an error. So this process uses nothing but the address.
#[derive(Debug)]
pub struct ImageMapping {
    area: Area,
    /// By position.
    parts: Vec<Part>,
}

/// A file in a mapping. It is locked against removal for as long as it is open.
#[derive(Debug)]
struct Part {
    start: u64,
    stored: StoredFile,
    file: File,
}

impl ImageMapping {
    /// Maps a layer's file.
    ///
    /// # Errors
    /// It is missing, not a regular file, of another size than recorded, or cannot be mapped.
    pub fn layer(layer: &StoredFile) -> Result<Self, DiskError> {
        Self::new(vec![(0, layer.clone())])
    }

    /// Maps a file that is not in a store. It has the digest of its path.
    ///
    /// # Errors
    /// It is missing, not a regular file, of no whole number of sectors, or cannot be mapped.
    pub fn file(path: &Path) -> Result<Self, DiskError> {
        let opened = fs::metadata(path).map_err(|source| DiskError::Open { path: path.to_owned(), source });
        let bytes = opened?.len();
        Self::layer(&StoredFile { digest: Digest::of(path.as_os_str().as_bytes()), path: path.to_owned(), bytes })
    }

    /// Maps all files of a flat image.
    ///
    /// # Errors
    /// As [`ImageMapping::layer`], for each of them.
    pub fn flat(image: &FlatImage) -> Result<Self, DiskError> {
        Self::new(image.files())
    }

    fn new(files: Vec<(u64, StoredFile)>) -> Result<Self, DiskError> {
        let end = files.iter().map(|(start, stored)| start.saturating_add(stored.bytes)).max().unwrap_or(0);
        let bytes = end.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| usize::try_from(bytes).ok());
        let too_large = || DiskError::Reserve { bytes: end, source: io::ErrorKind::FileTooLarge.into() };
        let open = |(start, stored): (u64, StoredFile)| {
            Ok(Part { start, file: open_shared(&stored.path, stored.bytes)?, stored })
        };
        let parts = files.into_iter().map(open).collect::<Result<Vec<_>, DiskError>>()?;
        let bytes = bytes.ok_or_else(too_large)?;
        let reserved = |source| DiskError::Reserve { bytes: bytes as u64, source };
        let area = Area::reserve(bytes, Access::Read).map_err(reserved)?;
        for Part { start, stored, file } in &parts {
            let failed = |source| DiskError::Map { path: stored.path.clone(), source };
            let range = range(*start, stored.bytes).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
            area.map_file(range, file).map_err(failed)?;
        }
        area.keep_private().map_err(reserved)?;
        Ok(Self { area, parts })
    }

    /// Host virtual address of the first byte, a multiple of 2 MiB. Mapped for as long as `self` lives.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.area.address()
    }

    /// Length in bytes, a multiple of 2 MiB.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.area.bytes() as u64
    }

    /// The file that holds the byte at `offset`.
    #[must_use]
    pub fn file_at(&self, offset: u64) -> Option<&StoredFile> {
        let part = &self.parts[..self.parts.partition_point(|part| part.start <= offset)].last()?;
        (offset - part.start < part.stored.bytes.next_multiple_of(PAGE_SIZE)).then_some(&part.stored)
    }

    /// A file that is shorter than when it was mapped, or whose size cannot be read any more.
    #[must_use]
    pub fn cut_short(&self) -> Option<&StoredFile> {
        let is_short = |part: &&Part| part.file.metadata().map_or(true, |found| found.len() < part.stored.bytes);
        self.parts.iter().find(is_short).map(|part| &part.stored)
    }

    /// A file whose medium gives not all of it any more. This reads all files, up to that one.
    #[must_use]
    pub fn unreadable(&self) -> Option<&StoredFile> {
        let mut buffer = vec![0; PIECE];
        let mut fails = |part: &&Part| {
            let bytes = part.stored.bytes;
            (0..bytes).step_by(PIECE).any(|start| {
                // A piece that cannot be read to its end is short, and no error.
                let piece = &mut buffer[..PIECE.min((bytes - start) as usize)];
                part.file.read_exact_at(piece, start).is_err()
            })
        };
        self.parts.iter().find(|part| fails(part)).map(|part| &part.stored)
    }

    /// The pages of its files that the guest can reach without a fault by now: those that it touched, and neighbours that were in
    /// the page cache then (Linux maps up to 16 pages around a fault, aligned, without reading any for that). The hypervisor
    /// looks a guest's pages up in this process's page table, so that table has them.
    ///
    /// # Errors
    /// `/proc/self/pagemap` cannot be read.
    pub fn read_set(&self) -> io::Result<ReadSet> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut read_set = ReadSet::default();
        for Part { start, stored, .. } in &self.parts {
            let first = (self.address() + start) / PAGE_SIZE;
            let present = present(&pagemap, first..first + stored.bytes.div_ceil(PAGE_SIZE))?;
            read_set.insert(stored.digest, PageRanges::of(present));
        }
        Ok(read_set)
    }
}

/// The addresses of `bytes` at `start`.
fn range(start: u64, bytes: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(bytes)?).ok()?)
}

/// For each of these pages of this process's address space, whether its page table has it (Linux, `admin-guide/mm/pagemap.rst`).
fn present(pagemap: &File, pages: Range<u64>) -> io::Result<Vec<bool>> {
    let mut flags = Vec::new();
    let mut entries = Vec::new();
    for first in pages.clone().step_by(ENTRIES as usize) {
        let count = ENTRIES.min(pages.end - first) as usize;
        entries.resize(count * ENTRY, 0);
        pagemap.read_exact_at(&mut entries, first * ENTRY as u64)?;
        let entries = entries.chunks_exact(ENTRY).filter_map(|entry| Some(u64::from_ne_bytes(entry.try_into().ok()?)));
        flags.extend(entries.map(|entry| entry & PRESENT != 0));
    }
    Ok(flags)
}

#[cfg(test)]
#[path = "mapping_test.rs"]
mod tests;
