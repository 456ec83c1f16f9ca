//! Requests of any shape: what is not whole pages of base memory changes nothing, and the device goes on.

use super::*;

/// Below the device hole, at its two edges, and above it.
const WATCHED: [u64; 4] = [FREE / PAGE, 3 * GIB / PAGE - 1, 4 * GIB / PAGE, 5 * GIB / PAGE - 1];

/// First page of the partition's window, behind a gap.
fn window() -> u64 {
    let spec = LayoutSpec::x86_64(ByteSize::gib(4), vec![ByteSize::gib(1)], 40);
    Layout::new(&spec).unwrap().windows()[0].range().start().0 / PAGE
}

fn refuses(machine: &mut Machine, count: u64, request: impl FnOnce(&mut Machine)) {
    let before = machine.discarded();
    request(machine);
    assert_eq!(machine.discarded(), Discards { refused: before.refused + count, ..before });
    assert_eq!(machine.whole(WATCHED), WATCHED);
}

#[test]
fn pages_outside_base_memory_are_refused() {
    let mut machine = Machine::new(&everything());
    machine.fill(WATCHED);
    machine.handle.start_hinting(false).unwrap();
    machine.command(2);
    for page in [3 * GIB / PAGE, 4 * GIB / PAGE - 1, 5 * GIB / PAGE, window(), u64::from(u32::MAX)] {
        refuses(&mut machine, 1, |machine| machine.inflate(&[page as u32]));
        for queue in [HINTS, REPORTS] {
            refuses(&mut machine, 1, |machine| machine.free(queue, &[page]));
        }
    }
    // Pages beside them go back all the same.
    machine.inflate(&[FREE as u32 / PAGE as u32, window() as u32, (5 * GIB / PAGE) as u32 + 7]);
    machine.free(REPORTS, &[window(), 4 * GIB / PAGE, 3 * GIB / PAGE]);
    assert_eq!(machine.whole(WATCHED), [WATCHED[1], WATCHED[3]]);
}

#[test]
fn free_ranges_of_any_shape_change_nothing_else() {
    let mut machine = Machine::new(&everything());
    machine.fill(WATCHED);
    machine.handle.start_hinting(false).unwrap();
    machine.command(2);
    for queue in [HINTS, REPORTS] {
        for (start, bytes) in [
            (FREE, 1),
            (FREE, 4095),
            (FREE + 1, 4096),
            (FREE + 4095, 2),
            (3 * GIB - PAGE, 8192),
            (4 * GIB - PAGE, 8192),
            (5 * GIB - PAGE, 8192),
            (FREE, u32::MAX),
            (u64::MAX - 4095, 4096),
            (u64::MAX, 1),
        ] {
            let part = [Part::WritableAt(GuestAddress(start), bytes)];
            refuses(&mut machine, 1, |machine| machine.tell(queue, &part));
        }
        // Empty, or not for the device to write.
        refuses(&mut machine, 0, |machine| machine.tell(queue, &[Part::WritableAt(GuestAddress(FREE), 0)]));
    }
    refuses(&mut machine, 0, |machine| machine.tell(REPORTS, &[Part::ReadableAt(GuestAddress(FREE), 4096)]));
    for command in [&[2, 0, 0][..], &[2, 0, 0, 0, 0], &[0; 64]] {
        refuses(&mut machine, 1, |machine| machine.tell(HINTS, &[Part::Readable(command)]));
    }
    let nowhere = Part::ReadableAt(GuestAddress(3 * GIB), 4);
    refuses(&mut machine, 1, |machine| machine.tell(HINTS, &[nowhere]));
    assert!(machine.device.shared.state().hinting.takes_pages(), "the run goes on");
}

#[test]
fn lists_of_any_shape_change_nothing_else() {
    let mut machine = Machine::new(&everything());
    machine.fill(WATCHED);
    let pages = list(&[FREE as u32 / PAGE as u32; 2]);
    let nowhere = GuestAddress(3 * GIB);
    for parts in [
        &[Part::Readable(&pages[..7])][..],
        &[Part::Readable(&pages[..3])],
        &[Part::Readable(&pages), Part::ReadableAt(nowhere, 4)],
        &[Part::ReadableAt(nowhere, 4)],
        &[Part::ReadableAt(GuestAddress(3 * GIB - 4), 8)],
        &[Part::ReadableAt(GuestAddress(u64::MAX - 3), 8)],
        &[Part::ReadableAt(nowhere, u32::MAX)],
    ] {
        refuses(&mut machine, 1, |machine| machine.tell(INFLATE, parts));
    }
    for parts in [&[Part::Readable(&[])][..], &[Part::WritableAt(GuestAddress(FREE), 4096)]] {
        refuses(&mut machine, 0, |machine| machine.tell(INFLATE, parts));
    }
    refuses(&mut machine, 0, |machine| machine.tell(DEFLATE, &[Part::ReadableAt(nowhere, u32::MAX)]));
}

