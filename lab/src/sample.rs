//! Where the emulated processor was: what the profiler writes and a profile reads.

use std::io::{self, Read, Write};

/// Bytes of a page of code, which tell which file it is a page of.
pub const PAGE: usize = 4096;

/// A block of code, and how many instructions the processor has run since the sample before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The instructions.
    pub instructions: u64,
    /// Where the block begins, in its own address space.
    pub address: u64,
    /// Where the kernel that runs, or that is there for the program that runs, has the data of its processor.
    /// One of the two is 0, or is a program's: the processor exchanges them on the way into the kernel and back.
    pub gs_bases: [u64; 2],
    /// [`fingerprint`] of the page that the block begins in.
    pub page: u64,
}

impl Sample {
    /// Bytes of a sample in a file: five numbers, little endian, in the order of the fields.
    pub const BYTES: usize = 40;

    /// Writes it, in one call.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let numbers = [self.instructions, self.address, self.gs_bases[0], self.gs_bases[1], self.page];
        let mut bytes = [0; Self::BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        to.write_all(&bytes)
    }

    /// Reads the next one; `None` at the end. A sample that is cut off there is not one.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = [0; Self::BYTES];
        match from.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let number = |at: usize| little_endian(&bytes[at * 8..][..8]);
        Ok(Some(Self {
            instructions: number(0),
            address: number(1),
            gs_bases: [number(2), number(3)],
            page: number(4),
        }))
    }
}

/// A number that tells pages of code apart (FNV-1a, by words of eight bytes). A short page counts as if zeros followed, as it is
/// in memory.
pub fn fingerprint(page: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let words = page.chunks(8).map(little_endian).chain(std::iter::repeat(0)).take(PAGE / 8);
    words.fold(BASIS, |hash, word| {
        let hash = (hash ^ word).wrapping_mul(PRIME);
        // Multiplication alone never moves a high bit down.
        hash ^ hash >> 32
    })
}

/// The number that at most eight bytes are, little endian.
pub fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_as_it_was_written() {
        let sample = |number| Sample { instructions: number, address: !number, gs_bases: [1, number << 40], page: 7 };
        let mut file = Vec::new();
        for number in [3, 4] {
            sample(number).write(&mut file).unwrap();
        }
        assert_eq!(file.len(), 2 * Sample::BYTES);
        file.pop();
        let mut rest = &file[..];
        assert_eq!(Sample::read(&mut rest).unwrap(), Some(sample(3)));
        assert_eq!(Sample::read(&mut rest).unwrap(), None, "the second is cut off");
    }

    #[test]
    fn every_byte_of_a_page_counts() {
        let page = [0x90; PAGE];
        for at in [0, 7, 8, 4095] {
            let mut other = page;
            other[at] ^= 0x80;
            assert_ne!(fingerprint(&page), fingerprint(&other), "byte {at}");
        }
        let mut end = [0; PAGE];
        end[..5].copy_from_slice(b"short");
        assert_eq!(fingerprint(b"short"), fingerprint(&end));
    }
}
