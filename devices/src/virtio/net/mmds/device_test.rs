//! The service behind a device: what is for it does not reach the link, and its answers reach the guest.

use serde_json::json;
use vm_memory::ByteValued as _;

use super::*;
use crate::virtio::VirtioDevice as _;
use crate::virtio::net::fake_link;
use crate::virtio::net::wire::{HEADER_BYTES, VirtioNetHdr};
use crate::virtio::net::{Net, NetSettings, RateLimits};
use crate::virtio::testing::{FakeDriver, FakeGuest};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn send(driver: &mut FakeDriver, frame: &[u8]) {
    let packet = [VirtioNetHdr::default().as_slice(), frame].concat();
    assert_eq!(driver.queues[1].request(&[&packet], &[]).len, 0);
}

/// ARP of the guest's for the address whose last byte is `last`.
fn who_has(last: u8) -> Vec<u8> {
    let mut frame = [0xff; 6].to_vec();
    frame.extend(GUEST);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 169, 254, 169, last]);
    frame
}

#[test]
fn the_service_answers_in_the_links_place() {
    let (link, host) = fake_link::pair();
    let settings = NetSettings { mac: "02:00:00:00:00:01".parse().unwrap(), mtu: None, limits: RateLimits::default() };
    let metadata = Metadata::new(1000);
    metadata.put(json!({ "a": "b" })).unwrap();
    let mut device = Net::new(link, &settings).unwrap();
    device.serve_metadata(&metadata, ADDRESS).unwrap();
    let guest = FakeGuest::new();
    let mut driver = guest.activate(&mut device);
    let pending = driver.queues[0].begin(&[], &[2000]);
    driver.queues[0].kick();
    send(&mut driver, &who_has(254));
    let answer = driver.queues[0].finish(pending);
    let frame = &answer.written[0][HEADER_BYTES..answer.len as usize];
    assert_eq!((&frame[..6], &frame[20..22], &frame[28..32]), (&GUEST[..], &[0, 2][..], &[169, 254, 169, 254][..]));
    // The next address is one of the link's, and so is all else. The first frame never reached it.
    let mut long = who_has(253);
    long.extend([7; 1000]);
    for frame in [who_has(253), long] {
        send(&mut driver, &frame);
        assert_eq!(host.receive().1, frame);
    }
    // The link still reaches the guest, and the answer waits until there is room.
    send(&mut driver, &who_has(254));
    send(&mut driver, &who_has(254));
    host.send_frame(&[0x5a; 60]);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let pending = driver.queues[0].begin(&[], &[2000]);
        driver.queues[0].kick();
        let done = driver.queues[0].finish(pending);
        kinds.push(done.written[0][HEADER_BYTES + 21]);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [2, 2, 0x5a]);
}

#[test]
fn the_state_names_the_service_and_none_of_its_secrets() {
    let settings = NetSettings { mac: "02:00:00:00:00:01".parse().unwrap(), mtu: None, limits: RateLimits::default() };
    let device = |served: bool| {
        let metadata = Metadata::new(1000);
        metadata.put(json!({ "key": "secret" })).unwrap();
        assert!(!format!("{metadata:?}").contains("secret"));
        let mut device = Net::new(fake_link::pair().0, &settings).unwrap();
        if served {
            device.serve_metadata(&metadata, ADDRESS).unwrap();
        }
        device
    };
    let state = device(true).save();
    let text = serde_json::to_string(&state).unwrap();
    assert!(text.contains(r#""metadata":"169.254.169.254""#) && !text.contains("secret"), "{text}");
    device(true).restore(&state).unwrap();
    // The guest would ask nobody, or somebody else.
    assert!(device(false).restore(&state).is_err());
    // States from before there was a service have none.
    let old = text.replace(r#""metadata":"169.254.169.254","#, "");
    device(false).restore(&serde_json::from_str(&old).unwrap()).unwrap();
}
