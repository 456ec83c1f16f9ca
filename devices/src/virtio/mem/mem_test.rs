use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bellows_memory::partition::{TargetError, WaitError};
use bellows_memory::testing::Fixture;
use bellows_memory::{BLOCK, ByteSize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::virtio::testing::{FakeDriver, FakeGuest, FakeInterrupt, PATIENCE, Part};

pub(super) const MIB: u64 = 1 << 20;
const AT_ONCE: Duration = Duration::ZERO;

pub(super) const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
pub(super) const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

pub(super) const ACK: u8 = 0;
const NACK: u8 = 1;
const BUSY: u8 = 2;
const ERROR: u8 = 3;

/// A guest with a memory device whose window is 512 MiB, and its driver.
pub(super) struct MemMachine {
    guest: FakeGuest,
    pub(super) fixture: Fixture,
    pub(super) device: Mem,
    pub(super) handle: MemHandle,
    pub(super) driver: FakeDriver,
}

impl MemMachine {
    pub(super) fn new() -> Self {
        let guest = FakeGuest::new();
        let fixture = Fixture::in_view(guest.view().clone(), ByteSize::mib(512));
        let mut device = Mem::new(fixture.partition.clone());
        let handle = device.handle();
        let driver = guest.activate(&mut device);
        Self { guest, fixture, device, handle, driver }
    }

    /// Sends a request about `blocks` blocks from `offset` bytes into the window on: type and state of the answer.
    pub(super) fn ask(&mut self, kind: u16, offset: u64, blocks: u16) -> (u8, u8) {
        let request = request(kind, self.fixture.start().wrapping_add(offset), blocks);
        let done = self.driver.queues[0].request(&[&request], &[10]);
        assert_eq!(done.len, 10);
        (done.written[0][0], done.written[0][8])
    }
}

fn request(kind: u16, address: u64, blocks: u16) -> [u8; size_of::<VirtioMemReq>()] {
    let mut bytes = [0; size_of::<VirtioMemReq>()];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// The 64-bit field at `offset` of the configuration.
pub(super) fn field(device: &Mem, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    device.read_config(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Acts as Linux's driver: for the next `changes` of the configuration it follows the requested size, a granule of 128 MiB
/// at a time.
pub(super) fn drive(mut machine: MemMachine, changes: u64) -> JoinHandle<MemMachine> {
    thread::spawn(move || {
        for change in 1..=changes {
            machine.driver.interrupt.wait_config(change);
            loop {
                let (plugged, requested) = (field(&machine.device, 40), field(&machine.device, 48));
                match plugged.cmp(&requested) {
                    std::cmp::Ordering::Less => assert_eq!(machine.ask(PLUG, plugged, 64).0, ACK),
                    std::cmp::Ordering::Greater => assert_eq!(machine.ask(UNPLUG, plugged - 128 * MIB, 64).0, ACK),
                    std::cmp::Ordering::Equal => break,
                }
            }
        }
        machine
    })
}

#[test]
fn the_configuration_describes_the_partition() {
    let machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(130)).unwrap();
    let device = &machine.device;
    let fields: Vec<u64> = (0..8).map(|n| field(device, n * 8)).collect();
    let start = machine.fixture.start();
    assert_eq!(fields, [BLOCK.get(), 1, start, 512 * MIB, 256 * MIB, 0, 130 * MIB, 0]);
    assert_eq!(field(device, 11), start << 40, "any offset, any width");
    assert_eq!(field(device, 52), 0);
    assert_eq!(field(device, 56), 0);
    assert_eq!(field(device, u64::MAX - 3), 0);
    assert_eq!(device.device_type(), 24);
    assert_eq!(device.features(), 3);
}

#[test]
fn the_host_plugs_and_unplugs_and_the_guest_follows() {
    let machine = MemMachine::new();
    let handle = machine.handle.clone();
    let guest = drive(machine, 4);
    assert_eq!(handle.plug(ByteSize::mib(512), PATIENCE).unwrap().report.plugged, ByteSize::mib(512));
    assert_eq!(handle.retire().unwrap_err().plugged, ByteSize::mib(512));
    let report = handle.unplug(PATIENCE).unwrap();
    assert_eq!(report.plugged, ByteSize::bytes(0));
    assert_eq!(report.slots, 0);
    // At once, whether or not the discard is done.
    assert_eq!(handle.plug(ByteSize::mib(128), PATIENCE).unwrap().report.plugged, ByteSize::mib(128));
    handle.unplug(PATIENCE).unwrap();
    let machine = guest.join().unwrap();
    handle.memory().wait_discarded(PATIENCE).unwrap();
    let start = machine.fixture.start();
    let one = |action: &str, bytes: u64| format!("{action} {start:#x}+{bytes:#x}");
    let expected = [one("set", 512 * MIB), one("delete", 512 * MIB), one("set", 128 * MIB), one("delete", 128 * MIB)];
    assert_eq!(machine.fixture.slots.calls(), expected);
    handle.retire().unwrap();
    assert!(matches!(handle.plug(ByteSize::mib(128), PATIENCE), Err(PlugError::Refused(TargetError::Retired(_)))));
}

#[test]
fn plugs_that_are_taken_back_break_no_driver() {
    let mut machine = MemMachine::new();
    for taken_back in 1..=100 {
        // The driver reads the size, the host's time limit passes, and only then comes the request.
        let error = machine.handle.plug(ByteSize::mib(512), AT_ONCE).unwrap_err();
        assert!(matches!(error, PlugError::Incomplete(WaitError::Timeout { .. })), "{error}");
        assert_eq!(field(&machine.device, 32), 512 * MIB, "the usable region stays");
        assert_eq!(machine.ask(PLUG, 0, 64).0, NACK);
        assert_eq!(machine.driver.interrupt.config_count(), 2 * taken_back);
    }
    machine.handle.unplug(AT_ONCE).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, NACK, "nor does an unplug");
    let handle = machine.handle.clone();
    let changes = machine.driver.interrupt.config_count();
    let host = thread::spawn(move || handle.plug(ByteSize::mib(128), PATIENCE));
    machine.driver.interrupt.wait_config(changes + 1);
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    assert_eq!(host.join().unwrap().unwrap().report.plugged, ByteSize::mib(128));
    assert_eq!(machine.fixture.admission.admitted(), ByteSize::mib(128));

    machine.handle.memory().set_target(ByteSize::bytes(0)).unwrap();
    assert_eq!(machine.ask(UNPLUG, 0, 64).0, ACK);
    assert_eq!(field(&machine.device, 32), 512 * MIB, "nor does the guest's last request");
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(field(&machine.device, 32), 0, "only this does");
}

#[test]
fn the_guest_is_notified_that_its_partition_is_given_up() {
    let machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    machine.handle.retire().unwrap();
    assert_eq!(field(&machine.device, 48), 0);
    assert_eq!(machine.driver.interrupt.config_count(), 1);
}

#[test]
fn a_change_of_the_configuration_can_be_told_from_its_generation() {
    let machine = MemMachine::new();
    let before = machine.device.config_generation();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_ne!(machine.device.config_generation(), before, "from the moment on that the size is another");
}

#[test]
fn of_two_targets_the_last_one_counts() {
    let machine = MemMachine::new();
    let handle = machine.handle.clone();
    let first = thread::spawn(move || handle.plug(ByteSize::mib(256), PATIENCE));
    machine.driver.interrupt.wait_config(1);
    machine.handle.unplug(AT_ONCE).unwrap();
    let error = first.join().unwrap().unwrap_err();
    assert!(matches!(error, PlugError::Incomplete(WaitError::Superseded(_))), "nothing is plugged: {error}");
    assert_eq!(field(&machine.device, 48), 0, "the last size stands");
    assert_eq!(machine.driver.interrupt.config_count(), 2, "the last size stands");
}

#[test]
fn a_size_in_the_wrong_direction_is_refused_before_the_guest_is_notified() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 128).0, ACK);
    for size in [0, 128] {
        let error = machine.handle.plug(ByteSize::mib(size), AT_ONCE).unwrap_err();
        assert!(matches!(error, PlugError::Refused(TargetError::NoGrowth { .. })), "{error}");
    }
    let error = machine.handle.shrink(ByteSize::mib(384), AT_ONCE).unwrap_err();
    assert!(matches!(error, UnplugError::Refused(TargetError::NoShrinking { .. })), "{error}");
    assert_eq!(field(&machine.device, 48), 256 * MIB);
    assert_eq!(machine.driver.interrupt.config_count(), 0);
}

