//! Ranges that a driver discards, or wants to read as zeros (VIRTIO 1.2, section 5.2.6), as plain data: reads and checks them.

use bellows_disk::SECTOR_SIZE;
use bellows_memory::wire;
use vm_memory::{ByteValued as _, Le32, Le64};

use super::request::{Erasure, Limits, Rejection, SEGMENT_SIZE};

wire! {
    /// `struct virtio_blk_discard_write_zeroes`: one segment of the data of such a request.
    pub struct VirtioBlkDiscardWriteZeroes {
        /// Position on the disk in sectors.
        sector: Le64,
        /// Length in sectors.
        num_sectors: Le32,
        /// Bit 0 is `unmap`; the others are reserved.
        flags: Le32,
    }
}

const _: () = assert!(size_of::<VirtioBlkDiscardWriteZeroes>() == SEGMENT_SIZE);

const UNMAP: u32 = 1;

/// A valid segment. Position and length are in bytes, whole sectors within the capacity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// From here on the disk.
    pub offset: u64,
    /// May be 0.
    pub bytes: u64,
    /// The medium under it may be given back.
    pub unmap: bool,
}

/// Checks all segments in `data`, which are whole ones, and puts them into `ranges` in place of what is there. Returns their bytes together.
///
/// # Errors
/// One is invalid.
pub fn parse(erasure: Erasure, data: &[u8], limits: Limits, ranges: &mut Vec<Range>) -> Result<u64, Rejection> {
    ranges.clear();
    let mut all = 0;
    for bytes in data.chunks_exact(SEGMENT_SIZE) {
        let mut segment = VirtioBlkDiscardWriteZeroes::default();
        segment.as_mut_slice().copy_from_slice(bytes);
        let range = check(erasure, &segment, limits)?;
        // Each is within the disk, and there are few.
        all += range.bytes;
        ranges.push(range);
    }
    Ok(all)
}

fn check(erasure: Erasure, segment: &VirtioBlkDiscardWriteZeroes, limits: Limits) -> Result<Range, Rejection> {
    let (sector, sectors, flags) =
        (segment.sector.to_native(), segment.num_sectors.to_native(), segment.flags.to_native());
    // A discard has no flag at all.
    let known = match erasure {
        Erasure::Discard => 0,
        Erasure::WriteZeroes => UNMAP,
    };
    if flags & !known != 0 {
        return Err(Rejection::Flags(flags));
    }
    let bytes = u64::from(sectors) * SECTOR_SIZE;
    let beyond = Rejection::Range { sector, bytes };
    if sectors > erasure.max_sectors() {
        return Err(Rejection::Segment(sectors));
    }
    match sector.checked_add(sectors.into()) {
        Some(end) if end <= limits.sectors => {
            let offset = sector.checked_mul(SECTOR_SIZE).ok_or(beyond)?;
            Ok(Range { offset, bytes, unmap: flags & UNMAP != 0 })
        }
        _ => Err(beyond),
    }
}

#[cfg(test)]
#[path = "erase_test.rs"]
mod tests;
