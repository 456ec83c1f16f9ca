//! Preparing, with a guest that does what Linux's driver does.

use std::thread;

use super::super::tests::{ACK, MIB, MemMachine, PLUG, UNPLUG_ALL, drive, field};
use super::*;
use crate::virtio::testing::PATIENCE;

/// A guest that has plugged 256 MiB for a preparation.
fn preparing() -> MemMachine {
    let mut machine = MemMachine::new();
    machine.handle.prepare(ByteSize::mib(256)).unwrap();
    assert_eq!(field(&machine.device, 48), 256 * MIB);
    assert_eq!(machine.ask(PLUG, 0, 128).0, ACK);
    machine
}

#[test]
fn a_plug_gets_its_own_size_out_of_a_preparation() {
    for size in [128, 256, 512] {
        let machine = preparing();
        let handle = machine.handle.clone();
        let guest = drive(machine, 3);
        let plugged = handle.plug(ByteSize::mib(size), PATIENCE).unwrap();
        assert_eq!(plugged.report.plugged, ByteSize::mib(size));
        assert!(matches!(handle.prepare(ByteSize::bytes(0)), Err(TargetError::Superseded(_))));
        assert_eq!(handle.undo(&plugged, PATIENCE).unwrap().plugged, ByteSize::bytes(0), "nothing is left behind");
        guest.join().unwrap();
    }
}

#[test]
fn a_plug_never_meets_memory_that_is_being_given_back() {
    let mut machine = preparing();
    machine.handle.prepare(ByteSize::bytes(0)).unwrap();
    let handle = machine.handle.clone();
    let host = thread::spawn(move || handle.plug(ByteSize::mib(128), PATIENCE));
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    machine.driver.interrupt.wait_config(3);
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK, "and not BUSY");
    assert_eq!(host.join().unwrap().unwrap().report.plugged, ByteSize::mib(128));
}

#[test]
fn a_guest_that_keeps_what_was_prepared_delays_a_plug_by_half_of_its_time_at_most() {
    let machine = preparing();
    machine.handle.prepare(ByteSize::bytes(0)).unwrap();
    let (limit, start) = (Duration::from_millis(100), Instant::now());
    let report = machine.handle.plug(ByteSize::mib(256), limit).unwrap().report;
    assert_eq!((report.plugged, report.preparing), (ByteSize::mib(256), false));
    assert!(start.elapsed() >= limit / 2, "it is waited for that long");
}

#[test]
fn a_device_leaves_once_its_preparation_has_ended() {
    let machine = preparing();
    let handle = machine.handle.clone();
    handle.retire().unwrap_err();
    let guest = drive(machine, 2);
    handle.end_preparation(PATIENCE).unwrap();
    handle.end_preparation(Duration::ZERO).unwrap();
    handle.retire().unwrap();
    drop(guest.join().unwrap());
}
