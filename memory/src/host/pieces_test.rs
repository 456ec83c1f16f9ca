use proptest::prelude::*;

use super::*;

const BLOCKS: u32 = 48;

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

#[test]
fn what_is_plugged_and_unplugged_as_a_whole_leaves_no_cut() {
    let mut pieces = Pieces::new(BLOCKS);
    for first in (0..BLOCKS).step_by(8) {
        pieces.back(range(first, 8));
    }
    assert_eq!(pieces.cuts.len(), 5);
    pieces.cut_out(range(10, 2));
    pieces.discard(range(10, 2));
    assert_eq!(pieces.cuts.len(), 7);
    pieces.discard(range(0, BLOCKS));
    assert_eq!(pieces.cuts.len(), 0);
}

#[test]
fn no_guest_cuts_its_memory_into_more_pieces_than_there_may_be() {
    static TOTAL: AtomicU32 = AtomicU32::new(0);
    let blocks = 4 * MAX_PIECES;
    let counted = |blocks| CountedPieces { pieces: Pieces::new(blocks), total: &TOTAL };
    let mut pieces = counted(blocks);
    pieces.back(range(0, blocks)).unwrap();
    let cut = (1..blocks).step_by(2).take_while(|block| pieces.cut_out(range(*block, 1)).is_ok()).count();
    assert_eq!((cut as u32, TOTAL.load(Ordering::Relaxed)), (MAX_PIECES / 2, MAX_PIECES));
    assert_eq!(counted(8).back(range(1, 2)), Err(TooManyPieces), "all partitions together");
    assert_eq!(pieces.cut_out(range(0, blocks)), Ok(()), "all of it can always go");
    pieces.discard(range(0, blocks));
    assert_eq!(TOTAL.load(Ordering::Relaxed), 0);
    pieces.back(range(1, 2)).unwrap();
    drop(pieces);
    assert_eq!(TOTAL.load(Ordering::Relaxed), 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Back(BlockRange),
    Unplug(BlockRange),
}

fn any_step() -> impl Strategy<Value = Step> {
    (any::<bool>(), 0..BLOCKS, 1..8_u32).prop_map(|(back, first, count)| {
        let range = range(first, count.min(BLOCKS - first));
        if back { Step::Back(range) } else { Step::Unplug(range) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The kernel's mappings: each that was backed is one of its own, all else is joined.
    #[test]
    fn counts_what_the_kernel_has(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut pieces = Pieces::new(BLOCKS);
        // The number of the mapping that backs a block, or that of what it was split off.
        let mut blocks: Vec<Option<u32>> = vec![None; BLOCKS as usize];
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Back(range) => {
                    pieces.back(range);
                    blocks[range.first() as usize..range.end() as usize].fill(Some(number));
                }
                Step::Unplug(range) => {
                    pieces.cut_out(range);
                    pieces.discard(range);
                    blocks[range.first() as usize..range.end() as usize].fill(None);
                }
            }
            let mappings = blocks.windows(2).filter(|pair| pair[0] != pair[1]).count() as u32;
            prop_assert_eq!(pieces.cuts.len(), mappings);
        }
    }
}
