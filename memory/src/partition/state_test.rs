use super::*;

/// Blocks of a granule in these tests.
pub(super) const GRANULE: u32 = 8;
/// Blocks of the window.
pub(super) const BLOCKS: u32 = 64;

pub(super) fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

pub(super) fn size(blocks: u32) -> ByteSize {
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
