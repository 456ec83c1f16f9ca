use bellows_memory::{Layout, LayoutSpec};

use super::*;

fn id(number: u16) -> PartitionId {
    PartitionId::new(number).unwrap()
}

/// Windows of so many MiB, of which up to `most` MiB are prepared.
fn plan(windows: &[u64], most: u64) -> Plan {
    let windows = windows.iter().map(|&mib| ByteSize::mib(mib)).collect();
    let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), windows, 40)).unwrap();
    Plan::new(layout.windows(), ByteSize::mib(most))
}

/// The next step as partition and MiB; its target is set.
fn step(plan: &mut Plan) -> (u16, u64) {
    match plan.next() {
        Next::Step(step) => {
            plan.was_set();
            (step.id.get(), step.size.get() >> 20)
        }
        next => panic!("{next:?}"),
    }
}

/// Lets the step in progress come to its good end.
fn finish(plan: &mut Plan) {
    assert!(plan.park());
    plan.was_set();
    plan.end_step(Ok(()));
}

fn prepared(plan: &Plan) -> Vec<u64> {
    plan.report().partitions.iter().map(|part| part.prepared.get() >> 20).collect()
}

#[test]
fn partitions_are_prepared_in_order_a_memory_block_at_a_time_up_to_the_bound() {
    let mut plan = plan(&[384, 100, 1024], 320);
    let mut steps = Vec::new();
    while !plan.is_done() {
        steps.push(step(&mut plan));
        finish(&mut plan);
    }
    assert_eq!(steps, [(1, 128), (1, 256), (1, 320), (2, 100), (3, 128), (3, 256), (3, 320)]);
    assert_eq!(plan.next(), Next::Done);
    let report = plan.report();
    assert!(report.partitions.iter().all(|part| part.prepared == part.wanted && part.reason.is_none()), "{report:?}");
    // Three, one and three memory blocks.
    assert_eq!(report.memory_map, ByteSize::mib(7 * 2));
}

#[test]
fn without_a_bound_nothing_is_prepared() {
    let mut plan = plan(&[384, 128], 0);
    assert!(plan.is_done());
    assert_eq!((plan.next(), plan.report()), (Next::Done, PreparationReport::default()));
}

#[test]
fn no_step_begins_beside_a_call_of_any_partition() {
    let mut plan = plan(&[256, 256], 256);
    assert_eq!(plan.begin_call(id(2)), Some(Begun { beside_step: false }));
    assert_eq!(plan.begin_call(id(2)), Some(Begun { beside_step: false }));
    assert_eq!(plan.next(), Next::GiveWay);
    plan.end_call(id(2));
    assert_eq!(plan.next(), Next::GiveWay, "one of two is in progress");
    plan.end_call(id(2));
    assert_eq!(step(&mut plan), (1, 128));
    assert_eq!(plan.begin_call(id(2)), Some(Begun { beside_step: true }), "it does not wait");
    finish(&mut plan);
    assert_eq!(plan.next(), Next::GiveWay);
    plan.end_call(id(2));
    assert_eq!(step(&mut plan), (1, 256));
}

#[test]
fn a_call_waits_only_while_a_target_of_its_partition_is_being_set() {
    let mut plan = plan(&[256, 256], 256);
    assert!(matches!(plan.next(), Next::Step(_)));
    assert_eq!(plan.begin_call(id(1)), None);
    assert!(plan.begin_call(id(2)).is_some());
    plan.was_set();
    assert!(plan.begin_call(id(1)).is_some());
    assert!(!plan.park(), "the call may set a target at any moment");
    assert!(plan.begin_call(id(1)).is_some());
    plan.end_call(id(1));
    plan.end_call(id(1));
    assert!(plan.park(), "a call for another partition does not keep it from parking");
    assert_eq!(plan.begin_call(id(1)), None);
    plan.was_set();
    assert!(plan.begin_call(id(1)).is_some());
}

#[test]
fn a_partition_that_is_over_keeps_what_it_has_and_the_next_one_follows() {
    let mut plan = plan(&[384, 128], 384);
    step(&mut plan);
    finish(&mut plan);
    assert_eq!(step(&mut plan), (1, 256));
    plan.end_step(Err(NotPrepared::Used));
    assert_eq!(step(&mut plan), (2, 128));
    assert!(!plan.is_done(), "a step is in progress");
    finish(&mut plan);
    assert!(plan.is_done());
    assert_eq!(prepared(&plan), [128, 128]);
    let [first, second] = &plan.report().partitions[..] else { panic!("two") };
    assert_eq!((&first.reason, &second.reason), (&Some(NotPrepared::Used), &None));
    assert_eq!((first.memory_map, second.memory_map), (ByteSize::mib(2), ByteSize::mib(2)));
}

