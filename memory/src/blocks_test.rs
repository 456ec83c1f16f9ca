use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const BLOCKS: u32 = 200;

#[test]
fn a_range_is_never_empty_and_never_runs_over() {
    assert_eq!(BlockRange::new(3, 0), None);
    assert_eq!(BlockRange::new(u32::MAX, 1), None);
    assert_eq!(BlockRange::between(4, 4), None);
    assert_eq!(BlockRange::between(5, 4), None);
    let range = BlockRange::new(3, 2).unwrap();
    assert_eq!((range.offset(), range.bytes()), (6 << 20, 4 << 20));
}

#[test]
fn neighbours_do_not_overlap() {
    let (a, b) = (BlockRange::new(0, 4).unwrap(), BlockRange::new(4, 4).unwrap());
    assert!(!a.overlaps(b) && !b.overlaps(a) && a.overlaps(a));
    assert_eq!(a.join(b), BlockRange::new(0, 8).unwrap());
}

proptest! {
    #[test]
    fn a_set_behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0..BLOCKS, 1..BLOCKS), 0..40)) {
        let (mut set, mut model) = (BlockSet::new(BLOCKS), BTreeSet::new());
        for (insert, first, count) in steps {
            let range = BlockRange::between(first, (first + count).min(BLOCKS)).unwrap();
            for block in range.first()..range.end() {
                if insert { model.insert(block); } else { model.remove(&block); }
            }
            if insert { set.insert(range) } else { set.remove(range) }
            let inside = model.range(range.first()..range.end()).count();
            prop_assert_eq!(set.count(range) as usize, inside);
            prop_assert_eq!(set.any(range), insert);
            prop_assert_eq!(set.all(range), insert);
        }
        prop_assert_eq!(set.len() as usize, model.len());
        let listed: Vec<u32> = set.runs().flat_map(|run| run.first()..run.end()).collect();
        prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        let runs: Vec<BlockRange> = set.runs().collect();
        prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first()), "runs are maximal: {runs:?}");
    }
}
