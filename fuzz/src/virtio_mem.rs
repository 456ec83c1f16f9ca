//! virtio-mem requests, turns of the host and late discards, against a partition kept block by block.

use std::collections::VecDeque;

use crate::Input;
use bellows_devices::virtio::mem::request::{self, VirtioMemReq};
use bellows_memory::partition::{Answer, BlockState, Effect, Partition, Request};
use bellows_memory::{BLOCK, BlockRange, ByteSize, Layout, LayoutSpec, Window};
use vm_memory::ByteValued as _;

/// Blocks of the window: some words of a set of them.
const BLOCKS: u16 = 192;

/// The window of a partition of [`BLOCKS`].
fn window() -> Window {
    let size = ByteSize::bytes(u64::from(BLOCKS) * BLOCK.get());
    let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), vec![size], 40)).expect("it fits");
    layout.windows()[0]
}

/// What is known of a block from answers and effects.
#[derive(Clone, Copy, Default)]
struct Block {
    plugged: bool,
    /// Devices reach it.
    visible: bool,
    /// The slot it lies in.
    slot: Option<BlockRange>,
    /// May have host memory.
    touched: bool,
    /// Discards that wait.
    discards: u32,
}

struct Model {
    blocks: Vec<Block>,
    /// Blocks of a granule.
    granule: u32,
    /// Blocks that the guest may plug: since the last UNPLUG ALL as many as the largest requested size takes.
    usable: u32,
    discards: VecDeque<BlockRange>,
}

impl Model {
    fn at(&mut self, range: BlockRange) -> &mut [Block] {
        &mut self.blocks[range.first() as usize..range.end() as usize]
    }

    fn plugged(&self) -> u64 {
        self.blocks.iter().filter(|block| block.plugged).count() as u64
    }

    fn granules(&self, size: ByteSize) -> u32 {
        let blocks = u32::try_from(size.get() / BLOCK.get()).expect("a size in the window");
        blocks.next_multiple_of(self.granule)
    }

    fn requested(&mut self, size: ByteSize) {
        self.usable = self.usable.max(self.granules(size));
    }

    /// What a request has to be answered, and what it makes of the blocks.
    fn answer(&mut self, request: Request, partition: &Partition) -> Answer {
        let plugged = self.plugged();
        let (Request::Plug(range) | Request::Unplug(range) | Request::State(range)) = request else {
            self.blocks.iter_mut().for_each(|block| block.plugged = false);
            self.usable = self.granules(partition.target());
            return Answer::Done;
        };
        if range.end() > self.usable {
            return Answer::Error;
        }
        let blocks = self.at(range);
        let inside = blocks.iter().filter(|block| block.plugged).count();
        match request {
            Request::Plug(_) => {
                if inside != 0 {
                    return Answer::Error;
                }
                if (plugged + blocks.len() as u64) * BLOCK.get() > partition.target().get() {
                    return Answer::Nack;
                }
                if blocks.iter().any(|block| block.discards != 0) {
                    return Answer::Busy;
                }
                blocks.iter_mut().for_each(|block| block.plugged = true);
            }
            Request::Unplug(_) if inside != blocks.len() => return Answer::Error,
            Request::Unplug(_) => blocks.iter_mut().for_each(|block| block.plugged = false),
            _ if inside == blocks.len() => return Answer::State(BlockState::Plugged),
            _ if inside == 0 => return Answer::State(BlockState::Unplugged),
            _ => return Answer::State(BlockState::Mixed),
        }
        Answer::Done
    }

