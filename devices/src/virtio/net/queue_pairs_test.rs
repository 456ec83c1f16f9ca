use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::fake_link::{self, FakeHost, FakeLink};
use super::wire::{CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, ERR, HEADER_BYTES, OK};
use super::*;
use crate::virtio::limits::{Rate, RateLimit};
use crate::virtio::testing::{FakeDriver, FakeGuest, FakeInterrupt, Part};

const PAIRS: usize = 4;
const CONTROL: usize = 2 * PAIRS;

fn settings() -> NetSettings {
    NetSettings { mac: "02:00:00:00:00:07".parse().unwrap(), mtu: None, limits: RateLimits::default() }
}

/// A device with several pairs of queues, its driver, and the host behind each link.
struct Machine {
    guest: FakeGuest,
    hosts: Vec<FakeHost>,
    links: Vec<FakeLink>,
    device: Net,
    driver: FakeDriver,
}

impl Machine {
    fn new() -> Self {
        Self::with(u64::MAX, &settings())
    }

    /// With the features of `accepted` that are offered.
    fn with(accepted: u64, settings: &NetSettings) -> Self {
        let (links, hosts) = fake_link::queues(PAIRS);
        let guest = FakeGuest::new();
        let mut device = again(&links, settings);
        let features = FakeGuest::all_features(&device) & accepted;
        let driver = guest.try_activate(&mut device, features).unwrap();
        Self { guest, hosts, links, device, driver }
    }

    /// Has the driver use so many pairs; returns the device's answer.
    fn use_pairs(&mut self, pairs: u16) -> u8 {
        self.command(CONTROL, &set(pairs))
    }

    fn command(&mut self, queue: usize, bytes: &[u8]) -> u8 {
        let (header, rest) = bytes.split_at(bytes.len().min(2));
        let done = self.driver.queues[queue].request(&[header, rest], &[1]);
        assert_eq!(done.len, 1);
        done.written[0][0]
    }

    fn send(&mut self, pair: usize, frame: &[u8]) {
        let queue = &mut self.driver.queues[2 * pair + 1];
        queue.add(&[Part::Readable(&[0; HEADER_BYTES]), Part::Readable(frame)]);
        queue.kick();
    }

    /// Sends a packet each way through each of the first `pairs` pairs.
    fn assert_works(&mut self, pairs: usize) {
        for (pair, host) in self.hosts.iter().enumerate() {
            assert_eq!(host.is_used(), pair < pairs, "pair {pair} of {pairs}");
        }
        for pair in 0..pairs {
            let frame = [pair as u8; 60];
            let packet = [&[0; HEADER_BYTES][..], &frame].concat();
            self.driver.queues[2 * pair + 1].request(&[&packet], &[]);
            assert_eq!(self.hosts[pair].receive().1, frame);
            self.hosts[pair].send_frame(&frame);
            let done = self.driver.queues[2 * pair].request(&[], &[2000]);
            assert_eq!((done.len as usize, &done.written[0][HEADER_BYTES..][..60]), (HEADER_BYTES + 60, &frame[..]));
        }
    }

    fn used_pairs(&self) -> u16 {
        let DeviceState::Net(state) = self.device.save() else { panic!("the state of another device") };
        assert_eq!(state.queue_pairs.most as usize, PAIRS);
        state.queue_pairs.used
    }
}

fn again(links: &[FakeLink], settings: &NetSettings) -> Net {
    Net::with_queue_pairs(links.iter().map(FakeLink::again).collect(), settings).unwrap()
}

/// The command to use so many pairs.
fn set(pairs: u16) -> [u8; 4] {
    let [low, high] = pairs.to_le_bytes();
    [CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, low, high]
}

