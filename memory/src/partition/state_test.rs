use proptest::prelude::*;

use super::*;

/// Blocks of a granule in these tests.
const GRANULE: u32 = 8;
/// Blocks of the window.
const BLOCKS: u32 = 64;

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

fn size(blocks: u32) -> ByteSize {
    ByteSize::bytes(u64::from(blocks) * BLOCK.get())
}

/// A partition with a target of `target` blocks and `plugged` of them plugged, granule by granule as Linux does it.
fn partition(target: u32, plugged: u32) -> Partition {
    let mut partition = Partition::new(BLOCKS, GRANULE);
    partition.set_target(size(target)).unwrap();
    for first in (0..plugged).step_by(GRANULE as usize) {
        let plug = range(first, GRANULE.min(plugged - first));
        assert_eq!(partition.plug(plug).answer, Answer::Done);
    }
    partition
}

fn ack(effects: Vec<Effect>) -> Outcome {
    Outcome { answer: Answer::Done, effects }
}

#[test]
fn filling_a_partition_costs_one_slot() {
    let mut partition = partition(20, 0);
    let (first, second) = (range(0, 8), range(8, 8));
    assert_eq!(
        partition.plug(first),
        ack(vec![Effect::Back(first), Effect::AddSlot(range(0, 24)), Effect::Reveal(first)]),
        "the slot covers what was admitted: the target in whole granules"
    );
    assert_eq!(partition.plug(second), ack(vec![Effect::Back(second), Effect::Reveal(second)]));
    assert_eq!((partition.plugged(), partition.usable()), (size(16), size(24)));
}

#[test]
fn giving_everything_back_costs_one_deletion() {
    let mut partition = partition(16, 16);
    partition.set_target(size(0)).unwrap();
    let (first, second) = (range(0, 8), range(8, 8));
    assert_eq!(partition.unplug(second), ack(vec![Effect::Revoke(vec![second]), Effect::Discard(second)]));
    let whole = range(0, 16);
    assert_eq!(
        partition.unplug(first),
        ack(vec![Effect::Revoke(vec![first]), Effect::DeleteSlot(whole), Effect::Discard(whole)]),
        "what the guest touched of the second half meanwhile goes too"
    );
    assert_eq!(partition.slots(), []);
    assert_eq!(partition.usable(), size(16), "a PLUG that is under way must not fall outside of it");
    assert!(partition.discard_done(second));
    assert_eq!(partition.discarding(), size(16), "the second half waits for its second discard");
    assert!(partition.discard_done(whole));
    assert_eq!(partition.discarding(), size(0));
}

#[test]
fn unplug_all_takes_every_run_and_every_slot() {
    let mut partition = partition(24, 24);
    let _ = partition.unplug(range(8, 8));
    let _ = partition.trim_slots();
    assert_eq!(partition.slots(), [range(0, 8), range(16, 8)]);
    assert_eq!(
        partition.unplug_all().effects,
        [
            Effect::Revoke(vec![range(0, 8), range(16, 8)]),
            Effect::DeleteSlot(range(0, 8)),
            Effect::DeleteSlot(range(16, 8)),
            Effect::Discard(range(0, 8)),
            Effect::Discard(range(16, 8)),
        ]
    );
    assert_eq!(partition.unplug_all(), ack(vec![]), "nothing plugged is fine");
}

#[test]
fn a_plug_that_comes_after_its_size_was_taken_back_is_refused_and_no_error() {
    let mut partition = partition(24, 0);
    partition.set_target(size(0)).unwrap();
    assert_eq!(partition.usable(), size(24));
    assert_eq!(partition.plug(range(0, 8)).answer, Answer::Nack);
    assert_eq!(partition.reach(), size(0), "nothing is charged for it");
    partition.set_target(size(8)).unwrap();
    assert_eq!(partition.plug(range(16, 8)).answer, Answer::Done, "any block of the usable region will do");
}

