use bellows_memory::partition::{Answer, Handled, Request};
use bellows_memory::testing::Fixture;
use bellows_memory::{BlockRange, ByteSize, GuestAddress};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::fake::FakeEngine;
use super::table::Piece;
use super::*;
use crate::virtio::net::fake_link::{self, FakeHost, FakeLink};
use crate::virtio::net::mmds::Metadata;
use crate::virtio::net::wire::{CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, ERR, OK};
use crate::virtio::net::{Net, NetError, NetSettings, RateLimits};
use crate::virtio::state::DeviceState;
use crate::virtio::testing::{FakeDriver, FakeGuest, FakeInterrupt, PciMachine};
use crate::virtio::transport::common_config::field;
use crate::virtio::{ActivateError, Activation, VirtioDevice as _};

fn settings() -> NetSettings {
    NetSettings { mac: "02:00:00:00:00:07".parse().unwrap(), mtu: None, limits: RateLimits::default() }
}

/// A device whose queues a fake kernel serves.
fn device(pairs: usize, most: usize) -> (Net, Vec<FakeEngine>, Vec<FakeHost>) {
    let engines: Vec<_> = (0..pairs).map(|_| FakeEngine::default()).collect();
    let boxed = engines.iter().map(|engine| Box::new(engine.clone()) as Box<dyn Engine>).collect();
    let (links, hosts) = fake_link::queues(pairs);
    let device = Net::served_by(Vhost::new(boxed, most).unwrap(), links, &settings()).unwrap();
    (device, engines, hosts)
}

fn served(engine: &FakeEngine) -> [bool; 2] {
    engine.look(|known| known.served)
}

/// What the devices of `guest` see, as the kernel should have it.
fn memory(guest: &FakeGuest) -> Vec<Piece> {
    let piece = |region: &vm_memory::GuestRegionMmap| Piece {
        guest: region.start_addr().0,
        host: region.as_ptr() as u64,
        bytes: region.len(),
    };
    guest.memory().iter().map(piece).collect()
}

#[test]
fn a_driver_and_the_kernel_meet_at_the_queues() {
    let (mut device, engines, _hosts) = device(1, 64);
    let guest = FakeGuest::new();
    assert_eq!(served(&engines[0]), [false; 2]);
    let driver = guest.activate(&mut device);
    engines[0].look(|known| {
        assert_eq!((known.memory.clone(), known.served), (memory(&guest), [true; 2]));
        assert_eq!(known.features, FEATURES, "no other is the kernel's");
        for (queue, call) in (0..).zip(&known.calls) {
            let wired = driver.interrupt.wired(queue).unwrap();
            call.as_ref().unwrap().write(7).unwrap();
            assert_eq!(wired.read().unwrap(), 7, "the kernel interrupts the driver by itself");
        }
    });

    // The kernel takes some, until the device is suspended.
    engines[0].look(|known| known.positions = [3, 65535]);
    let states = device.suspend();
    assert_eq!(served(&engines[0]), [false; 2]);
    let positions: Vec<_> = states.iter().flatten().map(|state| (state.next_avail, state.next_used)).collect();
    assert_eq!(positions, [(3, 3), (65535, 65535)]);
    assert!((0..2).all(|queue| driver.interrupt.wired(queue).is_none()));
    let told = engines[0].look(|known| known.served_at.len());

    engines[0].look(|known| known.positions = [0; 2]);
    guest.resume(&mut device, &driver, states);
    engines[0].look(|known| {
        assert_eq!((known.positions, known.served), ([3, 65535], [true; 2]));
        assert_eq!(known.served_at.len(), told + 1);
    });
    device.reset();
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([false; 2], 0));
    assert_eq!(device.suspend(), [None, None]);
}

#[test]
fn what_a_queue_has_waited_with_is_looked_at() {
    let (mut device, _engines, _hosts) = device(1, 64);
    let guest = FakeGuest::new();
    let driver = guest.activate(&mut device);
    for queue in &driver.queues {
        assert!(queue.device_side(true).kick.read().is_ok());
    }
}

