//! Reads a file's data out of an image.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use super::format::BLOCK_SIZE;
use super::sparse::SparseMap;
use super::tree::{Blocks, FileData};

/// The data of a file in an image, without its holes.
pub struct DataReader<'a> {
    image: &'a File,
    /// Offset in the image and length of each piece; the next one last.
    pieces: Vec<(u64, u64)>,
}

impl<'a> DataReader<'a> {
    /// Reads `data` from its `image`; also returns where it has holes. `None` if `data` contradicts itself.
    #[must_use]
    pub fn new(image: &'a File, data: &FileData) -> Option<(SparseMap, Self)> {
        let at = |block: u32| u64::from(block) * BLOCK_SIZE;
        let mut segments = Vec::new();
        let mut pieces = Vec::new();
        match &data.blocks {
            Blocks::Contiguous(first) => {
                segments.push((0, data.bytes));
                pieces.push((at(*first), data.bytes));
            }
            Blocks::Tail { first, tail } => {
                let whole = data.bytes / BLOCK_SIZE * BLOCK_SIZE;
                segments.push((0, data.bytes));
                pieces.extend([(at(*first), whole), (*tail, data.bytes - whole)]);
            }
            Blocks::Chunks { bits, first } => {
                let chunk = BLOCK_SIZE << bits;
                for (index, block) in (0..).zip(first) {
                    let offset = chunk * index;
                    if let Some(block) = block {
                        let bytes = chunk.min(data.bytes.checked_sub(offset)?);
                        segments.push((offset, bytes));
                        pieces.push((at(*block), bytes));
                    }
                }
            }
        }
        pieces.reverse();
        Some((SparseMap::new(data.bytes, segments)?, Self { image, pieces }))
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some((offset, bytes)) = self.pieces.pop() {
            if bytes == 0 {
                continue;
            }
            let most = usize::try_from(bytes).unwrap_or(usize::MAX).min(into.len());
            let count = self.image.read_at(&mut into[..most], offset)?;
            if count == 0 && !into.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pieces.push((offset + count as u64, bytes - count as u64));
            return Ok(count);
        }
        Ok(0)
    }
}
