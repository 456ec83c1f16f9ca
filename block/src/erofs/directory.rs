//! Directory contents: entries sorted by name, packed into blocks that each stand alone.

use zerocopy::IntoBytes as _;
use zerocopy::little_endian::U16;

use super::format::{BLOCK_SIZE, Dirent};

/// Size in bytes of an entry without its name.
const ENTRY_SIZE: usize = size_of::<Dirent>();

/// One entry.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: u8,
}

/// Size in bytes of a directory with entries of these names, sorted, `.` and `..` among them.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut total = 0;
    let mut used = 0;
    for name in names {
        let entry = (ENTRY_SIZE + name.len()) as u64;
        if used + entry > BLOCK_SIZE {
            total += BLOCK_SIZE;
            used = 0;
        }
        used += entry;
    }
    total + used
}

/// Appends the contents of a directory. A block holds its entries, then their names, then zeros up to the next block.
#[allow(clippy::cast_possible_truncation, reason = "offsets lie within a block")]
pub(super) fn encode(mut entries: &[Entry<'_>], into: &mut Vec<u8>) {
    while !entries.is_empty() {
        let start = into.len();
        let mut used = 0;
        let fitting = entries
            .iter()
            .take_while(|entry| {
                used += ENTRY_SIZE + entry.name.len();
                used as u64 <= BLOCK_SIZE
            })
            .count();
        let (block, rest) = entries.split_at(fitting);
        let mut name_offset = fitting * ENTRY_SIZE;
        for entry in block {
            let dirent = Dirent {
                nid: entry.nid.into(),
                nameoff: U16::new(name_offset as u16),
                file_type: entry.file_type,
                reserved: 0,
            };
            into.extend(dirent.as_bytes());
            name_offset += entry.name.len();
        }
        block.iter().for_each(|entry| into.extend(entry.name));
        if !rest.is_empty() {
            into.resize(start + BLOCK_SIZE as usize, 0);
        }
        entries = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_what_encoding_takes() {
        for count in [2_usize, 3, 200, 1000] {
            for length in [1, 7, 254, 255] {
                let names: Vec<_> = (0..count).map(|i| format!("{i:0length$}").into_bytes()).collect();
                let entries: Vec<_> = names.iter().map(|name| Entry { name, nid: 1, file_type: 1 }).collect();
                let mut data = Vec::new();
                encode(&entries, &mut data);
                assert_eq!(data.len() as u64, size(names.iter().map(Vec::as_slice)), "{count} names of {length}");
            }
        }
    }
}
