//! The headers of an ELF kernel: whether the file is complete, and where it must be loaded.

use std::ops::Range;

use bellows_memory::wire;
use vm_memory::{ByteValued, Le16, Le32, Le64};

use super::error::ElfError;

/// What the headers tell.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ElfKernel {
    /// Physical address of its first instruction.
    pub entry: u64,
    /// Physical addresses that it occupies.
    pub range: Range<u64>,
    /// Length of the file that its segments need.
    pub file_bytes: u64,
}

/// Reads the headers from the first bytes of a file: the ELF header, and the program headers that must follow within `head`.
pub(crate) fn parse(head: &[u8]) -> Result<ElfKernel, ElfError> {
    const CLASS: usize = 4;
    const CLASS_64: u8 = 2;
    const X86_64: u16 = 62;
    const EXECUTABLE: u16 = 2;
    const LOAD: u32 = 1;
    let header: Elf64Ehdr = read(head, 0)?;
    let (class, machine) = (header.e_ident[CLASS], header.e_machine.to_native());
    if class != CLASS_64 || machine != X86_64 {
        return Err(ElfError::Machine { class, machine });
    }
    if header.e_type != EXECUTABLE {
        return Err(ElfError::Type(header.e_type.into()));
    }
    let entry = header.e_entry.to_native();
    let table = usize::try_from(header.e_phoff.to_native()).map_err(|_| ElfError::Short)?;
    let count = usize::from(header.e_phnum.to_native());

    let mut kernel = ElfKernel { entry, range: entry..entry, file_bytes: 0 };
    let mut entry_is_loaded = false;
    for index in 0..count {
        let segment: Elf64Phdr = read(head, table.saturating_add(index * size_of::<Elf64Phdr>()))?;
        if segment.p_type != LOAD {
            continue;
        }
        let (address, file_bytes) = (segment.p_paddr.to_native(), segment.p_filesz.to_native());
        let invalid = ElfError::Segment(address);
        let file_end = segment.p_offset.to_native().checked_add(file_bytes).ok_or(invalid)?;
        let end = address.checked_add(segment.p_memsz.to_native().max(file_bytes)).ok_or(invalid)?;
        entry_is_loaded |= (address..end).contains(&entry);
        kernel.file_bytes = kernel.file_bytes.max(file_end);
        kernel.range = kernel.range.start.min(address)..kernel.range.end.max(end);
    }
    if entry_is_loaded { Ok(kernel) } else { Err(ElfError::Entry(entry)) }
}

fn read<T: ByteValued + Default>(file: &[u8], at: usize) -> Result<T, ElfError> {
    let bytes = at.checked_add(size_of::<T>()).and_then(|end| file.get(at..end)).ok_or(ElfError::Short)?;
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(bytes);
    Ok(value)
}

wire! {
    /// The ELF header (elf(5)).
    struct Elf64Ehdr {
        e_ident: [u8; 16],
        e_type: Le16,
        e_machine: Le16,
        e_version: Le32,
        e_entry: Le64,
        e_phoff: Le64,
        e_shoff: Le64,
        e_flags: Le32,
        e_ehsize: Le16,
        e_phentsize: Le16,
        e_phnum: Le16,
        e_shentsize: Le16,
        e_shnum: Le16,
        e_shstrndx: Le16,
    }

    /// A program header (elf(5)).
    struct Elf64Phdr {
        p_type: Le32,
        p_flags: Le32,
        p_offset: Le64,
        p_vaddr: Le64,
        p_paddr: Le64,
        p_filesz: Le64,
        p_memsz: Le64,
        p_align: Le64,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HEADER_BYTES: usize = 64;
    const PROGRAM_HEADER_BYTES: usize = 56;

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
    fn reads_the_entry_and_the_addresses() {
        let expected = ElfKernel { entry: 0x100_0000, range: 0x100_0000..0x100_2000, file_bytes: 0x1800 };
        assert_eq!(kernel(|_| {}), Ok(expected));
    }

    #[test]
    fn refuses_files_that_are_not_kernels() {
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