#[test]
fn the_first_pair_is_used_until_the_driver_says_otherwise() {
    let mut machine = Machine::new();
    let mut config = [0; 10];
    machine.device.read_config(0, &mut config);
    assert_eq!(config[8..], [PAIRS as u8, 0]);
    machine.assert_works(1);

    // What a driver does with queues that it does not use yet waits.
    machine.send(2, &[1; 60]);
    let address = machine.guest.allocate(2000);
    machine.driver.queues[4].add(&[Part::WritableAt(address, 2000)]);
    machine.driver.queues[4].kick();
    machine.guest.drain();
    assert!(!machine.hosts[2].has_packet() && machine.hosts[2].calls() == (0, 0));
    assert_eq!(machine.use_pairs(3), OK);
    assert_eq!(machine.hosts[2].receive().1, [1; 60]);
    machine.driver.queues[5].wait_used();
    machine.hosts[2].send_frame(&[2; 70]);
    assert_eq!(machine.driver.queues[4].wait_used().len as usize, HEADER_BYTES + 70);
    machine.assert_works(3);

    assert_eq!(machine.use_pairs(4), OK);
    machine.assert_works(4);
    assert_eq!(machine.use_pairs(2), OK);
    machine.assert_works(2);
    assert!(machine.device.handle().is_up(), "a link that is not used is not gone");
}

#[test]
fn a_pair_that_is_left_is_left_alone() {
    let mut machine = Machine::new();
    assert_eq!(machine.use_pairs(4), OK);
    // One for which the guest has too little room.
    let address = machine.guest.allocate(100);
    machine.driver.queues[6].add(&[Part::WritableAt(address, 100)]);
    machine.driver.queues[6].kick();
    machine.hosts[3].send_frame(&[3; 500]);
    machine.guest.drain();
    assert_eq!(machine.use_pairs(1), OK);
    assert_eq!(machine.device.handle().statistics().received.dropped, 1);
    let calls = machine.hosts[3].calls();
    machine.hosts[3].send_frame(&[4; 40]);
    machine.send(3, &[5; 60]);
    machine.guest.drain();
    assert_eq!(machine.hosts[3].calls(), calls);
    assert_eq!(machine.driver.queues[6].pop_used(), None);
    // When it is used again, what waits goes on.
    assert_eq!(machine.use_pairs(4), OK);
    assert_eq!(machine.driver.queues[6].wait_used().len as usize, HEADER_BYTES + 40);
    assert_eq!(machine.hosts[3].receive().1, [5; 60]);
}

