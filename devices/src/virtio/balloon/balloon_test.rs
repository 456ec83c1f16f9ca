use std::thread;
use std::time::Duration;

use bellows_memory::{Backing, BaseMemory, Layout, LayoutSpec};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::virtio::testing::{FakeDriver, FakeGuest, FakeInterrupt, PATIENCE, Part};

#[path = "hinting_run_test.rs"]
mod hinting_run_test;
#[path = "hostile_test.rs"]
mod hostile_test;

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Pages that no queue is in: from 1 GiB on.
const FREE: u64 = GIB;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;

fn everything() -> BalloonSettings {
    BalloonSettings {
        target: ByteSize::mib(3),
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_hinting: true,
        free_page_reporting: true,
    }
}

fn base() -> BaseMemory {
    let layout = LayoutSpec::x86_64(ByteSize::gib(4), vec![ByteSize::gib(1)], 40);
    BaseMemory::map(&Layout::new(&layout).unwrap(), Backing::None).unwrap()
}

/// A guest with 3 GiB of base memory below the device hole, 1 GiB above it, and a balloon.
struct Machine {
    guest: FakeGuest,
    base: BaseMemory,
    device: Balloon,
    handle: BalloonHandle,
    driver: FakeDriver,
}

impl Machine {
    fn new(settings: &BalloonSettings) -> Self {
        let base = base();
        let guest = FakeGuest::in_view(base.view().clone());
        let mut device = Balloon::new(settings, base.discard().unwrap()).unwrap();
        let handle = device.handle();
        let driver = guest.activate(&mut device);
        Self { guest, base, device, handle, driver }
    }

    /// Fills pages with their numbers.
    fn fill(&self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            self.guest.memory().write_slice(&page.to_le_bytes().repeat(512), GuestAddress(page * PAGE)).unwrap();
        }
    }

    /// Of pages that were filled, those that are still whole; the others are all zeros.
    fn whole(&self, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let is_whole = |page: &u64| {
            let content = self.guest.read(GuestAddress(page * PAGE), PAGE as usize);
            let whole = content == page.to_le_bytes().repeat(512);
            assert!(whole || content == [0; PAGE as usize], "page {page} is neither whole nor gone");
            whole
        };
        pages.into_iter().filter(is_whole).collect()
    }

    /// Has the device serve a request that needs no answer.
    fn tell(&mut self, queue: usize, parts: &[Part<'_>]) {
        assert_eq!(self.driver.queues[queue].request_parts(parts).len, 0);
    }

    fn inflate(&mut self, pages: &[u32]) {
        self.tell(INFLATE, &[Part::Readable(&list(pages))]);
    }

    /// Reports or hints pages of 4 KiB as free.
    fn free(&mut self, queue: usize, pages: &[u64]) {
        let parts: Vec<_> = pages.iter().map(|page| Part::WritableAt(GuestAddress(page * PAGE), PAGE as u32)).collect();
        self.tell(queue, &parts);
    }

    fn command(&mut self, command: u32) {
        self.tell(HINTS, &[Part::Readable(&command.to_le_bytes())]);
    }

    fn config(&self) -> [u32; 4] {
        let mut bytes = [0xff; 16];
        self.device.read_config(0, &mut bytes);
        let numbers = bytes.as_chunks().0;
        std::array::from_fn(|index| u32::from_le_bytes(numbers[index]))
    }

    fn discarded(&self) -> Discards {
        self.handle.report().discarded
    }
}

fn list(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()
}

fn kib(kib: u64) -> ByteSize {
    ByteSize::kib(kib)
}

#[test]
fn it_offers_what_it_is_made_with() {
    let base = base();
    let nothing = BalloonSettings::default();
    for (settings, features, queues) in [
        (nothing, 0, 2),
        (BalloonSettings { deflate_on_oom: true, ..nothing }, 1 << 2, 2),
        (BalloonSettings { stats_polling_interval_s: 5, ..nothing }, 1 << 1, 3),
        (BalloonSettings { free_page_hinting: true, ..nothing }, 1 << 3, 4),
        (BalloonSettings { free_page_reporting: true, ..nothing }, 1 << 5, 5),
        (everything(), 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5, 5),
    ] {
        let device = Balloon::new(&settings, base.discard().unwrap()).unwrap();
        assert_eq!(device.device_type(), 5);
        assert_eq!((device.features(), device.queue_max_sizes().len()), (features, queues), "{settings:?}");
        assert_eq!(settings.queues(), queues);
    }
}

#[test]
fn the_target_is_whole_pages_of_base_memory() {
    let base = base();
    for target in [ByteSize::bytes(4095), ByteSize::gib(5), ByteSize::bytes(4 * GIB + PAGE), ByteSize::bytes(u64::MAX)]
    {
        let settings = BalloonSettings { target, ..BalloonSettings::default() };
        let error = Balloon::new(&settings, base.discard().unwrap()).err().unwrap().to_string();
        assert!(error.contains(&target.to_string()) && error.contains("at most the 4 GiB"), "{error}");
    }
    let machine = Machine::new(&everything());
    assert_eq!(machine.config(), [768, 0, 0, 0]);
    let generation = machine.device.config_generation();
    machine.handle.set_target(ByteSize::gib(4)).unwrap();
    machine.driver.interrupt.wait_config(1);
    assert_eq!(machine.config(), [1 << 20, 0, 0, 0]);
    assert_ne!(machine.device.config_generation(), generation);
    assert!(machine.handle.set_target(ByteSize::bytes(4 * GIB + PAGE)).is_err());
    assert_eq!(machine.handle.report().target, ByteSize::gib(4), "a refusal changes nothing");
}

