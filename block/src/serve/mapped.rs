//! A layer's file, copied from a mapping of it.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bellows_memory::host::{Access, Area, WatchedArea};
use vm_memory::VolatileSlice;

use crate::read_set::PAGE_SIZE;

/// Pages are brought in by this many bytes, the first time that a request reaches into them: as many as Linux maps around a fault.
const CHUNK: u64 = 64 << 10;

/// A mapping of a file, to be copied from: without a system call, as fast as memory.
///
/// A page that is missing is an error, and so is every copy from then on
/// ([`catch_faults`](bellows_memory::host::catch_faults)).
#[derive(Debug)]
pub(super) struct Mapped {
    area: WatchedArea,
    bytes: u64,
    /// A bit for each chunk whose pages have been brought in.
    present: Vec<AtomicU64>,
}

impl Mapped {
    /// Maps the `bytes` of a file, if this process catches faults and has room for it.
    pub(super) fn new(file: &File, bytes: u64) -> Option<Self> {
        let mapped = bytes.checked_next_multiple_of(PAGE_SIZE).and_then(|bytes| usize::try_from(bytes).ok())?;
        let area = Area::reserve(mapped, Access::Read).ok()?;
        area.map_file(0..mapped, file).ok()?;
        area.keep_private().ok()?;
        let words = bytes.div_ceil(CHUNK * u64::from(u64::BITS));
        let present = (0..words).map(|_| AtomicU64::new(0)).collect();
        Some(Self { area: WatchedArea::new(area).ok()?, bytes, present })
    }

    /// Fills `buffers`, one after the other, from byte `offset` on; returns up to where the file has to reach for that to be right, as far as
    /// that is not certain: a page that the file ends in is zeros from there on.
    pub(super) fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<Option<u64>> {
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.populate(offset, end)?;
        let mut from = offset as usize;
        for buffer in buffers {
            self.area.copy_to(from, buffer)?;
            from += buffer.len();
        }
        Ok(if self.ends_in_zero(offset, end)? { Some(end) } else { None })
    }

    /// Whether a page between `start` and `end` ends in a zero. One does that the file was cut in, and most others do not.
    fn ends_in_zero(&self, start: u64, end: u64) -> io::Result<bool> {
        for page in start / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
            let last = ((page + 1) * PAGE_SIZE).min(self.bytes) - 1;
            if self.area.byte(last as usize)? == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Brings in the pages from `start` to `end`, unless that was done. Later one may be missing again, and then the copy brings it in.
    fn populate(&self, start: u64, end: u64) -> io::Result<()> {
        for chunk in start / CHUNK..end.div_ceil(CHUNK) {
            let (word, bit) = (&self.present[(chunk / 64) as usize], 1 << (chunk % 64));
            if word.load(Ordering::Relaxed) & bit == 0 {
                let (first, last) = (chunk * CHUNK, ((chunk + 1) * CHUNK).min(self.bytes.next_multiple_of(PAGE_SIZE)));
                self.area.populate(first as usize..last as usize)?;
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
