//! Pages that the guest reads without exits, and that only the monitor writes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use vm_memory::GuestAddress;

use super::sys::{Access, Area, PAGE, memory_file};
use crate::slots::Slot;
use crate::sync::Mutex;

/// So many pages of ones are mapped at once.
const ONES: usize = 16 * PAGE;

/// A range of guest-physical pages. Each reads as ones until the monitor shows something there. What the guest writes exits to the
/// monitor, and changes nothing by itself.
///
/// Pages that show nothing are the same memory for all such ranges of the process.
pub struct ShownPages {
    area: Area,
    /// What is shown, at the offset that it has in the range.
    file: File,
    /// The offsets of the pages that show something.
    mapped: Mutex<BTreeSet<u64>>,
    guest: GuestAddress,
    /// How much of a page can show something; the rest reads as zeros then.
    content: usize,
}

impl ShownPages {
    /// Pages for `bytes` at `guest`; both are multiples of the page size, and `bytes` is not zero. Each shows `content` bytes, whole
    /// words of 4 bytes.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(guest: GuestAddress, bytes: u64, content: usize) -> io::Result<Self> {
        let length = usize::try_from(bytes).ok().filter(|length| *length != 0 && length.is_multiple_of(PAGE));
        let length =
            length.filter(|_| content <= PAGE && content.is_multiple_of(4)).ok_or(io::ErrorKind::InvalidInput)?;
        let area = Area::reserve(length, Access::Read)?;
        let file = memory_file(c"bellows-shown")?;
        file.set_len(bytes)?;
        let pages = Self { area, file, mapped: Mutex::default(), guest, content };
        for start in (0..length).step_by(ONES) {
            pages.area.map_file(start..length.min(start + ONES), ones()?)?;
        }
        Ok(pages)
    }

    /// The slot for all of it. What it gives the guest ends with the pages, at the latest.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot { guest: self.guest, host: self.area.address(), bytes: self.area.bytes() as u64, read_only: true }
    }

    /// Shows `content` at the beginning of the page at `offset`; the rest of the page reads as zeros. Only words that differ are
    /// written.
    ///
    /// # Errors
    /// There is no such page, `content` has another length than all pages have, or the kernel refused.
    pub fn show(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let page = self.page(offset)?;
        if content.len() != self.content {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut shown = [0; PAGE];
        let shown = &mut shown[..self.content];
        self.file.read_exact_at(shown, offset)?;
        for (at, (new, old)) in (offset..).step_by(4).zip(content.chunks(4).zip(shown.chunks(4))) {
            if new != old {
                self.file.write_all_at(new, at)?;
            }
        }
        if self.mapped.lock().insert(offset) {
            self.area.map_file_at(page, &self.file, offset).inspect_err(|_| _ = self.mapped.lock().remove(&offset))?;
        }
        Ok(())
    }

    /// Shows nothing any more in the page at `offset`.
    ///
    /// # Errors
    /// There is no such page, or the kernel refused.
    pub fn hide(&self, offset: u64) -> io::Result<()> {
        self.area.map_file(self.page(offset)?, ones()?)?;
        self.mapped.lock().remove(&offset);
        Ok(())
    }

    fn page(&self, offset: u64) -> io::Result<Range<usize>> {
        let start =
            usize::try_from(offset).ok().filter(|start| start.is_multiple_of(PAGE) && *start < self.area.bytes());
        let start = start.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(start..start + PAGE)
    }
}

/// The pages of ones of this process.
fn ones() -> io::Result<&'static File> {
    static FILE: OnceLock<File> = OnceLock::new();
    if let Some(file) = FILE.get() {
        return Ok(file);
    }
    let file = memory_file(c"bellows-ones")?;
    file.write_all_at(&[0xff; ONES], 0)?;
    Ok(FILE.get_or_init(|| file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 40;

    fn pages() -> ShownPages {
        ShownPages::new(GuestAddress(0xe000_0000), PAGES * PAGE as u64, 8).unwrap()
    }

    /// What a guest reads.
    fn read(pages: &ShownPages, offset: u64) -> [u8; 8] {
        let mut data = [0; 8];
        let memory = File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut data, pages.slot().host + offset).unwrap();
        data
    }

    #[test]
    fn what_is_not_shown_reads_as_ones() {
        let pages = pages();
        for page in 0..PAGES {
            assert_eq!(read(&pages, (page + 1) * PAGE as u64 - 8), [0xff; 8], "page {page}");
        }
        let slot = pages.slot();
        assert_eq!((slot.guest.0, slot.bytes, slot.read_only), (0xe000_0000, PAGES * PAGE as u64, true));
    }

    #[test]
    fn a_page_shows_what_it_is_to_show() {
        let (pages, at) = (pages(), 17 * PAGE as u64);
        pages.show(at, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        assert_eq!((read(&pages, at), read(&pages, at + 8)), ([1, 2, 3, 4, 5, 6, 7, 8], [0; 8]));
        pages.show(at, &[1, 2, 3, 4, 9, 9, 9, 9]).unwrap();
        assert_eq!(read(&pages, at), [1, 2, 3, 4, 9, 9, 9, 9]);
        for beside in [at - 8, at + PAGE as u64] {
            assert_eq!(read(&pages, beside), [0xff; 8], "{beside:#x}");
        }
        pages.hide(at).unwrap();
        assert_eq!(read(&pages, at), [0xff; 8]);
        pages.show(at, &[7, 7, 7, 7, 0, 0, 0, 0]).unwrap();
        assert_eq!(read(&pages, at), [7, 7, 7, 7, 0, 0, 0, 0], "nothing is left of what it showed before");
    }

    #[test]
    fn other_ranges_show_nothing_of_it() {
        let (one, other) = (pages(), pages());
        one.show(0, &[1; 8]).unwrap();
        assert_eq!(read(&other, 0), [0xff; 8]);
    }

    #[test]
    fn there_are_only_whole_pages_and_words() {
        for (bytes, content) in [(0, 8), (100, 8), (PAGE as u64, 3), (PAGE as u64, PAGE + 4)] {
            assert!(ShownPages::new(GuestAddress(0), bytes, content).is_err(), "{bytes}, {content}");
        }
        let pages = pages();
        let bytes = PAGES * PAGE as u64;
        for offset in [1, bytes, u64::MAX] {
            assert!(pages.show(offset, &[0; 8]).is_err() && pages.hide(offset).is_err(), "{offset:#x}");
        }
        assert!(pages.show(0, &[0; 4]).is_err() && pages.show(0, &[0; 12]).is_err());
        assert_eq!(read(&pages, 0), [0xff; 8]);
    }
}