#[test]
fn only_unplug_all_shrinks_the_usable_region() {
    let mut partition = partition(32, 32);
    partition.set_target(size(8)).unwrap();
    let _ = partition.unplug(range(0, 32));
    let _ = partition.trim_slots();
    assert_eq!((partition.plugged(), partition.usable()), (size(0), size(32)));
    let _ = partition.unplug_all();
    assert_eq!(partition.usable(), size(8), "what the driver reads when it starts again");
    partition.set_target(size(0)).unwrap();
    let _ = partition.unplug_all();
    assert_eq!(partition.usable(), size(0));
}

#[test]
fn blocks_here_and_there_let_the_guest_reach_no_more_than_them() {
    let mut partition = partition(64, 64);
    partition.set_target(size(0)).unwrap();
    let _ = partition.unplug(range(0, 64));
    while let Some(&done) = partition.pending.front() {
        assert!(partition.discard_done(done));
    }
    partition.set_target(size(12)).unwrap();
    assert_eq!(partition.reach(), size(16));
    assert_eq!(partition.plug(range(41, 1)).effects[1], Effect::AddSlot(range(40, 16)), "what was admitted, at once");
    for granule in 0..4 {
        let _ = partition.plug(range(granule * GRANULE, 1));
    }
    assert_eq!(partition.slots()[..3], [range(0, 1), range(8, 1), range(16, 1)]);
    assert_eq!(partition.reach(), size(16 + 4));
    let _ = partition.unplug(range(8, 1));
    let _ = partition.trim_slots();
    assert_eq!(partition.slots(), [range(0, 1), range(16, 1), range(24, 1), range(40, 8)]);
}

#[test]
fn a_window_that_ends_in_a_granule_is_no_larger_for_that() {
    let mut partition = Partition::new(12, GRANULE);
    let error = partition.set_target(size(13)).unwrap_err();
    assert_eq!(error.to_string(), "target of 26 MiB: the partition's window is 24 MiB");
    partition.set_target(size(12)).unwrap();
    assert_eq!((partition.usable(), partition.reach()), (size(16), size(12)));
    assert_eq!(partition.plug(range(0, 4)).effects[1], Effect::AddSlot(range(0, 12)));
    assert_eq!(
        partition.plug(range(15, 1)).effects[1],
        Effect::AddSlot(range(15, 1)),
        "the guest may choose its blocks"
    );
    assert_eq!(partition.reach(), size(13));
}

#[test]
fn trimming_makes_slots_follow_granules() {
    let mut partition = partition(32, 32);
    let _ = partition.unplug(range(9, 10));
    assert!(!partition.can_trim_slots(), "every granule still has a plugged block");
    let _ = partition.unplug(range(8, 1));
    assert!(partition.can_trim_slots());
    assert_eq!(
        partition.trim_slots(),
        [
            Effect::ReplaceSlot { old: range(0, 32), new: vec![range(0, 8), range(16, 16)] },
            Effect::Discard(range(8, 8)),
        ]
    );
    assert!(!partition.can_trim_slots());
    assert_eq!(partition.trim_slots(), []);
}

#[test]
fn a_trimmed_partition_gets_back_only_the_granules_it_plugs() {
    let mut partition = partition(32, 32);
    partition.set_target(size(16)).unwrap();
    let _ = partition.unplug(range(8, 24));
    let _ = partition.trim_slots();
    while let Some(&done) = partition.pending.front() {
        assert!(partition.discard_done(done));
    }
    let plug = range(18, 2);
    assert_eq!(
        partition.plug(plug),
        ack(vec![Effect::Back(plug), Effect::AddSlot(range(16, 8)), Effect::Reveal(plug)])
    );
}

#[test]
fn raising_the_target_adds_one_slot_for_the_rest() {
    let mut partition = partition(16, 16);
    partition.set_target(size(40)).unwrap();
    assert_eq!(partition.plug(range(16, 8)).effects[1], Effect::AddSlot(range(16, 24)));
    assert_eq!(partition.slots(), [range(0, 16), range(16, 24)]);
}

