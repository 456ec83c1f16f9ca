use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const PRESSURE: Observed = Observed { pressure: true, short: true, host_pressure: false };
const QUIET: Observed = Observed { pressure: false, short: true, host_pressure: false };
const HOST: Observed = Observed { pressure: true, short: true, host_pressure: true };

fn plan(max: u64) -> Plan {
    Plan::new(&ElasticBaseConfig::new(ByteSize::gib(64)), ByteSize::mib(max))
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn mib(step: Step) -> (char, u64) {
    match step {
        Step::Rest => ('.', 0),
        Step::Grow(size) => ('+', size.get() / MIB),
        Step::Shrink(size) => ('-', size.get() / MIB),
    }
}

/// Does what the plan says, without a fault.
fn follow(plan: &mut Plan, now: Duration, observed: Observed) -> (char, u64) {
    let step = plan.next(now, observed);
    match step {
        Step::Grow(size) => plan.has_grown(now, size),
        Step::Shrink(size) => plan.has_shrunk(now, size, size),
        Step::Rest => {}
    }
    mib(step)
}

#[test]
fn a_burst_doubles_each_step_up_to_the_most() {
    let mut plan = plan(1000);
    let steps: Vec<_> = (0..5).map(|second| follow(&mut plan, at(second), PRESSURE)).collect();
    assert_eq!(steps, [('+', 128), ('+', 384), ('+', 896), ('+', 1000), ('.', 0)]);
}

#[test]
fn what_comes_now_and_then_comes_in_single_steps() {
    let mut plan = plan(1000);
    assert_eq!(follow(&mut plan, at(0), PRESSURE), ('+', 128));
    assert_eq!(follow(&mut plan, at(5), PRESSURE), ('+', 256));
}

#[test]
fn after_ten_quiet_seconds_half_goes_each_second() {
    let mut plan = plan(1024);
    for second in 0..4 {
        follow(&mut plan, at(second), PRESSURE);
    }
    assert_eq!(plan.idle(), PACE);
    assert_eq!(follow(&mut plan, at(12), QUIET), ('.', 0));
    let steps: Vec<_> = (13..18).map(|second| follow(&mut plan, at(second), QUIET)).collect();
    assert_eq!(steps, [('-', 512), ('-', 256), ('-', 128), ('-', 0), ('.', 0)]);
    assert_eq!(plan.idle(), LONG);
}

#[test]
fn pressure_puts_a_shrink_off() {
    let mut plan = plan(128);
    follow(&mut plan, at(0), PRESSURE);
    assert_eq!(follow(&mut plan, at(9), PRESSURE), ('.', 0));
    assert_eq!(follow(&mut plan, at(11), QUIET), ('.', 0));
    assert_eq!(follow(&mut plan, at(19), QUIET), ('-', 0));
}

#[test]
fn instances_at_limits_of_their_own_make_nothing_grow() {
    let mut plan = plan(1024);
    assert_eq!(follow(&mut plan, at(0), Observed { short: false, ..PRESSURE }), ('.', 0));
}

#[test]
fn a_host_that_is_short_gets_memory_back_at_once() {
    let mut plan = plan(1024);
    assert_eq!(follow(&mut plan, at(0), HOST), ('.', 0));
    follow(&mut plan, at(0), PRESSURE);
    follow(&mut plan, at(1), PRESSURE);
    assert_eq!(follow(&mut plan, at(1), HOST), ('-', 128));
    assert_eq!(follow(&mut plan, at(1), HOST), ('-', 0));
}

#[test]
fn what_is_wanted_again_at_once_stays_longer() {
    let mut plan = plan(128);
    follow(&mut plan, at(0), PRESSURE);
    assert_eq!(follow(&mut plan, at(10), QUIET), ('-', 0));
    assert_eq!(follow(&mut plan, at(12), PRESSURE), ('+', 128));
    assert_eq!(follow(&mut plan, at(31), QUIET), ('.', 0));
    assert_eq!(follow(&mut plan, at(32), QUIET), ('-', 0));
    assert_eq!(follow(&mut plan, at(51), PRESSURE), ('+', 128));
    assert_eq!(follow(&mut plan, at(90), QUIET), ('.', 0), "twice as long again");
    assert_eq!(follow(&mut plan, at(91), QUIET), ('-', 0));
    assert_eq!(follow(&mut plan, at(131), PRESSURE), ('+', 128), "long after");
    assert_eq!(follow(&mut plan, at(141), QUIET), ('-', 0));
}

#[test]
fn what_is_in_use_is_asked_for_later() {
    let mut plan = plan(256);
    follow(&mut plan, at(0), PRESSURE);
    assert_eq!(mib(plan.next(at(10), QUIET)), ('-', 0));
    plan.has_shrunk(at(10), ByteSize::bytes(0), ByteSize::mib(100));
    assert_eq!(follow(&mut plan, at(19), QUIET), ('.', 0));
    assert_eq!(follow(&mut plan, at(20), QUIET), ('-', 0));
}

#[test]
fn a_growth_that_failed_is_not_tried_again_soon() {
    let mut plan = plan(256);
    assert_eq!(mib(plan.next(at(0), PRESSURE)), ('+', 128));
    plan.has_not_grown(at(0));
    assert_eq!(follow(&mut plan, at(9), PRESSURE), ('.', 0));
    assert_eq!(follow(&mut plan, at(10), PRESSURE), ('+', 128));
}

proptest! {
    /// Whatever a hostile guest reports: sizes are whole blocks within the bound, a growth is one, and a shrink is one.
    #[test]
    fn every_step_is_within_the_bounds(
        max in 1_u64..2000,
        history in prop::collection::vec((0_u64..15, any::<bool>(), any::<bool>(), any::<bool>(), 0_u64..4000), 1..60),
    ) {
        let max = max * 2;
        let mut plan = plan(max);
        let mut now = Duration::ZERO;
        for (pause, pressure, short, host_pressure, kept) in history {
            now += at(pause);
            let before = plan.grown().get();
            match plan.next(now, Observed { pressure, short, host_pressure }) {
                Step::Rest => {}
                Step::Grow(size) => {
                    prop_assert!(pressure && short && !host_pressure);
                    prop_assert!(size.get() > before && size.get() <= max * MIB && size.is_multiple_of(BLOCK));
                    if kept % 3 == 0 { plan.has_not_grown(now) } else { plan.has_grown(now, size) }
                }
                Step::Shrink(size) => {
                    prop_assert!(size.get() < before && size.is_multiple_of(BLOCK));
                    let left = (kept / 2 * 2 * MIB).clamp(size.get(), before);
                    plan.has_shrunk(now, size, ByteSize::bytes(left));
                }
            }
            prop_assert!(plan.grown().get() <= max * MIB);
        }
    }
}