#[test]
fn the_kernels_interrupts_follow_the_drivers_vectors() {
    let (device, engines, _hosts) = device(1, 64);
    let machine = PciMachine::new();
    let (driver, _queues) = machine.start(Box::new(device));
    let signal = |queue: usize| {
        engines[0].look(|known| known.calls[queue].as_ref().unwrap().write(1).unwrap());
        machine.msi.carry();
    };
    // That of the configuration is the last one.
    let vectors = [0, 1].map(|queue| {
        driver.select_queue(queue);
        u16::from_le_bytes(driver.read(field::QUEUE_MSIX_VECTOR))
    });
    let count = |vector: u16| machine.msi.count(driver.message(vector));
    signal(0);
    signal(1);
    signal(1);
    assert_eq!(vectors.map(count), [1, 2]);
    driver.mask_vector(vectors[1], true);
    signal(1);
    assert_eq!((vectors.map(count), driver.is_pending(vectors[1])), ([1, 2], true));
    driver.mask_vector(vectors[1], false);
    assert_eq!((vectors.map(count), driver.is_pending(vectors[1])), ([1, 3], false));
    // Both queues at the first vector.
    driver.select_queue(1);
    driver.write(field::QUEUE_MSIX_VECTOR, &vectors[0].to_le_bytes());
    signal(1);
    assert_eq!(vectors.map(count), [2, 3]);
    driver.reset();
    assert_eq!((machine.msi.wired(), served(&engines[0])), (0, [false; 2]));
}

/// The answer to the guest's request, which waits while the host is giving memory back.
fn handle(fixture: &Fixture, request: Request) -> Answer {
    loop {
        match fixture.partition.handle(request) {
            Handled::Answer(answer) => return answer,
            Handled::Later => std::thread::yield_now(),
        }
    }
}

/// A partition of 128 MiB that is plugged, and a guest that has it.
fn with_partition() -> (Fixture, FakeGuest) {
    let fixture = Fixture::new(ByteSize::mib(128));
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    let plug = handle(&fixture, Request::Plug(BlockRange::new(0, 64).unwrap()));
    assert_eq!(plug, Answer::Done);
    let guest = FakeGuest::in_view(fixture.view.clone());
    (fixture, guest)
}

/// Starts `device` with the used ring of queue `queue` at `address`.
fn activate_at(
    guest: &FakeGuest,
    device: &mut Net,
    queue: usize,
    address: u64,
) -> Result<Arc<FakeInterrupt>, ActivateError> {
    let interrupt = Arc::new(FakeInterrupt::new(2));
    let mut queues: Vec<_> = (0..2).map(|index| guest.queue(index, 256, interrupt.clone()).device_side(true)).collect();
    queues[queue].queue.try_set_used_ring_address(GuestAddress(address)).unwrap();
    device.activate(Activation {
        memory: guest.view().clone(),
        queues: queues.into_iter().map(Some).collect(),
        interrupt: interrupt.clone(),
        features: FakeGuest::all_features(device),
        event_loop: guest.event_loop().handle(),
    })?;
    Ok(interrupt)
}

#[test]
fn the_kernel_has_each_plug_and_unplug() {
    let (mut device, engines, _hosts) = device(1, 64);
    let (fixture, guest) = with_partition();
    let driver = guest.activate(&mut device);
    let told = || engines[0].look(|known| known.memory.clone());
    assert_eq!((told().len(), told()), (2, memory(&guest)));
    for blocks in [4, 8] {
        fixture.partition.set_target(ByteSize::mib(128 - blocks)).unwrap();
        let range = BlockRange::new(64 - blocks as u32 / 2, 2).unwrap();
        assert_eq!(handle(&fixture, Request::Unplug(range)), Answer::Done);
        assert_eq!(told(), memory(&guest));
    }
    assert_eq!(handle(&fixture, Request::UnplugAll), Answer::Done);
    assert_eq!((told().len(), told()), (1, memory(&guest)));
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([true; 2], 0));
    let count = engines[0].look(|known| known.served_at.len());
    device.reset();
    fixture.partition.set_target(ByteSize::mib(128)).unwrap();
    // What was unplugged is given back to the host first.
    while handle(&fixture, Request::Plug(BlockRange::new(0, 64).unwrap())) == Answer::Busy {
        std::thread::yield_now();
    }
    assert_eq!(engines[0].look(|known| known.served_at.len()), count, "a device that is idle follows nothing");
    guest.activate(&mut device);
    assert_eq!(told(), memory(&guest));
}

