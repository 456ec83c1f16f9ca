//! Pages of a file as ranges.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Pages of a file, counted from 0: ranges that are not empty, in ascending order, with gaps between them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct PageRanges(Vec<Range<u64>>);

/// An invalid range.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{count} pages from page {first}: expected at least 1, behind page {after}, within 2^64 bytes")]
pub struct PageRangeError {
    first: u64,
    count: u64,
    /// The first page that may be named.
    after: u64,
}

impl PageRanges {
    /// The pages whose flag is set; the first flag is page 0's.
    #[must_use]
    pub fn of(flags: impl IntoIterator<Item = bool>) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (page, _) in (0..).zip(flags).filter(|(_, flag)| *flag) {
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => ranges.push(page..page + 1),
            }
        }
        Self(ranges)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Size of all pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // They don't overlap and their ends are multiples of a page that fit.
        self.0.iter().map(|range| range.end - range.start).sum::<u64>() * PAGE_SIZE
    }

    /// The bytes of a file of `size` bytes that they are, in pieces of `piece` bytes at most, a multiple of a page.
    pub fn pieces(&self, size: u64, piece: u64) -> impl Iterator<Item = Range<u64>> {
        let within = move |range: &Range<u64>| range.start * PAGE_SIZE..(range.end * PAGE_SIZE).min(size);
        let step = usize::try_from(piece.max(PAGE_SIZE)).unwrap_or(usize::MAX);
        let cut = move |bytes: Range<u64>| {
            let end = bytes.end;
            bytes.step_by(step).map(move |start| start..end.min(start.saturating_add(step as u64)))
        };
        self.0.iter().map(within).flat_map(cut)
    }
}

impl TryFrom<Vec<(u64, u64)>> for PageRanges {
    type Error = PageRangeError;

    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, PageRangeError> {
        let mut after = 0;
        let ranges = pairs.into_iter().map(|(first, count)| {
            let end = first.checked_add(count).filter(|end| *end <= u64::MAX / PAGE_SIZE);
            let range = end.filter(|_| count > 0 && first >= after).map(|end| first..end);
            let range = range.ok_or(PageRangeError { first, count, after })?;
            after = range.end + 1;
            Ok(range)
        });
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

impl From<PageRanges> for Vec<(u64, u64)> {
    fn from(pages: PageRanges) -> Self {
        pages.0.into_iter().map(|range| (range.start, range.end - range.start)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(pages: &PageRanges) -> BTreeSet<u64> {
        pages.0.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn ranges_are_the_pages_whose_flag_is_set(flags in proptest::collection::vec(any::<bool>(), 0..300)) {
            let pages = PageRanges::of(flags.iter().copied());
            let expected: BTreeSet<u64> = (0..).zip(&flags).filter(|(_, flag)| **flag).map(|(page, _)| page).collect();
            prop_assert_eq!(set(&pages), expected.clone());
            prop_assert_eq!(pages.bytes(), expected.len() as u64 * PAGE_SIZE);
            prop_assert!(pages.0.windows(2).all(|pair| pair[0].end < pair[1].start));
            let json = serde_json::to_string(&pages).unwrap();
            prop_assert_eq!(serde_json::from_str::<PageRanges>(&json).unwrap(), pages);
        }

        #[test]
        fn whatever_is_read_is_in_order_and_apart(pairs in proptest::collection::vec((0..40_u64, 0..9_u64), 0..6)) {
            if let Ok(pages) = PageRanges::try_from(pairs.clone()) {
                prop_assert_eq!(set(&pages).len() as u64, pairs.iter().map(|pair| pair.1).sum::<u64>());
                prop_assert_eq!(PageRanges::of((0..50).map(|page| set(&pages).contains(&page))), pages);
            }
        }

        #[test]
        fn pieces_are_the_bytes_within_the_file(
            flags in proptest::collection::vec(any::<bool>(), 0..100), size in 0..500_000_u64, piece in 1..5_u64
        ) {
            let pieces: Vec<_> = PageRanges::of(flags.iter().copied()).pieces(size, piece * PAGE_SIZE).collect();
            prop_assert!(pieces.iter().all(|range| !range.is_empty() && range.end - range.start <= piece * PAGE_SIZE));
            let bytes = |page: u64| size.saturating_sub(page * PAGE_SIZE).min(PAGE_SIZE);
            let expected: u64 = (0..).zip(&flags).filter(|(_, flag)| **flag).map(|(page, _)| bytes(page)).sum();
            prop_assert_eq!(pieces.iter().map(|range| range.end - range.start).sum::<u64>(), expected);
            prop_assert!(pieces.iter().all(|range| flags[(range.start / PAGE_SIZE) as usize]));
        }
    }

    #[test]
    fn hostile_ranges_are_refused() {
        for bad in [
            "[[0, 0]]",
            "[[5, 1], [5, 1]]",
            "[[5, 1], [6, 1]]",
            "[[5, 1], [4, 1]]",
            "[[18446744073709551615, 1]]",
            "[[1, 18446744073709551615]]",
            "[[0, 4503599627370496]]",
            "[[-1, 2]]",
            "[[1]]",
            "[[1, 2, 3]]",
        ] {
            assert!(serde_json::from_str::<PageRanges>(bad).is_err(), "{bad}");
        }
        let largest = serde_json::from_str::<PageRanges>("[[0, 4503599627370495]]").unwrap();
        assert_eq!(largest.bytes(), u64::MAX - 4095);
        let error = PageRanges::try_from(vec![(5, 2), (6, 1)]).unwrap_err().to_string();
        assert!(error.contains("page 6") && error.contains("behind page 8"), "{error}");
    }
}
