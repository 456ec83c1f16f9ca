use vm_memory::GuestAddress;

use super::*;
use crate::virtio::testing::{FakeGuest, Part};

#[test]
fn fills_buffers_with_bytes_that_differ() {
    let guest = FakeGuest::new();
    let mut device = Rng::new();
    let mut driver = guest.activate(&mut device);

    let first = driver.queues[0].request(&[], &[32, 4097]);
    assert_eq!(first.len, 32 + 4097);
    let second = driver.queues[0].request(&[], &[32]);
    assert_eq!(second.len, 32);
    assert_ne!(first.written[0], second.written[0]);
    assert_ne!(second.written[0], [0; 32]);
    assert_ne!(first.written[1][4000..], [0; 97]);
}

#[test]
fn a_request_has_a_bound_and_leaves_readable_buffers_alone() {
    let guest = FakeGuest::new();
    let mut device = Rng::new();
    let mut driver = guest.activate(&mut device);

    let done = driver.queues[0].request(&[b"not for you"], &[60 << 10, 60 << 10]);
    assert_eq!(u64::from(done.len), MAX_BYTES_PER_REQUEST);
    assert!(done.written[1][4 << 10..].iter().all(|&byte| byte == 0));
    assert_eq!(driver.queues[0].request(&[b"nothing to write"], &[]).len, 0);
}

#[test]
fn missing_memory_ends_only_the_request() {
    let guest = FakeGuest::new();
    let mut device = Rng::new();
    let mut driver = guest.activate(&mut device);

    for address in [FakeGuest::MEMORY as u64, u64::MAX - 3, FakeGuest::MEMORY as u64 - 2] {
        let done = driver.queues[0].request_parts(&[Part::Writable(16), Part::WritableAt(GuestAddress(address), 8)]);
        assert_eq!(done.len, 16, "{address:#x}");
    }
    assert_eq!(driver.queues[0].request(&[], &[16]).len, 16);
}

#[test]
fn can_be_reset_and_activated_again() {
    let guest = FakeGuest::new();
    let mut device = Rng::new();
    device.reset();
    for _ in 0..3 {
        let mut driver = guest.activate(&mut device);
        assert_eq!(driver.queues[0].request(&[], &[8]).len, 8);
        device.reset();
        driver.queues[0].add(&[Part::Writable(8)]);
        driver.queues[0].kick();
        guest.drain();
        assert_eq!(driver.queues[0].pop_used(), None);
    }
}