#[test]
fn a_queue_whose_memory_goes_is_not_served_by_then() {
    for queue in 0..2 {
        let (mut device, engines, _hosts) = device(1, 64);
        let (fixture, guest) = with_partition();
        // Across two blocks: the second one goes.
        let address = fixture.start() + (2 << 20) - 0x400;
        let interrupt = activate_at(&guest, &mut device, queue, address).unwrap();
        fixture.partition.set_target(ByteSize::mib(120)).unwrap();
        let unplug = |block| handle(&fixture, Request::Unplug(BlockRange::new(block, 1).unwrap()));
        assert_eq!(unplug(63), Answer::Done);
        assert_eq!((served(&engines[0]), interrupt.needs_reset_count()), ([true; 2], 0));
        assert_eq!(unplug(1), Answer::Done);
        assert_eq!((served(&engines[0]), interrupt.needs_reset_count()), ([false; 2], 1));
        engines[0].look(|known| assert_eq!(known.served_at.last(), Some(&[false; 2]), "stopped first"));
        assert_eq!(unplug(62), Answer::Done);
        assert_eq!(interrupt.needs_reset_count(), 1, "once");
        // The driver resets the device and begins anew.
        device.reset();
        assert_eq!(activate_at(&guest, &mut device, queue, 0x8000).unwrap().needs_reset_count(), 0);
        assert_eq!(served(&engines[0]), [true; 2]);
    }
}

#[test]
fn a_queue_that_is_not_in_one_piece_is_refused() {
    let hole = [(GuestAddress(0), 64 << 20), (GuestAddress(128 << 20), 1 << 20)];
    for address in [(64 << 20) - 8, 100 << 20, (128 << 20) - 8, (129 << 20) - 8, u64::MAX - 3] {
        let (mut device, engines, _hosts) = device(1, 64);
        let guest = FakeGuest::with_memory(&hole);
        let error = activate_at(&guest, &mut device, 1, address).err().unwrap();
        let ActivateError::Kernel(source) = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "queue 1 is not in guest memory in one piece");
        device.reset();
        assert_eq!(served(&engines[0]), [false; 2]);
    }
}

#[test]
fn what_the_kernel_refuses_is_an_error_and_leaves_nothing() {
    for refused in ["features", "memory", "ring", "serve"] {
        let (mut device, engines, _hosts) = device(1, 64);
        let guest = FakeGuest::new();
        engines[0].look(|known| known.refuses = Some(refused));
        let features = FakeGuest::all_features(&device);
        let result = guest.try_activate(&mut device, features);
        assert_eq!(served(&engines[0]), [false; 2]);
        assert!(result.is_err(), "{refused}");
        engines[0].look(|known| known.refuses = None);
        device.reset();
        guest.activate(&mut device);
        assert_eq!(served(&engines[0]), [true; 2]);
    }
}

#[test]
fn a_kernel_that_does_not_follow_serves_nothing() {
    let (mut device, engines, _hosts) = device(2, 64);
    let (fixture, guest) = with_partition();
    let driver = guest.activate(&mut device);
    engines[1].look(|known| known.refuses = Some("memory"));
    assert_eq!(handle(&fixture, Request::UnplugAll), Answer::Done);
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([false; 2], 1));
}

