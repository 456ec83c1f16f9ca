use vm_memory::GuestAddress;

use super::*;
use crate::virtio::testing::{FakeGuest, Part};

const START: GuestAddress = GuestAddress(6 << 30);
const BYTES: u64 = 58 << 20;

fn device() -> Pmem {
    Pmem::new(START, BYTES)
}

fn answer(written: &[Vec<u8>]) -> i32 {
    i32::from_le_bytes(written[0][..4].try_into().unwrap())
}

#[test]
fn the_configuration_gives_the_address_of_the_memory() {
    let device = device();
    assert_eq!(device.device_type(), 27);
    assert_eq!(device.features(), 0);
    assert_eq!(device.queue_max_sizes().len(), 1);
    let mut config = [0xff; 20];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], START.0.to_le_bytes());
    assert_eq!(config[8..16], BYTES.to_le_bytes());
    assert_eq!(config[16..], [0; 4]);
    let mut middle = [0xff; 4];
    device.read_config(8, &mut middle);
    assert_eq!(u32::from_le_bytes(middle), 58 << 20);
    for offset in [16, 17, 1 << 40, u64::MAX - 1, u64::MAX] {
        let mut beyond = [0xff; 6];
        device.read_config(offset, &mut beyond);
        assert_eq!(beyond, [0; 6], "at {offset}");
    }
    let mut device = device;
    device.write_config(0, &[0; 16]);
    device.read_config(0, &mut middle);
    assert_eq!(u32::from_le_bytes(middle), START.0 as u32);
}

#[test]
fn a_flush_is_done_at_once() {
    let guest = FakeGuest::new();
    let mut device = device();
    let mut driver = guest.activate(&mut device);
    let done = driver.queues[0].request(&[&0_u32.to_le_bytes()], &[4]);
    assert_eq!(done.len, 4);
    assert_eq!(answer(&done.written), 0);
    // As large as the driver likes, and through an indirect table.
    let done = driver.queues[0].request(&[&[0; 64]], &[64]);
    assert_eq!(done.len, 4);
    assert_eq!(answer(&done.written), 0);
    let response = guest.allocate_with(&[0xff; 8]);
    driver.queues[0].add_indirect(&[Part::Readable(&[0; 4]), Part::WritableAt(response, 4)]);
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].wait_used().len, 4);
    assert_eq!(guest.read(response, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn a_malformed_request_fails_and_the_device_goes_on() {
    let guest = FakeGuest::new();
    let mut device = device();
    let mut driver = guest.activate(&mut device);
    let queue = &mut driver.queues[0];
    for request in [1, 0x100, u32::MAX] {
        let done = queue.request(&[&u32::to_le_bytes(request)], &[4]);
        assert_eq!(done.len, 4, "{request}");
        assert_eq!(answer(&done.written), -1, "{request}");
    }
    let flush = [0; 4];
    let nowhere = GuestAddress(FakeGuest::MEMORY as u64);
    let cases: &[(&str, &[Part<'_>], u32)] = &[
        ("short", &[Part::Readable(&flush[..3]), Part::Writable(4)], 4),
        ("empty", &[Part::Readable(&[]), Part::Writable(4)], 4),
        ("no request", &[Part::Writable(4)], 4),
        ("request nowhere", &[Part::ReadableAt(nowhere, 4), Part::Writable(4)], 4),
        ("request over the end", &[Part::ReadableAt(GuestAddress(nowhere.0 - 2), 4), Part::Writable(4)], 4),
        ("request wraps", &[Part::ReadableAt(GuestAddress(u64::MAX - 1), 4), Part::Writable(4)], 4),
        // Requests cannot lie in the device's own memory.
        ("request in itself", &[Part::ReadableAt(START, 4), Part::Writable(4)], 4),
        ("no room", &[Part::Readable(&flush)], 0),
        ("little room", &[Part::Readable(&flush), Part::Writable(3)], 0),
        ("answer nowhere", &[Part::Readable(&flush), Part::WritableAt(nowhere, 4)], 0),
        ("answer in itself", &[Part::Readable(&flush), Part::WritableAt(START, 4)], 0),
        ("answer wraps", &[Part::Readable(&flush), Part::WritableAt(GuestAddress(u64::MAX), 4)], 0),
    ];
    for (case, parts, len) in cases {
        let done = queue.request_parts(parts);
        assert_eq!(done.len, *len, "{case}");
        if *len == 4 {
            assert_eq!(answer(&done.written), -1, "{case}");
        }
    }
    // Chains that end in a loop, or in a descriptor that does not exist.
    let (head, _) = queue.build(&[Part::Readable(&flush), Part::Writable(4)]);
    for next in [head, queue.size, u16::MAX] {
        queue.set_descriptor((head + 1) % queue.size, guest.allocate(4), 4, 3, next);
        queue.publish(head);
        queue.kick();
        assert!(queue.wait_used().len <= 4, "next is {next}");
    }
    let done = queue.request(&[&flush], &[4]);
    assert_eq!(done.len, 4);
    assert_eq!(answer(&done.written), 0);
}

#[test]
fn can_be_reset_and_activated_again() {
    let guest = FakeGuest::new();
    let mut device = device();
    device.reset();
    for _ in 0..3 {
        let mut driver = guest.activate(&mut device);
        assert_eq!(driver.queues[0].request(&[&[0; 4]], &[4]).len, 4);
        device.reset();
    }
}
