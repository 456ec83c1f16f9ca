//! The header of an ELF kernel, as far as it tells whether the file is whole and where it wants to be.

use std::ops::Range;

use super::error::ElfError;

/// What an ELF kernel says of itself.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ElfKernel {
    /// Physical address of its first instruction.
    pub entry: u64,
    /// Physical addresses it occupies, from the first to behind the last.
    pub range: Range<u64>,
    /// Length of the file that its segments need.
    pub file_bytes: u64,
}

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;

/// Reads the headers from the first bytes of a file: the ELF header, and the program headers that must follow within `head`.
pub(crate) fn parse(head: &[u8]) -> Result<ElfKernel, ElfError> {
    const X86_64: u16 = 62;
    const EXECUTABLE: u16 = 2;
    const LOAD: u32 = 1;
    let field = |at: usize, bytes: usize| number(head, at, bytes);
    if head.len() < HEADER_BYTES {
        return Err(ElfError::Short);
    }
    let (class, machine) = (head[4], field(18, 2)? as u16);
    if class != 2 || machine != X86_64 {
        return Err(ElfError::Machine { class, machine });
    }
    let kind = field(16, 2)? as u16;
    if kind != EXECUTABLE {
        return Err(ElfError::Type(kind));
    }
    let entry = field(24, 8)?;
    let table = usize::try_from(field(32, 8)?).map_err(|_| ElfError::Short)?;
    let count = field(56, 2)? as usize;

    let mut kernel = ElfKernel { entry, range: entry..entry, file_bytes: 0 };
    let mut entry_is_loaded = false;
    for at in (0..count).map(|index| table.saturating_add(index * PROGRAM_HEADER_BYTES)) {
        if field(at, 4)? as u32 != LOAD {
            continue;
        }
        let at_field = |offset: usize| field(at.saturating_add(offset), 8);
        let (offset, address, file_bytes, bytes) = (at_field(8)?, at_field(24)?, at_field(32)?, at_field(40)?);
        let file_end = offset.checked_add(file_bytes).ok_or(ElfError::Segment(address))?;
        let end = address.checked_add(bytes.max(file_bytes)).ok_or(ElfError::Segment(address))?;
        entry_is_loaded |= (address..end).contains(&entry);
        kernel.file_bytes = kernel.file_bytes.max(file_end);
        kernel.range = kernel.range.start.min(address)..kernel.range.end.max(end);
    }
    if entry_is_loaded { Ok(kernel) } else { Err(ElfError::Entry(entry)) }
}

/// A little-endian number of `bytes` bytes.
fn number(data: &[u8], at: usize, bytes: usize) -> Result<u64, ElfError> {
    let field = at.checked_add(bytes).and_then(|end| data.get(at..end)).ok_or(ElfError::Short)?;
    Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn kernel(edit: impl Fn(&mut Vec<u8>)) -> Result<ElfKernel, ElfError> {
        let mut file = test_file(&[(0x1000, 0x100_0000, 0x800, 0x2000)], 0x100_0000);
        edit(&mut file);
        parse(&file)
    }

    /// Headers of a kernel with segments of (offset, address, bytes in the file, bytes).
    pub(crate) fn test_file(segments: &[(u64, u64, u64, u64)], entry: u64) -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16] = 2;
        file[18] = 62;
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32] = HEADER_BYTES as u8;
        file[54] = PROGRAM_HEADER_BYTES as u8;
        file[56] = segments.len() as u8;
        for (offset, address, in_file, bytes) in segments {
            file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
            for word in [offset, address, address, in_file, bytes, &0x1000] {
                file.extend(word.to_le_bytes());
            }
        }
        file
    }

    #[test]
    fn says_where_it_lies() {
        let expected = ElfKernel { entry: 0x100_0000, range: 0x100_0000..0x100_2000, file_bytes: 0x1800 };
        assert_eq!(kernel(|_| {}), Ok(expected));
    }

    #[test]
    fn refuses_what_is_no_kernel() {
        assert_eq!(kernel(|file| file.truncate(63)), Err(ElfError::Short));
        assert_eq!(kernel(|file| file.truncate(100)), Err(ElfError::Short));
        assert_eq!(kernel(|file| file[32..40].fill(0xff)), Err(ElfError::Short));
        assert_eq!(kernel(|file| file[4] = 1), Err(ElfError::Machine { class: 1, machine: 62 }));
        assert_eq!(kernel(|file| file[18] = 183), Err(ElfError::Machine { class: 2, machine: 183 }));
        assert_eq!(kernel(|file| file[16] = 1), Err(ElfError::Type(1)));
        assert_eq!(kernel(|file| file[28] = 1), Err(ElfError::Entry(0x1_0100_0000)));
        assert_eq!(kernel(|file| file[56] = 0), Err(ElfError::Entry(0x100_0000)));
        assert_eq!(kernel(|file| file[64 + 40..64 + 48].fill(0xff)), Err(ElfError::Segment(0x100_0000)));
    }
}
