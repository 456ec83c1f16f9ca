//! Files with holes, in the four ways that GNU tar has written them (GNU tar manual, "Storing Sparse Files"): in the header
//! and blocks behind it, or in PAX records of version 0.0, 0.1 or 1.0.

use std::io::{self, Read};

use super::header;
use crate::erofs::SparseMap;

/// Most segments of one file: their list is held in memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// What PAX records say about holes.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct PaxSparse {
    /// The file's own name; the header has a made-up one.
    pub name: Option<Vec<u8>>,
    pub major: u64,
    /// The file's length, holes included.
    size: Option<u64>,
    segments: Vec<(u64, u64)>,
    offset: Option<u64>,
    seen: bool,
}

impl PaxSparse {
    /// Whether the entry is a sparse file.
    pub fn is_sparse(&self) -> bool {
        self.seen
    }

    /// Takes a record `GNU.sparse.<keyword>`; `None` if its value is invalid.
    pub fn take(&mut self, keyword: &[u8], value: &[u8]) -> Option<()> {
        self.seen = true;
        match keyword {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = number(value)?,
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => self.push(self.offset?, number(value)?)?,
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    self.push(number(offset)?, number(numbers.next()?)?)?;
                }
            }
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Option<()> {
        (self.segments.len() < MAX_SEGMENTS).then(|| self.segments.push((offset, length)))
    }

    /// The map; in version 1.0 it stands at the start of the entry's data, which is `stored` bytes long in all.
    pub fn map(&mut self, data: &mut dyn Read, stored: u64) -> io::Result<Option<SparseMap>> {
        let Some(size) = self.size else { return Ok(None) };
        let mut listed = 0;
        if self.major == 1 {
            let mut lines = Lines { data, taken: 0, block: [0; 512], filled: 0 };
            let Some(count) = lines.number()?.and_then(|count| usize::try_from(count).ok()) else { return Ok(None) };
            if count > MAX_SEGMENTS {
                return Ok(None);
            }
            for _ in 0..count {
                let (Some(offset), Some(length)) = (lines.number()?, lines.number()?) else { return Ok(None) };
                self.segments.push((offset, length));
            }
            listed = lines.taken;
        }
        let map = SparseMap::new(size, std::mem::take(&mut self.segments));
        Ok(map.filter(|map| map.data_bytes().checked_add(listed) == Some(stored)))
    }
}

/// Decimal numbers, one a line, in whole blocks.
struct Lines<'a> {
    data: &'a mut dyn Read,
    /// Bytes of the blocks read.
    taken: u64,
    block: [u8; 512],
    /// Unread bytes at the end of `block`.
    filled: usize,
}

impl Lines<'_> {
    fn number(&mut self) -> io::Result<Option<u64>> {
        let mut value = 0_u64;
        for digits in 0..=20 {
            if self.filled == 0 {
                self.data.read_exact(&mut self.block)?;
                self.filled = self.block.len();
                self.taken += self.block.len() as u64;
            }
            let byte = self.block[self.block.len() - self.filled];
            self.filled -= 1;
            match byte {
                b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    let Some(next) = next else { return Ok(None) };
                    value = next;
                }
                b'\n' if digits > 0 => return Ok(Some(value)),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The map of the old format: four segments in the header, more in blocks behind it, which `next_block` reads.
pub(super) fn old_map<E>(
    header: &[u8; 512],
    stored: u64,
    mut next_block: impl FnMut() -> Result<[u8; 512], E>,
) -> Result<Option<SparseMap>, E> {
    let mut segments = Vec::new();
    let mut valid = take_segments(&header[386..482], &mut segments).is_some();
    let mut more = header[482] != 0;
    while more && valid && segments.len() < MAX_SEGMENTS {
        let block = next_block()?;
        valid = take_segments(&block[..504], &mut segments).is_some();
        more = block[504] != 0;
    }
    let map = field(&header[483..495]).and_then(|size| SparseMap::new(size, segments));
    Ok(map.filter(|map| valid && !more && map.data_bytes() == stored))
}

fn take_segments(fields: &[u8], segments: &mut Vec<(u64, u64)>) -> Option<()> {
    for segment in fields.chunks_exact(24) {
        if segment[0] == 0 {
            break;
        }
        segments.push((field(&segment[..12])?, field(&segment[12..])?));
    }
    Some(())
}

/// A number field of a header.
fn field(bytes: &[u8]) -> Option<u64> {
    header::number(bytes)?.try_into().ok()
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