#[test]
fn a_driver_is_notified_of_targets_that_were_set_while_it_was_suspended() {
    let mut machine = MemMachine::new();
    let states = machine.device.suspend();
    machine.handle.plug(ByteSize::mib(128), AT_ONCE).unwrap_err();
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    assert_eq!(machine.driver.interrupt.config_count(), 2, "the size, and that it is taken back");
}

#[test]
fn a_request_that_has_to_wait_is_answered_after_a_resume() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    let held = machine.guest.memory();
    let unplug = request(UNPLUG_ALL, 0, 0);
    let pending = machine.driver.queues[0].begin(&[&unplug], &[10]);
    machine.driver.queues[0].kick();
    let states = machine.device.suspend();
    assert_eq!(states[0].unwrap().next_avail, states[0].unwrap().next_used, "it was handed back");
    drop(held);
    machine.guest.drain();
    assert_eq!(machine.driver.queues[0].pop_used(), None);
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    assert_eq!(machine.driver.queues[0].finish(pending).written[0][0], ACK);
    assert_eq!(machine.fixture.partition.report().plugged, ByteSize::bytes(0));
}

#[test]
fn undoing_a_plug_leaves_earlier_memory_plugged() {
    let machine = MemMachine::new();
    let handle = machine.handle.clone();
    let guest = drive(machine, 3);
    handle.plug(ByteSize::mib(128), PATIENCE).unwrap();
    let plugged = handle.plug(ByteSize::mib(384), PATIENCE).unwrap();
    assert_eq!(handle.undo(&plugged, PATIENCE).unwrap().plugged, ByteSize::mib(128));
    let error = handle.undo(&plugged, PATIENCE).unwrap_err();
    assert!(matches!(error, UnplugError::Refused(TargetError::Superseded(_))), "{error}");
    assert_eq!(guest.join().unwrap().handle.memory().report().plugged, ByteSize::mib(128));
}