#[test]
fn inflated_pages_go_back_and_deflated_ones_come_again() {
    let mut machine = Machine::new(&everything());
    let first = (FREE / PAGE) as u32;
    machine.fill(FREE / PAGE..FREE / PAGE + 8);
    // In any order, with neighbours, and one twice.
    machine.inflate(&[first + 5, first + 1, first + 2, first + 1]);
    assert_eq!(machine.whole(FREE / PAGE..FREE / PAGE + 8), [0, 3, 4, 6, 7].map(|page| FREE / PAGE + page));
    assert_eq!(machine.discarded(), Discards { inflated: kib(12), ..Discards::default() });
    machine.tell(DEFLATE, &[Part::Readable(&list(&[first + 1, first + 2]))]);
    machine.fill([FREE / PAGE + 1]);
    assert_eq!(machine.whole([FREE / PAGE + 1]), [FREE / PAGE + 1]);
    // Above the device hole, and by an indirect table in two pieces.
    machine.fill([4 * GIB / PAGE]);
    let pages = list(&[(4 * GIB / PAGE) as u32]);
    machine.driver.queues[INFLATE].add_indirect(&[Part::Readable(&pages[..1]), Part::Readable(&pages[1..])]);
    machine.driver.queues[INFLATE].kick();
    machine.driver.queues[INFLATE].wait_used();
    assert_eq!(machine.whole([4 * GIB / PAGE]), [0; 0]);
}

#[test]
fn reported_pages_are_gone_when_the_report_is_given_back() {
    let mut machine = Machine::new(&everything());
    let pages: Vec<_> = (0..32).map(|page| FREE / PAGE + 2 * page).collect();
    for round in 1..=20 {
        machine.fill(pages.iter().copied());
        machine.free(REPORTS, &pages);
        assert_eq!(machine.whole(pages.iter().copied()), [0; 0]);
        assert_eq!(machine.discarded().reported.get(), round * 32 * PAGE);
    }
}

#[test]
fn the_driver_says_how_large_the_balloon_is() {
    let mut machine = Machine::new(&everything());
    assert_eq!(machine.handle.report().actual, kib(0));
    let waiter = thread::spawn({
        let handle = machine.handle.clone();
        // What is waited for may look at the balloon itself.
        move || handle.wait(PATIENCE, |report| report.actual == handle.report().target).unwrap()
    });
    machine.device.write_config(4, &768_u32.to_le_bytes());
    assert_eq!(waiter.join().unwrap().actual, ByteSize::mib(3));
    // Byte by byte, and over both ends; the rest is the host's.
    machine.device.write_config(5, &[1]);
    assert_eq!(machine.config(), [768, 0x0100, 0, 0]);
    machine.device.write_config(0, &[9; 32]);
    assert_eq!(machine.config(), [768, 0x0909_0909, 0, 0]);
    for offset in [3, 8, 16, u64::MAX - 1, u64::MAX] {
        machine.device.write_config(offset, &[7]);
    }
    machine.device.write_config(u64::MAX, &[7; 9]);
    assert_eq!(machine.config(), [768, 0x0909_0909, 0, 0]);

    let error = machine.handle.wait(Duration::ZERO, |_| false).unwrap_err().to_string();
    assert!(error.contains("of a target of 3 MiB"), "{error}");
    machine.handle.end();
    assert!(matches!(machine.handle.wait(PATIENCE, |_| false), Err(BalloonError::Ended)));
}

#[test]
fn statistics_come_when_they_are_due() {
    let mut machine = Machine::new(&everything());
    assert_eq!(machine.handle.report().statistics_age, None);
    let queue = &mut machine.driver.queues[STATISTICS];
    for round in 0..2 {
        // The driver fills its buffer at once, and again whenever it gets it back.
        queue.add(&[Part::Readable(&entry(4, 7 + round)), Part::Readable(&entry(5 + round as u16, 100))]);
        queue.kick();
        let report = machine.handle.wait(PATIENCE, |report| report.statistics.free_memory == Some(7 + round)).unwrap();
        assert_eq!(report.statistics.total_memory, Some(100), "what is left out keeps its value");
        assert!(report.statistics_age.unwrap() < PATIENCE);
        assert_eq!(queue.wait_used().len, 0);
    }
    machine.device.reset();
    assert_eq!(machine.handle.report().statistics, MemoryStatistics::default());
}