#[test]
fn giving_up_spares_what_is_done() {
    let mut plan = plan(&[128, 256, 128], 256);
    step(&mut plan);
    finish(&mut plan);
    plan.give_up(&NotPrepared::Stock);
    assert!(plan.is_done());
    let reasons: Vec<_> = plan.report().partitions.into_iter().map(|part| part.reason).collect();
    assert_eq!(reasons, [None, Some(NotPrepared::Stock), Some(NotPrepared::Stock)]);
}

#[test]
fn nothing_begins_after_the_end_and_nothing_waits_for_a_call() {
    let mut plan = plan(&[256], 256);
    step(&mut plan);
    plan.begin_call(id(1)).unwrap();
    assert!(!plan.park());
    plan.end();
    assert!(plan.park());
    plan.end_step(Err(NotPrepared::Ended));
    assert_eq!(plan.next(), Next::Done);
}

/// In any order of calls, steps and failures: the rules hold at each moment, and once calls end so does the preparation.
#[test]
fn any_order_of_events_keeps_the_rules() {
    let mut state = 1_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..300 {
        let mut plan = plan(&[300, 128, 1024, 2], 512);
        let (wanted, mut calls) = ([300, 128, 512, 2], Vec::new());
        // The step in progress, and whether its target is being set.
        let mut now: Option<(Step, bool, bool)> = None;
        for event in 0..10_000 {
            // Calls come for a while.
            let comes = event < 200;
            match random(5) {
                0 if comes => {
                    let called = id(1 + u16::try_from(random(4)).unwrap());
                    let begun = plan.begin_call(called);
                    let put_off = now.is_some_and(|(step, setting, _)| setting && step.id == called);
                    assert_eq!(begun.is_none(), put_off);
                    assert!(begun.is_none_or(|begun| begun.beside_step == now.is_some()));
                    calls.extend(begun.map(|_| called));
                }
                1 if !calls.is_empty() => {
                    let over = calls.swap_remove(usize::try_from(random(calls.len() as u64)).unwrap());
                    plan.end_call(over);
                }
                2 if now.is_none() => match plan.next() {
                    Next::Step(step) => {
                        assert!(calls.is_empty(), "{step:?} beside {calls:?}");
                        let report = plan.report();
                        let index = usize::from(step.id.get()) - 1;
                        let before = |part: &PreparedPartition| part.prepared == part.wanted || part.reason.is_some();
                        assert!(report.partitions[..index].iter().all(before), "out of order: {step:?} in {report:?}");
                        let had = report.partitions[index].prepared.get() >> 20;
                        assert_eq!(step.size.get() >> 20, (had + 128).min(wanted[index]));
                        assert_eq!(step.first, had == 0);
                        now = Some((step, true, false));
                    }
                    Next::GiveWay => assert!(!calls.is_empty()),
                    Next::Done => assert!(plan.is_done()),
                },
                3 => {
                    if let Some((_, setting @ true, _)) = &mut now {
                        plan.was_set();
                        *setting = false;
                    } else if let Some((step, setting, parking @ false)) = &mut now {
                        (*setting, *parking) = (plan.park(), true);
                        assert_eq!(*setting, !calls.contains(&step.id), "{step:?} beside {calls:?}");
                        *parking = *setting;
                    }
                }
                4 if now.is_some_and(|(_, setting, parking)| !setting && (parking || random(3) == 0)) => {
                    let parked = now.take().is_some_and(|(_, _, parking)| parking);
                    plan.end_step(if parked { Ok(()) } else { Err(NotPrepared::Used) });
                }
                _ => {}
            }
            assert_eq!(plan.is_busy(), now.is_some());
        }
        assert!(plan.is_done() && calls.is_empty(), "{plan:?}");
        for (part, wanted) in plan.report().partitions.iter().zip(wanted) {
            assert_eq!(part.reason.is_none(), part.prepared == ByteSize::mib(wanted), "{part:?}");
        }
    }
}