#[test]
fn waiting_for_an_idle_guest_has_a_limit() {
    let mut machine = MemMachine::new();
    let error = machine.handle.plug(ByteSize::mib(256), AT_ONCE).unwrap_err();
    assert!(matches!(error, PlugError::Incomplete(WaitError::Timeout { goal: "plugged", .. })), "{error}");
    assert_eq!(field(&machine.device, 48), 0, "the size is requested no longer");
    assert_eq!(machine.driver.interrupt.config_count(), 2);
    machine.fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 128).0, ACK);
    let _ = machine.fixture.slots.calls();

    let handle = machine.handle.clone();
    let host = thread::spawn(move || handle.unplug(Duration::from_millis(300)));
    machine.driver.interrupt.wait_config(3);
    assert_eq!(machine.ask(UNPLUG, 128 * MIB, 64).0, ACK);
    let error = host.join().unwrap().unwrap_err();
    assert!(matches!(error, UnplugError::Incomplete(_)), "{error}");
    assert_eq!(
        machine.fixture.slots.slots(),
        [(machine.fixture.start(), 128 * MIB)],
        "slots follow the memory that the guest kept"
    );
    assert_eq!(machine.ask(UNPLUG, 0, 64).0, ACK);
    machine.handle.unplug(PATIENCE).unwrap();
}

#[test]
fn requests_are_answered_as_the_specification_says() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    for (kind, offset, blocks, answer) in [
        (STATE, 0, 128, (ACK, 1)),
        (PLUG, 0, 129, (ERROR, 0)),
        (PLUG, 0, 64, (ACK, 0)),
        (STATE, 0, 64, (ACK, 0)),
        (STATE, 126 * MIB, 2, (ACK, 2)),
        (PLUG, 126 * MIB, 2, (ERROR, 0)),
        (UNPLUG, 126 * MIB, 2, (ERROR, 0)),
        (PLUG, 0, 0, (ERROR, 0)),
        (PLUG, 129 * MIB, 1, (ERROR, 0)),
        (PLUG, 0_u64.wrapping_sub(2 * MIB), 1, (ERROR, 0)),
        (PLUG, !0x1f_ffff, u16::MAX, (ERROR, 0)),
        (STATE, 512 * MIB, 1, (ERROR, 0)),
        (9, 0, 1, (ERROR, 0)),
        (UNPLUG_ALL, 0, 0, (ACK, 0)),
    ] {
        assert_eq!(machine.ask(kind, offset, blocks), answer, "{kind} {offset:#x} {blocks}");
    }
    machine.handle.memory().wait_discarded(PATIENCE).unwrap();
    machine.fixture.partition.set_target(ByteSize::mib(2)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 2), (NACK, 0));
}

