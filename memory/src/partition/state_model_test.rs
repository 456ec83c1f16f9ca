//! Any history of a partition, beside a model of it and beside a copy that was saved and restored.

use proptest::prelude::*;

use super::tests::{BLOCKS, GRANULE, range, size};
use super::*;

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

/// Steps `partition` on: the answer, the effects and what else the step says.
fn advance(partition: &mut Partition, step: &Step) -> String {
    match step {
        Step::Request(request) => format!("{:?}", partition.request(*request)),
        Step::Target(blocks) => format!("{:?}", partition.set_target(size(*blocks))),
        Step::TrimSlots => format!("{:?}", partition.trim_slots()),
        Step::DiscardDone => {
            let due = partition.pending.front().copied();
            format!("{due:?} {:?}", due.map(|range| partition.discard_done(range)))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_restored_partition_goes_on_as_the_saved_one_does(
        window in prop_oneof![Just(BLOCKS), 1..=BLOCKS],
        before in prop::collection::vec(any_step(), 0..40),
        after in prop::collection::vec(any_step(), 1..40),
    ) {
        let mut saved = Partition::new(window, GRANULE);
        for step in &before {
            advance(&mut saved, step);
        }
        let text = serde_json::to_string(&saved.save()).unwrap();
        let mut restored = Partition::restore(window, GRANULE, &serde_json::from_str(&text).unwrap()).unwrap();
        for step in &after {
            prop_assert_eq!(advance(&mut restored, step), advance(&mut saved, step), "{:?}", step);
            prop_assert_eq!(restored.save(), saved.save());
            prop_assert_eq!((restored.reach(), restored.discarding()), (saved.reach(), saved.discarding()));
        }
    }

    /// What the host reads back may be anything: it is refused, or a partition that obeys the rules.
    #[test]
    fn any_state_is_refused_or_valid(
        target in 0..BLOCKS + 2,
        usable in 0..BLOCKS + 2,
        plugged in prop::collection::vec(any_range(), 0..4),
        slots in prop::collection::vec(any_range(), 0..3),
        discards in prop::collection::vec(any_range(), 0..3),
    ) {
        let state = PlugState { target: size(target), usable: size(usable), plugged, slots, discards };
        if let Ok(mut partition) = Partition::restore(BLOCKS, GRANULE, &state) {
            prop_assert!(partition.target() <= partition.window() && partition.plugged() <= partition.usable());
            let _ = partition.trim_slots();
            prop_assert!(!partition.can_trim_slots());
            let _ = partition.unplug_all();
            prop_assert_eq!(partition.slots(), []);
        }
    }
}