#[test]
fn a_command_that_makes_no_sense_changes_nothing() {
    let mut machine = Machine::new();
    assert_eq!(machine.use_pairs(2), OK);
    for pairs in [0, PAIRS as u16 + 1, 0x8000, u16::MAX] {
        assert_eq!(machine.use_pairs(pairs), ERR, "{pairs}");
    }
    let long = [&set(3)[..], &[0; 2000]].concat();
    // Other classes and commands, too short and too long ones; those of features that are not offered.
    for bytes in [
        &[][..],
        &[4],
        &[4, 0],
        &[4, 0, 3],
        &long,
        &[4, 1, 3, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[5, 0],
        &[255, 255, 3, 0],
    ] {
        assert_eq!(machine.command(CONTROL, bytes), ERR, "{bytes:?}");
    }
    let end = FakeGuest::MEMORY as u64;
    let command = set(3);
    // Without a byte for the answer, or with one that is not there, nothing is done.
    for (parts, len) in [
        (vec![Part::Readable(&command)], 0),
        (vec![Part::Readable(&command), Part::Writable(0)], 0),
        (vec![Part::Writable(1), Part::Readable(&command)], 0),
        (vec![Part::Readable(&command), Part::WritableAt(GuestAddress(end), 1)], 0),
        (vec![Part::Readable(&command), Part::WritableAt(GuestAddress(u64::MAX), u32::MAX)], 0),
        (vec![Part::ReadableAt(GuestAddress(end - 2), 4), Part::Writable(1)], 1),
        (vec![Part::ReadableAt(GuestAddress(u64::MAX), u32::MAX), Part::Writable(1)], 0),
        (vec![Part::Writable(1)], 1),
    ] {
        assert_eq!(machine.driver.queues[CONTROL].request_parts(&parts).len, len, "{parts:?}");
    }
    let queue = &mut machine.driver.queues[CONTROL];
    queue.set_descriptor(20, machine.guest.allocate(4096), 4, 1, 21);
    queue.set_descriptor(21, machine.guest.allocate(4096), 4, 1, 20);
    queue.publish(20);
    queue.kick();
    assert_eq!(queue.wait_used().len, 0);
    machine.assert_works(2);
    // One byte at a time, and more room for the answer than it takes.
    let pieces = set(4);
    let parts: Vec<_> = pieces.chunks(1).map(Part::Readable).chain([Part::Writable(3), Part::Writable(9)]).collect();
    assert_eq!(machine.driver.queues[CONTROL].request_parts(&parts).len, 1);
    machine.assert_works(4);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_one() {
    let mut machine = Machine::with(!(feature::MQ | feature::CTRL_VQ), &settings());
    machine.driver.queues[CONTROL].add(&[Part::Readable(&set(2)), Part::Writable(1)]);
    machine.driver.queues[CONTROL].kick();
    machine.guest.drain();
    assert_eq!(machine.driver.queues[CONTROL].pop_used(), None);
    machine.assert_works(1);
    // Several need commands.
    Machine::with(!feature::CTRL_VQ, &settings()).assert_works(1);
    // Commands come right behind the only pair then.
    let mut machine = Machine::with(!feature::MQ, &settings());
    assert_eq!(machine.command(2, &set(1)), OK);
    assert_eq!(machine.command(2, &set(2)), ERR);
    machine.assert_works(1);
    let states = machine.device.suspend();
    assert!(states.iter().all(Option::is_some), "each queue that the driver has enabled has a position");
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    machine.assert_works(1);
}

#[test]
fn one_pair_has_no_commands() {
    let device = Net::new(fake_link::pair().0, &settings()).unwrap();
    assert_eq!(device.features() & (feature::CTRL_VQ | feature::MQ), 0);
    assert_eq!(device.queue_max_sizes(), [256; 2]);
    for count in [0, MAX_QUEUE_PAIRS + 1] {
        let error = Net::with_queue_pairs(fake_link::queues(count).0, &settings()).err().unwrap().to_string();
        assert!(error.contains(&format!("{count} pairs of queues: expected 1 to 16")), "{error}");
    }
}

/// Activates `device` without queue `missing`.
fn without(guest: &FakeGuest, device: &mut Net, missing: usize) -> Result<FakeDriver, ActivateError> {
    let interrupt = Arc::new(FakeInterrupt::new(device.queue_max_sizes().len()));
    let features = FakeGuest::all_features(device);
    let queue = |(index, size): (u16, &u16)| guest.queue(index, *size, interrupt.clone());
    let queues: Vec<_> = (0..).zip(device.queue_max_sizes()).map(queue).collect();
    let enabled = |(index, queue): (usize, &crate::virtio::testing::DriverQueue)| {
        (index != missing).then(|| queue.device_side(true))
    };
    device.activate(Activation {
        memory: guest.view().clone(),
        queues: queues.iter().enumerate().map(enabled).collect(),
        interrupt: interrupt.clone(),
        features,
        event_loop: guest.event_loop().handle(),
    })?;
    Ok(FakeDriver { queues, interrupt, features })
}

#[test]
fn a_pair_whose_queues_are_not_there_is_not_used() {
    let guest = FakeGuest::new();
    for (missing, most) in [(2, 1), (5, 2), (7, 3), (CONTROL, 0)] {
        let (links, hosts) = fake_link::queues(PAIRS);
        let mut device = again(&links, &settings());
        let driver = without(&guest, &mut device, missing).unwrap();
        let mut machine = Machine { guest: FakeGuest::new(), hosts, links, device, driver };
        if missing != CONTROL {
            assert_eq!(machine.use_pairs(most + 1), ERR);
            assert_eq!(machine.use_pairs(PAIRS as u16), ERR);
            assert_eq!(machine.use_pairs(most), OK);
        }
        machine.assert_works(usize::from(most.max(1)));
        let states = machine.device.suspend();
        let missed: Vec<_> = (0..states.len()).filter(|index| states[*index].is_none()).collect();
        assert_eq!(missed, [missing]);
    }
    for missing in [0, 1] {
        let mut device = again(&fake_link::queues(PAIRS).0, &settings());
        let error = without(&guest, &mut device, missing).err().unwrap();
        assert!(matches!(error, ActivateError::MissingQueue(queue) if usize::from(queue) == missing), "{error}");
    }
}

#[test]
fn what_is_used_outlives_a_suspension_and_a_new_device_but_no_reset() {
    let mut machine = Machine::new();
    assert_eq!(machine.use_pairs(3), OK);
    let states = machine.device.suspend();
    assert_eq!(machine.used_pairs(), 3);
    let state = machine.device.save();
    machine.device = again(&machine.links, &settings());
    machine.device.restore(&state).unwrap();
    assert_eq!(machine.device.save(), state);
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    machine.assert_works(3);

    machine.device.reset();
    assert_eq!(machine.used_pairs(), 1);
    machine.driver = machine.guest.activate(&mut machine.device);
    machine.assert_works(1);

    for used in [0, PAIRS as u16 + 1] {
        let DeviceState::Net(mut wrong) = state.clone() else { panic!("{state:?}") };
        wrong.queue_pairs.used = used;
        machine.device.reset();
        machine.device.restore(&DeviceState::Net(wrong)).unwrap_err();
        assert_eq!(machine.used_pairs(), 1);
    }
    Net::new(fake_link::pair().0, &settings()).unwrap().restore(&state).unwrap_err();
}

#[test]
fn a_host_that_refuses_leaves_all_as_it_was() {
    let mut machine = Machine::new();
    assert_eq!(machine.use_pairs(2), OK);
    machine.hosts[3].fail(libc::EPERM);
    assert_eq!(machine.use_pairs(4), ERR);
    machine.hosts[3].fail(0);
    machine.assert_works(2);
    assert_eq!(machine.use_pairs(4), OK);
    machine.assert_works(4);
}

#[test]
fn where_one_link_is_gone_so_is_the_interface() {
    let mut machine = Machine::new();
    assert_eq!(machine.use_pairs(3), OK);
    machine.guest.drain();
    machine.hosts[2].hang_up();
    machine.driver.interrupt.wait_config(1);
    assert!(!machine.device.handle().is_up());
    let before: Vec<_> = machine.hosts.iter().map(FakeHost::calls).collect();
    for pair in 0..PAIRS {
        machine.send(pair, &[1; 60]);
        machine.driver.queues[2 * pair + 1].wait_used();
    }
    assert_eq!(machine.hosts.iter().map(FakeHost::calls).collect::<Vec<_>>(), before);
    assert_eq!(machine.device.handle().statistics().transmitted.dropped, PAIRS as u64);
}

/// What one pair takes of a limit, another has no longer; and none waits for ever.
#[test]
fn all_pairs_share_the_limits() {
    let rate = Rate { per_second: 200.try_into().unwrap(), burst: 2.try_into().unwrap(), one_time_burst: 0 };
    let few = RateLimit { bandwidth: None, operations: Some(rate) };
    let limits = RateLimits { receive: few, transmit: few };
    let mut machine = Machine::with(u64::MAX, &NetSettings { limits, ..settings() });
    assert_eq!(machine.use_pairs(4), OK);
    for transmit in [true, false] {
        let begin = Instant::now();
        for pair in 0..PAIRS {
            for _ in 0..4 {
                if transmit {
                    machine.send(pair, &[1; 60]);
                } else {
                    let address = machine.guest.allocate(2000);
                    machine.driver.queues[2 * pair].add(&[Part::WritableAt(address, 2000)]);
                    machine.driver.queues[2 * pair].kick();
                    machine.hosts[pair].send_frame(&[2; 60]);
                }
            }
        }
        for pair in 0..PAIRS {
            for _ in 0..4 {
                machine.driver.queues[2 * pair + usize::from(transmit)].wait_used();
            }
        }
        // 16 packets, of which 2 pass at once, and as many more as a burst may have come back meanwhile.
        assert!(begin.elapsed() >= Duration::from_millis(60), "{:?}", begin.elapsed());
    }
}