#[test]
fn a_plug_that_comes_before_the_discard_is_busy_and_one_of_the_host_waits() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    let address = GuestAddress(machine.fixture.start());
    machine.guest.memory().write_obj(42_u64, address).unwrap();
    let (release, held) = mpsc::channel::<()>();
    let hold = move || {
        let _ = held.recv();
    };
    machine.fixture.discarder.queue().run(hold).unwrap();
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(machine.ask(PLUG, 0, 64).0, BUSY);
    let error = machine.handle.plug(ByteSize::mib(128), AT_ONCE).unwrap_err();
    assert!(matches!(error, PlugError::Incomplete(WaitError::Timeout { goal: "discarded", .. })), "{error}");
    assert_eq!(machine.driver.interrupt.config_count(), 0, "the guest has not been told");
    drop(release);
    machine.handle.memory().wait_discarded(PATIENCE).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    assert_eq!(machine.guest.memory().read_obj::<u64>(address).unwrap(), 0);
}

#[test]
fn requests_may_be_framed_in_any_way() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    let plug = request(PLUG, machine.fixture.start(), 64);
    let queue = &mut machine.driver.queues[0];
    let done = queue.request(&[&plug[..3], &[], &plug[3..17], &plug[17..]], &[1, 0, 8, 5]);
    assert_eq!(done.len, 10);
    assert_eq!(done.written[0][0], ACK);
    let longer = [&request(STATE, machine.fixture.start(), 64)[..], &[0xff; 40]].concat();
    let done = queue.request(&[&longer], &[64]);
    assert_eq!(done.len, 10);
    assert_eq!(done.written[0][0], ACK);
    queue.add_indirect(&[Part::Readable(&plug), Part::Writable(10)]);
    queue.kick();
    assert_eq!(queue.wait_used().len, 10);
}

#[test]
fn malformed_chains_are_used_and_do_no_harm() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    let plug = request(PLUG, machine.fixture.start(), 64);
    let nowhere = GuestAddress(FakeGuest::MEMORY as u64 - 4);
    let queue = &mut machine.driver.queues[0];
    for (parts, len) in [
        (&[Part::Readable(&plug)][..], 0),
        (&[Part::Readable(&plug), Part::Writable(9)], 0),
        (&[Part::Readable(&plug[..23]), Part::Writable(10)], 10),
        (&[Part::Writable(10)], 10),
        (&[Part::Writable(10), Part::Readable(&plug)], 10),
        (&[Part::ReadableAt(nowhere, 24), Part::Writable(10)], 10),
        (&[Part::ReadableAt(GuestAddress(machine.fixture.start()), 24), Part::Writable(10)], 10),
        (&[Part::ReadableAt(GuestAddress(u64::MAX), u32::MAX - 10), Part::Writable(10)], 10),
        // More than 4 GiB in all ends the chain.
        (&[Part::ReadableAt(GuestAddress(u64::MAX), u32::MAX), Part::Writable(10)], 0),
        (
            &[
                Part::Readable(&plug),
                Part::Writable(4),
                Part::WritableAt(GuestAddress(u64::MAX), 6),
                Part::Readable(b""),
            ],
            4,
        ),
        (&[Part::Readable(b""); 20], 0),
    ] {
        let done = queue.request_parts(parts);
        assert_eq!(done.len, len, "{parts:?}");
        if len == 10 {
            assert!(done.written.iter().any(|answer| answer[0] == ERROR), "{parts:?}");
        }
    }
    // A readable descriptor that is its own successor, and a chain that goes on behind the table.
    for next in [0, 1000] {
        let buffer = machine.guest.allocate_with(&plug);
        queue.set_descriptor(0, buffer, 24, 1, next);
        queue.publish(0);
        queue.kick();
        assert_eq!(queue.wait_used().len, 0, "next {next}");
    }
    assert_eq!(machine.handle.memory().report().plugged, ByteSize::bytes(0));
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK, "it still works");
}