#[test]
fn one_request_causes_bounded_work() {
    let mut machine = Machine::new(&everything());
    let first = FREE / PAGE;
    machine.fill([first, first + 1023, first + 1024]);
    let pages: Vec<_> = (0..2000).map(|page| (first + page) as u32).collect();
    let list = machine.guest.allocate_with(&list(&pages));
    machine.tell(INFLATE, &[Part::ReadableAt(list, 8000)]);
    assert_eq!(machine.whole([first, first + 1023, first + 1024]), [first + 1024]);
    // Two GiB in one report: one goes.
    machine.fill([first, 2 * GIB / PAGE]);
    let free = [GIB, 2 * GIB].map(|start| Part::WritableAt(GuestAddress(start), GIB as u32));
    machine.tell(REPORTS, &free);
    assert_eq!(machine.whole([first, 2 * GIB / PAGE]), [2 * GIB / PAGE]);
}

#[test]
fn chains_that_do_not_end_are_given_back() {
    let mut machine = Machine::new(&everything());
    machine.fill(WATCHED);
    for queue in [INFLATE, DEFLATE, HINTS, REPORTS] {
        for next in [0, 256, u16::MAX] {
            refuses(&mut machine, 1, |machine| {
                let pages = list(&[FREE as u32 / PAGE as u32]);
                let queue = &mut machine.driver.queues[queue];
                let (head, _) = queue.build(&[Part::Readable(&pages), Part::WritableAt(GuestAddress(FREE), 4096)]);
                let next = if next == 0 { head } else { next };
                queue.set_descriptor((head + 1) % queue.size, GuestAddress(FREE), 4096, 3, next);
                queue.publish(head);
                queue.kick();
                assert_eq!(queue.wait_used().len, 0);
            });
        }
    }
}

#[test]
fn statistics_of_any_shape_are_taken_as_far_as_they_go() {
    let mut machine = Machine::new(&everything());
    let queue = &mut machine.driver.queues[STATISTICS];
    // A driver with several buffers gets one back at a time; the next is read at once.
    let long = entry(4, 1).repeat(6000);
    let table: [&[Part<'_>]; 4] = [
        &[Part::Readable(&[])],
        &[Part::ReadableAt(GuestAddress(3 * GIB), u32::MAX)],
        &[Part::WritableAt(GuestAddress(FREE), 10)],
        &[Part::Readable(&long)],
    ];
    for parts in table {
        queue.add(parts);
    }
    queue.kick();
    for _ in 0..3 {
        assert_eq!(queue.wait_used().len, 0);
    }
    machine.handle.wait(PATIENCE, |report| report.statistics.free_memory == Some(1)).unwrap();
    assert_eq!(machine.driver.queues[STATISTICS].pop_used(), None);
}

/// A guest may give its own queues away: then it must reset the device.
#[test]
fn queues_that_were_given_away_can_be_set_up_again() {
    let mut machine = Machine::new(&everything());
    for queue in [INFLATE, REPORTS] {
        let rings = machine.driver.queues[queue].descriptors.0;
        if queue == INFLATE {
            let pages: Vec<_> = (0..8).map(|page| (rings / PAGE + page) as u32).collect();
            machine.driver.queues[queue].add(&[Part::Readable(&list(&pages))]);
        } else {
            machine.driver.queues[queue].add(&[Part::WritableAt(GuestAddress(rings), 8 * PAGE as u32)]);
        }
        machine.driver.queues[queue].kick();
        machine.guest.drain();
        machine.driver.queues[queue].kick();
        machine.guest.drain();
        machine.device.reset();
        machine.driver = machine.guest.activate(&mut machine.device);
        machine.fill([FREE / PAGE]);
        let before = machine.discarded().inflated.get();
        machine.inflate(&[(FREE / PAGE) as u32]);
        assert_eq!(machine.discarded().inflated.get(), before + PAGE);
    }
}
