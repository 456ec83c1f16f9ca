//! Runs of free page hinting from both sides.

use super::*;

const STOP: u32 = 0;
const DONE: u32 = 1;
const PAGES: std::ops::Range<u64> = FREE / PAGE..FREE / PAGE + 8;

#[test]
fn pages_of_a_run_go_back() {
    let mut machine = Machine::new(&everything());
    machine.fill(PAGES);
    machine.free(HINTS, &[PAGES.start]);
    assert_eq!(machine.whole(PAGES), PAGES.collect::<Vec<_>>(), "there is no run");
    machine.handle.start_hinting(true).unwrap();
    machine.driver.interrupt.wait_config(1);
    assert_eq!(machine.config()[2], 2);
    machine.free(HINTS, &[PAGES.start]);
    assert_eq!(machine.whole(PAGES), PAGES.collect::<Vec<_>>(), "the guest has not begun");
    machine.command(2);
    machine.free(HINTS, &[PAGES.start, PAGES.start + 3]);
    assert_eq!(machine.whole(PAGES), [1, 2, 4, 5, 6, 7].map(|page| PAGES.start + page));
    machine.command(STOP);
    let report = machine.handle.wait(PATIENCE, |report| report.hinting.is_complete()).unwrap();
    assert_eq!(report.hinting, HintingStatus { host_cmd: DONE, guest_cmd: Some(STOP) });
    assert_eq!(report.discarded, Discards { hinted: kib(8), ..Discards::default() });
    machine.driver.interrupt.wait_config(2);
    assert_eq!(machine.config()[2], DONE);
    machine.free(HINTS, &[PAGES.start + 1]);
    machine.command(2);
    machine.free(HINTS, &[PAGES.start + 1]);
    assert_eq!(machine.discarded().hinted, kib(8), "the run is over");
}

/// A command and pages may come in one request.
#[test]
fn the_guest_keeps_its_pages_until_the_host_stops() {
    let mut machine = Machine::new(&everything());
    machine.handle.start_hinting(false).unwrap();
    machine.fill(PAGES);
    machine.tell(HINTS, &[Part::Readable(&[2, 0, 0, 0]), Part::WritableAt(GuestAddress(FREE), 8 * PAGE as u32)]);
    machine.command(STOP);
    assert_eq!(machine.whole(PAGES), [0; 0]);
    assert_eq!(machine.handle.report().hinting, HintingStatus { host_cmd: 2, guest_cmd: Some(STOP) });
    machine.handle.stop_hinting().unwrap();
    machine.driver.interrupt.wait_config(2);
    assert_eq!(machine.config()[2], DONE);
}

/// When a stop has returned, the driver may use all pages that it named, served or not.
#[test]
fn no_page_goes_back_after_a_stop() {
    let mut machine = Machine::new(&everything());
    for run in 2..200 {
        machine.handle.start_hinting(false).unwrap();
        machine.command(run);
        machine.fill(PAGES);
        let queue = &mut machine.driver.queues[HINTS];
        let pending: Vec<_> =
            PAGES.map(|page| queue.add(&[Part::WritableAt(GuestAddress(page * PAGE), PAGE as u32)])).collect();
        queue.kick();
        (0..run * 10).for_each(|_| std::hint::spin_loop());
        machine.handle.stop_hinting().unwrap();
        machine.fill(PAGES);
        for _ in pending {
            machine.driver.queues[HINTS].wait_used();
        }
        assert_eq!(machine.whole(PAGES), PAGES.collect::<Vec<_>>(), "run {run}");
    }
}

/// The last pages of a large range go after the first; a stop in between returns when all have gone.
#[test]
fn a_stop_waits_for_the_range_that_is_being_discarded() {
    const RANGE: u64 = 64 << 20;
    let mut machine = Machine::new(&everything());
    machine.handle.start_hinting(false).unwrap();
    machine.command(2);
    let last = (FREE + RANGE) / PAGE - 1;
    machine.fill(FREE / PAGE..=last);
    machine.driver.queues[HINTS].add(&[Part::WritableAt(GuestAddress(FREE), RANGE as u32)]);
    machine.driver.queues[HINTS].kick();
    while machine.guest.memory().read_obj::<u64>(GuestAddress(FREE)).unwrap() != 0 {
        std::hint::spin_loop();
    }
    machine.handle.stop_hinting().unwrap();
    machine.fill([last]);
    machine.driver.queues[HINTS].wait_used();
    assert_eq!(machine.whole([last]), [last]);
}

#[test]
fn a_reset_ends_the_run() {
    let mut machine = Machine::new(&everything());
    machine.handle.start_hinting(false).unwrap();
    machine.device.reset();
    assert_eq!(machine.config()[2], STOP);
    assert!(matches!(machine.handle.start_hinting(true), Err(BalloonError::NoDriver)));
    machine.driver = machine.guest.activate(&mut machine.device);
    machine.handle.start_hinting(true).unwrap();
    assert_eq!(machine.config()[2], 3, "a new run has a new number");

    let without = Machine::new(&BalloonSettings::default());
    assert!(matches!(without.handle.start_hinting(true), Err(BalloonError::NoHinting)));
    assert!(matches!(without.handle.stop_hinting(), Err(BalloonError::NoHinting)));
}