#[test]
fn an_answer_into_memory_that_is_being_unplugged_is_dropped() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    let unplug = request(UNPLUG_ALL, 0, 0);
    let answer = Part::WritableAt(GuestAddress(machine.fixture.start()), 10);
    let done = machine.driver.queues[0].request_parts(&[Part::Readable(&unplug), answer]);
    assert_eq!(done.len, 0);
    let report = machine.handle.memory().wait_discarded(PATIENCE).unwrap();
    assert_eq!(report.plugged, ByteSize::bytes(0));
    assert_eq!(report.discarded, ByteSize::bytes(0));
}

#[test]
fn an_impossible_ring_needs_a_reset_which_leaves_memory_plugged() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 64).0, ACK);
    machine.driver.queues[0].set_available_index(5000);
    machine.driver.queues[0].kick();
    machine.driver.interrupt.wait_needs_reset();
    machine.device.reset();
    machine.driver = machine.guest.activate(&mut machine.device);
    assert_eq!(field(&machine.device, 40), 128 * MIB);
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(field(&machine.device, 40), 0);
}

#[test]
fn many_requests_at_once_are_all_served() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    let queue = &mut machine.driver.queues[0];
    for block in 0..32 {
        let plug = request(PLUG, machine.fixture.start() + block * 2 * MIB, 1);
        queue.add(&[Part::Readable(&plug), Part::Writable(10)]);
    }
    queue.kick();
    for _ in 0..32 {
        assert_eq!(queue.wait_used().len, 10);
    }
    assert_eq!(machine.handle.memory().report().plugged, ByteSize::mib(64));
    assert_eq!(machine.guest.memory().num_regions(), 2);
}

#[test]
fn a_request_that_has_to_wait_is_answered_later() {
    let mut machine = MemMachine::new();
    machine.fixture.partition.set_target(ByteSize::mib(256)).unwrap();
    assert_eq!(machine.ask(PLUG, 0, 128).0, ACK);
    // This snapshot stands for any long operation.
    let held = machine.guest.memory();
    let unplug = request(UNPLUG, machine.fixture.start() + 128 * MIB, 64);
    let queue = &mut machine.driver.queues[0];
    queue.add(&[Part::Readable(&unplug), Part::Writable(10)]);
    queue.kick();
    assert_eq!(queue.pop_used(), None);
    drop(held);
    assert_eq!(queue.wait_used().len, 10);
    assert_eq!(machine.fixture.partition.report().plugged, ByteSize::mib(128));
}

#[test]
fn an_error_names_the_queue_that_was_not_enabled() {
    let fixture = Fixture::new(ByteSize::mib(128));
    let guest = FakeGuest::new();
    let mut device = Mem::new(fixture.partition.clone());
    let error = device.activate(Activation {
        memory: guest.view().clone(),
        queues: vec![None],
        interrupt: Arc::new(FakeInterrupt::new(1)),
        features: F_UNPLUGGED_INACCESSIBLE,
        event_loop: guest.event_loop().handle(),
    });
    assert!(matches!(error, Err(ActivateError::MissingQueue(0))));
}

#[test]
fn a_driver_that_would_read_unplugged_memory_is_refused() {
    let fixture = Fixture::new(ByteSize::mib(128));
    let guest = FakeGuest::new();
    let mut device = Mem::new(fixture.partition.clone());
    let old = FakeGuest::all_features(&device) & !F_UNPLUGGED_INACCESSIBLE;
    let error = guest.try_activate(&mut device, old).err().unwrap();
    assert_eq!(error.to_string(), "the driver did not accept VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE");
    let mut driver = guest.activate(&mut device);
    assert_eq!(driver.queues[0].request(&[&request(UNPLUG_ALL, 0, 0)], &[10]).written[0][0], ACK, "it may try again");
}