#[test]
fn more_pieces_than_the_kernel_takes_are_refused_with_the_figures() {
    let (mut device, engines, _hosts) = device(1, 2);
    let (fixture, guest) = with_partition();
    let driver = guest.activate(&mut device);
    fixture.partition.set_target(ByteSize::mib(120)).unwrap();
    // Out of its middle.
    let unplug = |block| handle(&fixture, Request::Unplug(BlockRange::new(block, 1).unwrap()));
    assert_eq!(unplug(5), Answer::Busy);
    assert_eq!(engines[0].look(|known| known.memory.clone()), memory(&guest));
    assert_eq!(memory(&guest).len(), 2);
    assert_eq!(unplug(63), Answer::Done, "at its end it makes no piece");
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([true; 2], 0));

    let error = Vhost::open(1, guest.view(), 1000).err().unwrap().to_string();
    assert!(error.starts_with("guest memory in 1000 pieces: expected at most "), "{error}");
    assert!(error.contains("max_mem_regions"), "{error}");
    if let Err(error) = Vhost::open(1, guest.view(), 1) {
        assert!(error.to_string().contains("/dev/vhost-net"), "{error}");
    }
}

#[test]
fn the_limit_is_the_modules() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, expected) in [("509\n", 255), ("100\n", 100), ("0\n", 0), ("", 64), ("many", 64)] {
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(limit(file.path()), expected, "{text:?}");
    }
    assert_eq!(limit(Path::new("/nowhere")), 64);
}

#[test]
fn a_driver_that_breaks_a_queue_has_to_reset_the_device() {
    let (mut device, engines, _hosts) = device(1, 64);
    let guest = FakeGuest::new();
    let driver = guest.activate(&mut device);
    engines[0].look(|known| known.error.as_ref().unwrap().write(1).unwrap());
    driver.interrupt.wait_needs_reset();
    guest.drain();
    assert_eq!(served(&engines[0]), [false; 2]);
    device.reset();
    let driver = guest.activate(&mut device);
    guest.drain();
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([true; 2], 0));
}

#[test]
fn a_chain_that_nobody_can_use_goes_back_and_the_queue_goes_on() {
    let (mut device, engines, _hosts) = device(2, 64);
    let (fixture, guest) = with_partition();
    let mut driver = guest.activate(&mut device);
    let fail = || engines[0].look(|known| known.error.as_ref().unwrap().write(1).unwrap());
    assert_eq!(handle(&fixture, Request::UnplugAll), Answer::Done);
    // Into a window that nothing is plugged in, and a loop.
    driver.queues[1].set_descriptor(3, GuestAddress(fixture.start()), 100, 0, 0);
    driver.queues[1].set_descriptor(4, GuestAddress(0), 100, 1, 4);
    let call = driver.interrupt.wired(1).unwrap();
    for (position, head) in [(0, 3), (1, 4)] {
        driver.queues[1].publish(head as u16);
        fail();
        guest.drain();
        let used = driver.queues[1].pop_used().unwrap();
        assert_eq!((used.head, used.len), (head, 0));
        assert_eq!(engines[0].look(|known| (known.positions, known.served)), ([0, position + 1], [true; 2]));
        assert_eq!((call.read().unwrap(), driver.interrupt.needs_reset_count()), (1, 0));
    }
    assert_eq!(served(&engines[1]), [false; 2], "which is not used");
    // One that is sound is not what the kernel has stopped at.
    driver.queues[1].set_descriptor(5, GuestAddress(0x100), 100, 0, 0);
    driver.queues[1].publish(5);
    fail();
    driver.interrupt.wait_needs_reset();
    guest.drain();
    assert_eq!((served(&engines[0]), driver.queues[1].pop_used().is_none()), ([false; 2], true));
}

#[test]
fn an_end_of_the_host_that_is_gone_takes_the_link_down() {
    let (mut device, engines, hosts) = device(1, 64);
    let guest = FakeGuest::new();
    let driver = guest.activate(&mut device);
    guest.drain();
    assert!(device.handle().is_up());
    hosts.iter().for_each(FakeHost::hang_up);
    driver.interrupt.wait_config(1);
    assert!(!device.handle().is_up());
    assert_eq!((served(&engines[0]), driver.interrupt.needs_reset_count()), ([false; 2], 0));
}