#[test]
fn requests_that_make_no_sense_are_errors_and_change_nothing() {
    let mut partition = partition(16, 8);
    let before = format!("{partition:?}");
    for (request, answer) in [
        (Request::Plug(range(0, 1)), Answer::Error),
        (Request::Plug(range(7, 2)), Answer::Error),
        (Request::Plug(range(0, 16)), Answer::Error),
        (Request::Plug(range(16, 1)), Answer::Error),
        (Request::Plug(range(15, 2)), Answer::Error),
        (Request::Plug(range(u32::MAX - 1, 1)), Answer::Error),
        (Request::Plug(range(8, 8)), Answer::Done),
        (Request::Unplug(range(8, 1)), Answer::Error),
        (Request::Unplug(range(7, 2)), Answer::Error),
        (Request::Unplug(range(63, 5)), Answer::Error),
        (Request::State(range(15, 2)), Answer::Error),
        (Request::State(range(0, 8)), Answer::State(BlockState::Plugged)),
        (Request::State(range(8, 8)), Answer::State(BlockState::Unplugged)),
        (Request::State(range(7, 2)), Answer::State(BlockState::Mixed)),
    ] {
        let mut trial = partition.clone();
        assert_eq!(trial.request(request).answer, answer, "{request:?}");
        if answer != Answer::Done {
            assert_eq!(format!("{trial:?}"), before, "{request:?}");
        }
    }
    partition.set_target(size(8)).unwrap();
    assert_eq!(partition.plug(range(8, 1)).answer, Answer::Nack);
}

#[test]
fn a_plug_that_meets_a_discard_is_busy() {
    let mut partition = partition(16, 16);
    let _ = partition.unplug(range(8, 8));
    assert_eq!(partition.plug(range(15, 1)), Outcome { answer: Answer::Busy, effects: vec![] });
    assert_eq!(partition.state(range(8, 8)).answer, Answer::State(BlockState::Unplugged));
    assert!(!partition.discard_done(range(8, 4)), "no such discard");
    assert!(partition.discard_done(range(8, 8)));
    assert_eq!(partition.plug(range(15, 1)).answer, Answer::Done);
}