#[test]
fn the_polling_interval_changes_while_the_vm_runs() {
    let mut machine = Machine::new(&BalloonSettings { stats_polling_interval_s: u16::MAX, ..everything() });
    let queue = &mut machine.driver.queues[STATISTICS];
    queue.add(&[Part::Readable(&entry(4, 7))]);
    queue.kick();
    machine.handle.wait(PATIENCE, |report| report.statistics.free_memory.is_some()).unwrap();
    assert_eq!(queue.pop_used(), None);
    machine.handle.set_polling_interval(1).unwrap();
    queue.wait_used();
    assert!(matches!(machine.handle.set_polling_interval(0), Err(BalloonError::PollingInterval)));
    let without = Machine::new(&BalloonSettings::default());
    assert!(matches!(without.handle.set_polling_interval(1), Err(BalloonError::NoStatistics)));
}

/// The specification's numbers leave a gap where Linux leaves none.
#[test]
fn drivers_number_the_queues_in_two_ways() {
    let settings = BalloonSettings { stats_polling_interval_s: 1, free_page_reporting: true, ..Default::default() };
    for numbers in [[0, 1, 2, 3], [0, 1, 2, 4]] {
        let mut machine = Machine::new(&settings);
        machine.device.reset();
        let features = FakeGuest::all_features(&machine.device);
        let interrupt = Arc::new(FakeInterrupt::new(5));
        let mut queues = numbers.map(|number| machine.guest.queue(number, 256, interrupt.clone()));
        let mut activation = Activation {
            memory: machine.guest.view().clone(),
            queues: (0..5).map(|_| None).collect(),
            interrupt,
            features,
            event_loop: machine.guest.event_loop().handle(),
        };
        for queue in &queues {
            activation.queues[usize::from(queue.index)] = Some(queue.device_side(true));
        }
        machine.device.activate(activation).unwrap();
        machine.fill([FREE / PAGE]);
        queues[3].request_parts(&[Part::WritableAt(GuestAddress(FREE), PAGE as u32)]);
        assert_eq!(machine.discarded().reported, kib(4), "{numbers:?}");
        let states = machine.device.suspend();
        let served: Vec<_> =
            (0..).zip(&states).filter(|(_, state)| state.is_some()).map(|(number, _)| number).collect();
        assert_eq!(served, numbers);
    }
}

#[test]
fn a_driver_may_leave_features_out() {
    let mut machine = Machine::new(&everything());
    machine.device.reset();
    let mut driver = machine.guest.try_activate(&mut machine.device, 1 << 32).unwrap();
    machine.fill([FREE / PAGE]);
    driver.queues[INFLATE].request(&[&list(&[(FREE / PAGE) as u32])], &[]);
    assert_eq!(machine.discarded().inflated, kib(4));
    assert!(matches!(machine.handle.start_hinting(true), Err(BalloonError::NoDriver)));
}

#[test]
fn a_new_device_goes_on_from_a_saved_state() {
    let mut machine = Machine::new(&everything());
    machine.handle.set_target(ByteSize::mib(64)).unwrap();
    machine.device.write_config(4, &5_u32.to_le_bytes());
    machine.handle.start_hinting(true).unwrap();
    machine.command(2);
    machine.driver.queues[STATISTICS].add(&[Part::Readable(&entry(4, 7))]);
    let states = machine.device.suspend();
    let saved = machine.device.save();

    let mut device = Balloon::new(&everything(), machine.base.discard().unwrap()).unwrap();
    device.restore(&saved).unwrap();
    assert_eq!(device.save(), saved);
    machine.handle = device.handle();
    machine.device = device;
    assert_eq!(machine.config(), [16384, 5, 2, 0]);
    machine.guest.resume(&mut machine.device, &machine.driver, states);
    // The run goes on, and the buffer with statistics is still there.
    machine.fill([FREE / PAGE]);
    machine.free(HINTS, &[FREE / PAGE]);
    assert_eq!(machine.discarded().hinted, kib(4));
    machine.handle.wait(PATIENCE, |report| report.statistics.free_memory == Some(7)).unwrap();
}

#[test]
fn a_state_of_another_device_is_refused_with_the_value() {
    let machine = Machine::new(&everything());
    let DeviceState::Balloon(saved) = machine.device.save() else { panic!("the state of a balloon") };
    let text = serde_json::to_string(&saved).unwrap();
    let mut device = Balloon::new(&everything(), machine.base.discard().unwrap()).unwrap();
    for (from, to, named) in [
        (r#""features":46"#, r#""features":2"#, "features of the balloon is 2: expected 46"),
        (
            r#""num_pages":768"#,
            r#""num_pages":1048577"#,
            "num_pages of the balloon is 1048577: expected at most the 1048576",
        ),
        (r#""host_cmd":0"#, r#""host_cmd":7"#, "host_cmd of the balloon is 7: expected 0, 1 or the last run, 0"),
    ] {
        let other = text.replace(from, to);
        assert_ne!(other, text);
        let error =
            device.restore(&DeviceState::Balloon(serde_json::from_str(&other).unwrap())).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    assert!(device.restore(&DeviceState::Stateless).is_err());
    assert_eq!(device.save(), DeviceState::Balloon(saved), "a refusal changes nothing");
}