/// Has the driver use so many pairs; returns the device's answer.
fn use_pairs(driver: &mut FakeDriver, pairs: u16) -> u8 {
    let [low, high] = pairs.to_le_bytes();
    let control = driver.queues.len() - 1;
    driver.queues[control].request(&[&[CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET], &[low, high]], &[1]).written[0][0]
}

#[test]
fn pairs_are_served_as_the_driver_uses_them() {
    let (mut device, engines, hosts) = device(4, 64);
    let (fixture, guest) = with_partition();
    let mut driver = guest.activate(&mut device);
    let assert_used = |pairs: usize| {
        for (index, (engine, host)) in engines.iter().zip(&hosts).enumerate() {
            let used = index < pairs;
            assert_eq!((served(engine), host.is_used()), ([used; 2], used), "pair {index} of {pairs}");
        }
    };
    assert_used(1);
    for (pairs, answer, used) in [(3, OK, 3), (5, ERR, 3), (4, OK, 4), (2, OK, 2)] {
        assert_eq!(use_pairs(&mut driver, pairs), answer);
        assert_used(used);
    }
    engines[3].look(|known| known.refuses = Some("serve"));
    assert_eq!(use_pairs(&mut driver, 4), ERR);
    assert_used(2);
    assert_eq!(handle(&fixture, Request::UnplugAll), Answer::Done);
    for engine in &engines {
        assert_eq!(engine.look(|known| known.memory.clone()), memory(&guest), "of all pairs");
    }
    let states = device.suspend();
    assert!(states.iter().all(Option::is_some) && states.len() == 9);
    guest.resume(&mut device, &driver, states);
    assert_used(2);
    engines[1].look(|known| known.error.as_ref().unwrap().write(1).unwrap());
    driver.interrupt.wait_needs_reset();
    assert_eq!(use_pairs(&mut driver, 3), ERR);
    assert!(engines.iter().all(|engine| served(engine) == [false; 2]));
    device.reset();
    assert!(hosts.iter().skip(1).all(|host| !host.is_used()));
}

#[test]
fn what_needs_the_packets_is_refused() {
    let vhost = |pairs: usize| {
        let boxed = (0..pairs).map(|_| Box::new(FakeEngine::default()) as Box<dyn Engine>).collect();
        Vhost::new(boxed, 64).unwrap()
    };
    let rate = crate::virtio::limits::Rate {
        per_second: 1.try_into().unwrap(),
        burst: 1.try_into().unwrap(),
        one_time_burst: 0,
    };
    let mut limited = settings();
    limited.limits.receive.bandwidth = Some(rate);
    let refused = |settings: &NetSettings, pairs: usize| {
        let links: Vec<FakeLink> = fake_link::queues(2).0;
        Net::served_by(vhost(pairs), links, settings).err().unwrap().to_string()
    };
    assert!(refused(&limited, 2).contains("no rate limits"), "{}", refused(&limited, 2));
    assert!(refused(&settings(), 1).contains("1 pairs of queues: expected 2"));
    let (mut device, ..) = device(1, 64);
    let error = device.serve_metadata(&Metadata::new(100), [169, 254, 169, 254].into());
    assert!(matches!(error, Err(NetError::Unseen("metadata service"))));

    // Nor do they come with a state.
    let mut other = Net::new(fake_link::pair().0, &limited).unwrap();
    let state = other.save();
    assert!(device.restore(&state).unwrap_err().to_string().contains("limiters"));
    let plain = Net::new(fake_link::pair().0, &settings()).unwrap().save();
    assert!(matches!(plain, DeviceState::Net(_)));
    device.restore(&plain).unwrap();
    assert!(other.restore(&plain).is_ok(), "who serves a device is no part of its state");
}