#[test]
fn targets_are_checked() {
    let mut partition = partition(16, 0);
    for (size, message) in [
        (ByteSize::kib(4), "target of 4 KiB: expected a multiple of 2 MiB"),
        (size(65), "target of 130 MiB: the partition's window is 128 MiB"),
        (ByteSize::bytes(!0x1f_ffff), "the partition's window is 128 MiB"),
    ] {
        let error = partition.set_target(size).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(partition.target(), size(16));
    assert_eq!(partition.usable(), size(16));
}

#[derive(Clone, Debug)]
enum Step {
    Request(Request),
    Target(u32),
    TrimSlots,
    DiscardDone,
}

fn any_range() -> impl Strategy<Value = BlockRange> {
    (0..BLOCKS + 2, prop_oneof![1_u32..4, Just(GRANULE), 1..BLOCKS]).prop_map(|(first, count)| range(first, count))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_range().prop_map(|range| Step::Request(Request::Plug(range))),
        5 => any_range().prop_map(|range| Step::Request(Request::Unplug(range))),
        1 => Just(Step::Request(Request::UnplugAll)),
        1 => any_range().prop_map(|range| Step::Request(Request::State(range))),
        3 => (0..=BLOCKS).prop_map(Step::Target),
        2 => Just(Step::TrimSlots),
        4 => Just(Step::DiscardDone),
    ]
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Block {
    Unplugged,
    Plugged,
    /// Number of discards outstanding.
    Discarding(u32),
}

/// The rules of VIRTIO 1.2 section 5.15 and of slots and discards, block by block and the long way round.
struct Model {
    window: u32,
    blocks: Vec<Block>,
    /// The slot that a block lies in.
    slot: Vec<Option<BlockRange>>,
    visible: Vec<bool>,
    discards: VecDeque<BlockRange>,
    target: u32,
    usable: u32,
}

impl Model {
    fn new(window: u32) -> Self {
        let n = window.next_multiple_of(GRANULE) as usize;
        Self {
            window,
            blocks: vec![Block::Unplugged; n],
            slot: vec![None; n],
            visible: vec![false; n],
            discards: VecDeque::new(),
            target: 0,
            usable: 0,
        }
    }

    fn plugged(&self) -> u32 {
        self.blocks.iter().filter(|&&block| block == Block::Plugged).count() as u32
    }

    fn granules(&self) -> u32 {
        self.target.next_multiple_of(GRANULE)
    }

    /// Section 5.15.4.2: the usable region holds the target and does not shrink.
    fn set_target(&mut self, blocks: u32) {
        self.target = blocks;
        self.usable = self.usable.max(self.granules());
    }

    /// What the guest can touch, has touched, or may yet be given.
    fn reach(&self) -> u32 {
        let held = self
            .blocks
            .iter()
            .zip(&self.slot)
            .filter(|(block, slot)| slot.is_some() || matches!(block, Block::Discarding(_)));
        (held.count() as u32).max(self.granules().min(self.window))
    }

    /// What the specification says to `request`, and the new state of the blocks.
    fn answer(&mut self, request: Request) -> Answer {
        let usable = self.usable;
        let (Request::Plug(range) | Request::Unplug(range) | Request::State(range)) = request else {
            for block in self.blocks.iter_mut().filter(|block| **block == Block::Plugged) {
                *block = Block::Unplugged;
            }
            // The one request that may shrink it.
            self.usable = self.granules();
            return Answer::Done;
        };
        if range.end() > usable {
            return Answer::Error;
        }
        let plugged = self.plugged();
        let blocks = &mut self.blocks[range.first() as usize..range.end() as usize];
        let inside = blocks.iter().filter(|&&block| block == Block::Plugged).count() as u32;
        match request {
            Request::Plug(_) => {
                if inside != 0 {
                    return Answer::Error;
                } else if plugged + range.count() > self.target {
                    return Answer::Nack;
                } else if blocks.iter().any(|block| matches!(block, Block::Discarding(_))) {
                    return Answer::Busy;
                }
                blocks.fill(Block::Plugged);
            }
            Request::Unplug(_) => {
                if inside != range.count() {
                    return Answer::Error;
                }
                blocks.fill(Block::Unplugged);
            }
            _ if inside == 0 => return Answer::State(BlockState::Unplugged),
            _ if inside == range.count() => return Answer::State(BlockState::Plugged),
            _ => return Answer::State(BlockState::Mixed),
        }
        Answer::Done
    }

    fn cells<T>(cells: &mut [T], range: BlockRange) -> &mut [T] {
        &mut cells[range.first() as usize..range.end() as usize]
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Back(range) => assert!(Self::cells(&mut self.blocks, *range).iter().all(|b| *b == Block::Plugged)),
            Effect::AddSlot(range) => {
                for slot in Self::cells(&mut self.slot, *range) {
                    assert_eq!(slot.replace(*range), None, "slots overlap: {effect:?}");
                }
            }
            Effect::DeleteSlot(range) => {
                for slot in Self::cells(&mut self.slot, *range) {
                    assert_eq!(slot.take(), Some(*range), "not a slot as added: {effect:?}");
                }
            }
            Effect::ReplaceSlot { old, new } => {
                self.apply(&Effect::DeleteSlot(*old));
                for part in new {
                    assert!(old.contains(*part));
                    self.apply(&Effect::AddSlot(*part));
                }
            }
            Effect::Reveal(range) => Self::cells(&mut self.visible, *range).fill(true),
            Effect::Revoke(runs) => {
                for run in runs {
                    let cells = Self::cells(&mut self.visible, *run);
                    assert!(cells.iter().all(|visible| *visible), "not visible: {effect:?}");
                    cells.fill(false);
                }
                let span = runs.iter().copied().reduce(BlockRange::join).unwrap();
                let cells = Self::cells(&mut self.visible, span);
                assert!(cells.iter().all(|visible| !visible), "visible between what is revoked: {effect:?}");
            }
            Effect::Discard(range) => {
                self.discards.push_back(*range);
                for (block, visible) in
                    Self::cells(&mut self.blocks, *range).iter_mut().zip(&self.visible[range.first() as usize..])
                {
                    assert!(!visible, "devices can still reach what is discarded: {effect:?}");
                    *block = match *block {
                        Block::Plugged => panic!("a plugged block is discarded: {effect:?}"),
                        Block::Unplugged => Block::Discarding(1),
                        Block::Discarding(n) => Block::Discarding(n + 1),
                    };
                }
            }
        }
    }

    fn discard_done(&mut self) -> Option<BlockRange> {
        let range = self.discards.pop_front()?;
        for block in Self::cells(&mut self.blocks, range) {
            *block = match *block {
                Block::Discarding(1) => Block::Unplugged,
                Block::Discarding(n) => Block::Discarding(n - 1),
                other => panic!("{other:?} was to be discarded in {range}"),
            };
        }
        Some(range)
    }

    fn check(&self, partition: &Partition) -> Result<(), TestCaseError> {
        let count = |wanted: fn(&Block) -> bool| size(self.blocks.iter().filter(|block| wanted(block)).count() as u32);
        prop_assert_eq!(partition.plugged(), count(|block| *block == Block::Plugged));
        prop_assert_eq!(partition.discarding(), count(|block| matches!(block, Block::Discarding(_))));
        prop_assert_eq!((partition.target(), partition.usable()), (size(self.target), size(self.usable)));
        prop_assert_eq!(partition.reach(), size(self.reach()));
        prop_assert!(self.slot[self.usable as usize..].iter().all(Option::is_none), "a slot beyond the usable region");
        for (index, block) in self.blocks.iter().enumerate() {
            let plugged = *block == Block::Plugged;
            prop_assert_eq!(self.visible[index], plugged, "devices see plugged blocks only: block {}", index);
            prop_assert!(!plugged || self.slot[index].is_some(), "block {} has no slot", index);
        }
        let mut slots: Vec<_> = self.slot.iter().flatten().copied().collect();
        slots.dedup();
        prop_assert_eq!(partition.slots(), &slots[..]);
        prop_assert!(partition.plugged().get() != 0 || slots.is_empty(), "nothing plugged, yet there are {:?}", slots);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn behaves_like_the_model(
        window in prop_oneof![Just(BLOCKS), 1..=BLOCKS],
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let (mut partition, mut model) = (Partition::new(window, GRANULE), Model::new(window));
        for step in steps {
            let (reach, usable) = (partition.reach(), partition.usable());
            match step.clone() {
                Step::Request(request) => {
                    let outcome = partition.request(request);
                    prop_assert_eq!(outcome.answer, model.answer(request), "{:?}", request);
                    prop_assert!(outcome.effects.is_empty() || outcome.answer == Answer::Done);
                    outcome.effects.iter().for_each(|effect| model.apply(effect));
                }
                Step::Target(blocks) => match partition.set_target(size(blocks)) {
                    Ok(()) => model.set_target(blocks),
                    Err(_) => prop_assert!(blocks > window),
                },
                Step::TrimSlots => {
                    partition.trim_slots().iter().for_each(|effect| model.apply(effect));
                    prop_assert!(!partition.can_trim_slots());
                    let granules = model.blocks.chunks(GRANULE as usize).zip(model.slot.chunks(GRANULE as usize));
                    for (granule, (blocks, slots)) in granules.enumerate() {
                        for slot in slots.iter().flatten() {
                            let mut inside = blocks.iter().zip(slots).filter(|(_, other)| **other == Some(*slot));
                            prop_assert!(inside.any(|(block, _)| *block == Block::Plugged), "{} in {}", slot, granule);
                        }
                    }
                }
                Step::DiscardDone => if let Some(range) = model.discard_done() {
                    prop_assert!(partition.discard_done(range));
                },
            }
            model.check(&partition)?;
            let added = match step {
                Step::Request(Request::Plug(range)) => range.count(),
                Step::Target(blocks) => blocks + GRANULE,
                _ => 0,
            };
            prop_assert!(partition.reach().get() <= reach.get() + size(added).get(), "{:?} adds more than it asks for", step);
            let shrinks = matches!(step, Step::Request(Request::UnplugAll));
            prop_assert!(partition.usable() >= usable || shrinks, "{:?} shrinks the usable region", step);
        }
        while let Some(range) = model.discard_done() {
            prop_assert!(partition.discard_done(range));
        }
        prop_assert_eq!(partition.discarding(), size(0));
    }
}