    fn apply(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Back(range) => self.at(*range).iter_mut().for_each(|block| block.touched = true),
                Effect::AddSlot(range) => self.add_slot(*range),
                Effect::DeleteSlot(range) => self.delete_slot(*range),
                Effect::ReplaceSlot { old, new } => {
                    self.delete_slot(*old);
                    for part in new {
                        assert!(old.contains(*part), "{effect:?}");
                        self.add_slot(*part);
                    }
                }
                Effect::Reveal(range) => {
                    for block in self.at(*range) {
                        assert!(!block.visible && block.plugged && block.slot.is_some(), "{effect:?}");
                        block.visible = true;
                    }
                }
                Effect::Revoke(runs) => {
                    for run in runs {
                        for block in self.at(*run) {
                            assert!(block.visible, "{effect:?}");
                            block.visible = false;
                        }
                    }
                }
                Effect::Discard(range) => {
                    self.discards.push_back(*range);
                    for block in self.at(*range) {
                        assert!(!block.plugged && !block.visible, "{effect:?}");
                        block.discards += 1;
                    }
                }
            }
        }
    }

    fn add_slot(&mut self, range: BlockRange) {
        for block in self.at(range) {
            assert_eq!(block.slot.replace(range), None, "slots overlap: {range}");
            block.touched = true;
        }
    }

    fn delete_slot(&mut self, range: BlockRange) {
        for block in self.at(range) {
            assert_eq!(block.slot.take(), Some(range), "not a slot as it was added");
        }
    }

    /// The oldest discard is carried out.
    fn discard(&mut self, partition: &mut Partition) {
        let Some(range) = self.discards.pop_front() else { return };
        let other = BlockRange::new(range.first(), range.count() + 1);
        if let Some(other) = other.filter(|other| !self.discards.contains(other)) {
            assert!(!partition.discard_done(other), "not what was asked for: {other}");
        }
        assert!(partition.discard_done(range), "{range}");
        for block in self.at(range) {
            assert!(!block.plugged, "{range} was plugged again before its discard");
            block.discards -= 1;
            block.touched = block.slot.is_some();
        }
    }

    fn check(&self, partition: &Partition) {
        assert!(partition.plugged() <= partition.usable() && partition.target() <= partition.usable());
        assert_eq!(partition.usable().get(), u64::from(self.usable) * BLOCK.get());
        let held = self.blocks.iter().filter(|block| block.slot.is_some() || block.discards != 0).count() as u64;
        let reach = (held * BLOCK.get()).max(partition.target().get());
        assert!(partition.reach().get() >= reach, "{} are charged of {reach}", partition.reach());
        assert_eq!(partition.plugged().get(), self.plugged() * BLOCK.get());
        let discarding = self.blocks.iter().filter(|block| block.discards != 0).count() as u64;
        assert_eq!(partition.discarding().get(), discarding * BLOCK.get());

        let mut plugged = vec![false; self.blocks.len()];
        for run in partition.plugged_runs() {
            plugged[run.first() as usize..run.end() as usize].fill(true);
        }
        let mut slots = vec![None; self.blocks.len()];
        let mut end = 0;
        for &slot in partition.slots() {
            assert!(end <= slot.first(), "slots overlap or are out of order: {slot}");
            assert!(slot.end() <= self.usable, "beyond the usable region: {slot}");
            slots[slot.first() as usize..slot.end() as usize].fill(Some(slot));
            end = slot.end();
        }
        for ((block, plugged), slot) in self.blocks.iter().zip(plugged).zip(slots) {
            assert!(block.plugged == plugged && block.visible == plugged && block.slot == slot);
            assert!(!block.plugged || block.slot.is_some(), "plugged, but the guest can't reach it");
            assert!(!block.touched || block.slot.is_some() || block.discards != 0, "host memory is left behind");
        }
    }
}

/// A request as a driver writes it, mostly about the window.
fn request(input: &mut Input, window: Window) -> VirtioMemReq {
    let mut request = VirtioMemReq::default();
    let kind = input.byte();
    if kind >= 0xf0 {
        let raw = input.bytes(size_of::<VirtioMemReq>());
        request.as_mut_slice()[..raw.len()].copy_from_slice(raw);
        return request;
    }
    request.type_ = u16::from(kind % 5).into();
    request.addr = (window.range().start().0 + u64::from(input.byte()) * BLOCK.get()).into();
    request.nb_blocks = u16::from(input.byte()).into();
    request
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let window = window();
    let mut input = Input::new(data);
    let granule = [64, 8, 1, 5][usize::from(input.byte() % 4)];
    let mut partition = Partition::new(BLOCKS.into(), granule);
    let blocks = vec![Block::default(); u32::from(BLOCKS).next_multiple_of(granule) as usize];
    let mut model = Model { blocks, granule, usable: 0, discards: VecDeque::new() };
    while !input.is_empty() {
        let reach = partition.reach();
        match input.byte() % 8 {
            0..=3 => {
                let Ok(request) = request::parse(&request(&mut input, window), window) else { continue };
                let expected = model.answer(request, &partition);
                let outcome = partition.request(request);
                assert_eq!(outcome.answer, expected, "{request:?}");
                assert!(outcome.effects.is_empty() || outcome.answer == Answer::Done, "{request:?}");
                if let (Request::Plug(range), Answer::Done) = (request, outcome.answer) {
                    assert!(partition.plugged() <= partition.target(), "{request:?}");
                    assert!(partition.reach().get() <= reach.get() + range.bytes(), "{request:?}");
                } else {
                    assert!(partition.reach() <= reach, "{request:?}");
                }
                let _ = request::encode(outcome.answer);
                model.apply(&outcome.effects);
            }
            4 => {
                let size = ByteSize::bytes(u64::from(input.byte()) * BLOCK.get());
                match partition.set_target(size) {
                    Ok(()) => model.requested(size),
                    Err(_) => assert!(size > partition.window()),
                }
            }
            5 => {
                let size = ByteSize::bytes(input.u64());
                if partition.set_target(size).is_ok() {
                    model.requested(size);
                }
            }
            6 => {
                let trimmable = partition.can_trim_slots();
                let effects = partition.trim_slots();
                assert!(!partition.can_trim_slots() && trimmable != effects.is_empty(), "{effects:?}");
                model.apply(&effects);
            }
            _ => model.discard(&mut partition),
        }
        model.check(&partition);
    }

    // However it stands, the host gets everything back.
    partition.set_target(ByteSize::bytes(0)).expect("nothing fits everywhere");
    let _ = model.answer(Request::UnplugAll, &partition);
    model.apply(&partition.unplug_all().effects);
    while !model.discards.is_empty() {
        model.discard(&mut partition);
    }
    model.check(&partition);
    assert!(partition.slots().is_empty() && partition.usable() == ByteSize::bytes(0));
    assert!(model.blocks.iter().all(|block| !block.touched));
}
