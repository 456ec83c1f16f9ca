//! How a file with holes is cut into chunks. Pure arithmetic.

use super::format::BLOCK_SIZE;

/// Most chunks of one file: what a list of them may take in memory.
const MAX_CHUNKS: u64 = 1 << 20;
/// Bytes of a chunk's entry in the list.
const ENTRY: u64 = 4;
/// Most bits that the format has for a chunk's size in blocks.
const MAX_BITS: u8 = 31;

/// How many times its data a file may take in the image, zeros between segments included.
const MAX_GROWTH: u64 = 8;
/// What a file may take beyond that.
const FREE_GROWTH: u64 = 64 << 20;

/// Where a file has data: `segments` in order, each an offset and a length; the rest up to `bytes` reads as zeros.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SparseMap {
    bytes: u64,
    segments: Vec<(u64, u64)>,
}

impl SparseMap {
    /// A map of a file of `bytes` bytes; `None` if a segment overlaps the one before it or passes the file's end.
    #[must_use]
    pub fn new(bytes: u64, segments: Vec<(u64, u64)>) -> Option<Self> {
        let mut end = 0;
        for (offset, length) in &segments {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*length)?;
        }
        let segments = segments.into_iter().filter(|(_, length)| *length > 0).collect();
        (end <= bytes).then_some(Self { bytes, segments })
    }

    /// The map of a file of `bytes` bytes without holes.
    #[must_use]
    pub fn dense(bytes: u64) -> Self {
        let segments = if bytes == 0 { Vec::new() } else { vec![(0, bytes)] };
        Self { bytes, segments }
    }

    /// Length of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of it is data.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.segments.iter().map(|(_, length)| length).sum()
    }

    /// The segments, all with data.
    pub(crate) fn segments(&self) -> &[(u64, u64)] {
        &self.segments
    }

    /// The size of chunk that costs least, list and zeros within chunks taken together: its bits, and the chunks that hold
    /// data. `None` if the file is too large for any, or its
    /// data so far apart that the image would hold little but zeros.
    pub(super) fn chunks(&self) -> Option<(u8, Vec<u64>)> {
        let cost = |bits: u8| {
            let chunk = BLOCK_SIZE << bits;
            let count = self.bytes.div_ceil(chunk);
            if count > MAX_CHUNKS {
                return None;
            }
            // A chunk at the end of the file is cut off there.
            let data = self.touched(bits).try_fold(0_u64, |sum, index| {
                sum.checked_add(chunk.min(self.bytes - index * chunk).next_multiple_of(BLOCK_SIZE))
            })?;
            let most = self.data_bytes().saturating_mul(MAX_GROWTH).saturating_add(FREE_GROWTH);
            Some(data.checked_add(count * ENTRY)?).filter(|cost| *cost <= most)
        };
        let bits = (0..=MAX_BITS).filter_map(|bits| Some((cost(bits)?, bits))).min()?.1;
        Some((bits, self.touched(bits).collect()))
    }

    /// The chunks that have data, in order.
    fn touched(&self, bits: u8) -> impl Iterator<Item = u64> {
        let chunk = BLOCK_SIZE << bits;
        let mut next = 0;
        self.segments.iter().flat_map(move |(offset, length)| {
            let (first, last) = (offset / chunk, (offset + length - 1) / chunk);
            let range = first.max(next)..last + 1;
            next = last + 1;
            range
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_ordered_and_end_within_the_file() {
        for bad in [vec![(0, 5), (4, 1)], vec![(0, 11)], vec![(u64::MAX, 1)], vec![(5, 1), (0, 1)]] {
            assert_eq!(SparseMap::new(10, bad), None);
        }
        let map = SparseMap::new(10, vec![(0, 4), (4, 0), (6, 4), (10, 0)]).unwrap();
        assert_eq!((map.segments(), map.data_bytes()), (&[(0, 4), (6, 4)][..], 8));
    }

    #[test]
    fn chunks_cost_as_little_as_they_can() {
        let chunks = |bytes, segments| SparseMap::new(bytes, segments).unwrap().chunks();
        // Nothing but a hole: one entry, however large the file.
        assert!(chunks(1 << 40, vec![]).unwrap().1.is_empty());
        assert!(chunks(1 << 40, vec![]).unwrap().0 >= 28);
        // Two blocks far apart: more zeros or more entries.
        let (bits, touched) = chunks(1 << 30, vec![(0, 4096), (1 << 29, 4096)]).unwrap();
        assert_eq!(touched, [0, (1 << 29) / (4096 << bits)]);
        assert!((1 << 30) / (4096_u64 << bits) * 4 + 2 * (4096 << bits) < (1 << 20), "{bits}");
        // Everything but one block.
        let (bits, touched) = chunks(3 * 4096, vec![(0, 4096), (8192, 4096)]).unwrap();
        assert_eq!((bits, touched), (0, vec![0, 2]));
        assert!(chunks(u64::MAX, vec![(0, 1), (1 << 62, 1)]).is_none_or(|(_, touched)| touched.len() <= 2));
    }
}
