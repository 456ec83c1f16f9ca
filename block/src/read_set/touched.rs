//! Pages of a disk, marked when they are read.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::{PAGE_SIZE, PageRanges};

/// A bit for each page of a file. Marking takes no lock and no memory.
#[derive(Debug)]
pub(crate) struct TouchedPages(Box<[AtomicU64]>);

impl TouchedPages {
    /// No page of a file of `bytes` bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let words = bytes.div_ceil(PAGE_SIZE).div_ceil(u64::BITS.into());
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Marks the pages that hold `bytes`. Bytes beyond the end have no page.
    pub(crate) fn mark(&self, bytes: Range<u64>) {
        let (mut page, end) = (bytes.start / PAGE_SIZE, bytes.end.div_ceil(PAGE_SIZE));
        while page < end {
            let bit = page % u64::from(u64::BITS);
            let count = (end - page).min(u64::from(u64::BITS) - bit);
            let Some(word) = usize::try_from(page / u64::from(u64::BITS)).ok().and_then(|index| self.0.get(index))
            else {
                return;
            };
            let mask = (u64::MAX >> (u64::from(u64::BITS) - count)) << bit;
            // Most pages are read again and again, and a word that is only read stays in all processors' caches.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
            page += count;
        }
    }

    /// The pages among `pages` that are marked by now, counted from the first of them.
    pub(crate) fn pages(&self, pages: Range<u64>) -> PageRanges {
        let bits = |word: &AtomicU64| {
            let word = word.load(Ordering::Relaxed);
            (0..u64::BITS).map(move |bit| word >> bit & 1 != 0)
        };
        let clamped = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        let marked = self.0.iter().flat_map(bits).take(clamped(pages.end)).skip(clamped(pages.start));
        PageRanges::of(marked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_that_hold_a_byte_are_marked(
            reads in proptest::collection::vec((0..1_000_000_u64, 1..300_000_u64), 0..8)
        ) {
            const BYTES: u64 = 1_200_000;
            let touched = TouchedPages::new(BYTES);
            let mut expected = [false; BYTES.div_ceil(PAGE_SIZE) as usize];
            for (start, count) in reads {
                let bytes = start..(start + count).min(BYTES);
                touched.mark(bytes.clone());
                for page in bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE) {
                    expected[page as usize] = true;
                }
            }
            prop_assert_eq!(touched.pages(0..u64::MAX), PageRanges::of(expected));
            prop_assert_eq!(touched.pages(70..200), PageRanges::of(expected[70..200].iter().copied()));
        }
    }

    #[test]
    fn what_is_beyond_the_end_is_no_page() {
        let touched = TouchedPages::new(64 * PAGE_SIZE);
        for bytes in [0..0, 64 * PAGE_SIZE..u64::MAX, u64::MAX - 1..u64::MAX] {
            touched.mark(bytes);
        }
        assert!(touched.pages(0..u64::MAX).is_empty());
        touched.mark(0..u64::MAX);
        assert_eq!(touched.pages(0..u64::MAX).bytes(), 64 * PAGE_SIZE);
        TouchedPages::new(0).mark(0..1);
    }
}
