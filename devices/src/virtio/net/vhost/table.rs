//! Where guest memory lies in this process, as vhost-net is told.

use super::TooManyPieces;

/// A range of guest memory that lies in one piece in this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// First guest-physical address.
    pub(super) guest: u64,
    /// Its address in this process.
    pub(super) host: u64,
    /// Length in bytes; not zero.
    pub(super) bytes: u64,
}

/// All of guest memory that there is at a moment, in as few pieces as it takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Table(Vec<Piece>);

impl Table {
    /// Of `pieces`, which do not overlap, in order of their guest-physical addresses: at most `most` of them.
    ///
    /// # Errors
    /// There are more.
    pub(super) fn new(pieces: impl IntoIterator<Item = Piece>, most: usize) -> Result<Self, TooManyPieces> {
        let mut table: Vec<Piece> = Vec::new();
        for piece in pieces {
            match table.last_mut() {
                Some(last) if last.guest + last.bytes == piece.guest && last.host + last.bytes == piece.host => {
                    last.bytes += piece.bytes;
                }
                _ => table.push(piece),
            }
        }
        if table.len() > most { Err(TooManyPieces { needed: table.len(), most }) } else { Ok(Self(table)) }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// The address in this process of `bytes` at `guest`, if all of them are there and lie in one piece.
    pub(super) fn host_of(&self, guest: u64, bytes: u64) -> Option<u64> {
        let next = self.0.partition_point(|piece| piece.guest <= guest);
        let piece = self.0[..next].last()?;
        let offset = guest - piece.guest;
        let fits = offset < piece.bytes && bytes <= piece.bytes - offset;
        fits.then(|| piece.host + offset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Memory page by page: where each page of the guest's lies in this process.
    type Pages = BTreeMap<u64, u64>;

    const PAGE: u64 = 4096;

    fn pages(pieces: &[Piece]) -> Pages {
        let of_piece = |piece: &Piece| {
            let Piece { guest, host, bytes } = *piece;
            (0..bytes / PAGE).map(move |page| (guest / PAGE + page, host / PAGE + page))
        };
        pieces.iter().flat_map(of_piece).collect()
    }

    /// Pieces that may or may not belong together, on either side.
    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let step = (0_u64..3, 0_u64..3, 1_u64..5);
        proptest::collection::vec(step, 0..20).prop_map(|steps| {
            let (mut guest, mut host) = (0, 1 << 40);
            let piece = |(guest_gap, host_gap, count): (u64, u64, u64)| {
                guest += guest_gap * PAGE;
                host += host_gap * PAGE;
                let piece = Piece { guest, host, bytes: count * PAGE };
                (guest, host) = (guest + piece.bytes, host + piece.bytes);
                piece
            };
            steps.into_iter().map(piece).collect()
        })
    }

    proptest! {
        #[test]
        fn a_table_has_the_same_pages_in_the_fewest_pieces(pieces in pieces()) {
            let table = Table::new(pieces.clone(), usize::MAX).unwrap();
            let pages = pages(&pieces);
            prop_assert_eq!(self::tests::pages(table.pieces()), pages.clone());
            // A page begins a piece if the one before it is absent or lies elsewhere.
            let begins = |(guest, host): (&u64, &u64)| {
                guest.checked_sub(1).and_then(|before| pages.get(&before)) != Some(&(host - 1))
            };
            let fewest = pages.iter().filter(|(guest, host)| begins((guest, host))).count();
            prop_assert_eq!(table.pieces().len(), fewest);
            prop_assert!(table.pieces().is_sorted_by_key(|piece| piece.guest));
            prop_assert_eq!(Table::new(pieces.clone(), fewest), Ok(table));
            if let Some(most) = fewest.checked_sub(1) {
                prop_assert_eq!(Table::new(pieces, most), Err(TooManyPieces { needed: fewest, most }));
            }
        }

        #[test]
        fn a_range_is_found_where_all_its_pages_lie_in_a_row(pieces in pieces(), guest in 0..100 * PAGE, bytes in 1..4 * PAGE) {
            let table = Table::new(pieces.clone(), usize::MAX).unwrap();
            let pages = pages(&pieces);
            let first = guest / PAGE;
            let host = pages.get(&first).filter(|host| {
                (first..=(guest + bytes - 1) / PAGE).all(|page| pages.get(&page) == Some(&(*host + page - first)))
            });
            prop_assert_eq!(table.host_of(guest, bytes), host.map(|host| host * PAGE + guest % PAGE));
        }
    }

    #[test]
    fn nothing_is_found_at_the_end_of_all_addresses() {
        let table = Table::new([Piece { guest: 0, host: PAGE, bytes: PAGE }], 1).unwrap();
        assert_eq!(table.host_of(0, PAGE), Some(PAGE));
        for (guest, bytes) in [(0, PAGE + 1), (0, u64::MAX), (PAGE, 1), (PAGE - 1, u64::MAX), (u64::MAX, u64::MAX)] {
            assert_eq!(table.host_of(guest, bytes), None, "{guest:#x}, {bytes:#x}");
        }
        assert_eq!(Table::default().host_of(0, 1), None);
    }
}
