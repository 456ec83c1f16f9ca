//! Requests to a balloon of any shape, and what the host asks of it, against pages and a run that are kept here.

use crate::Input;
use bellows_devices::virtio::balloon::{BalloonSettings, HintingStatus};
use bellows_devices::virtio::testing::{FakeDriver, FakeGuest, Part};
use bellows_devices::virtio::{Balloon, BalloonHandle, VirtioDevice};
use bellows_memory::{Backing, BaseMemory, ByteSize, Layout, LayoutSpec};
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
/// Base memory ends here, with nothing behind it.
const BASE: u64 = 64 << 20;
/// Pages that no queue lies in; the last is the last of base memory.
const WATCHED: u64 = 16;
const FIRST: u64 = BASE / PAGE - WATCHED;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;

/// What has to hold.
#[derive(Default)]
struct Model {
    /// Watched pages that have gone.
    gone: [bool; WATCHED as usize],
    refused: u64,
    host_cmd: u32,
    guest_cmd: Option<u32>,
    last_run: u32,
    acknowledge: bool,
}

impl Model {
    /// The guest gives a range away.
    fn discard(&mut self, start: u64, bytes: u64) {
        let end = start.saturating_add(bytes);
        let whole = start.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes != 0 && end <= BASE;
        if !whole {
            self.refused += 1;
            return;
        }
        for page in start / PAGE..end / PAGE {
            self.gone[(page - FIRST) as usize] = true;
        }
    }

    fn command(&mut self, command: u32) {
        if command >= 2 {
            self.guest_cmd = Some(command);
        } else if self.guest_cmd == Some(self.last_run) {
            self.guest_cmd = Some(0);
            if self.acknowledge && self.host_cmd == self.last_run {
                self.host_cmd = 1;
            }
        }
    }

    fn takes_hints(&self) -> bool {
        self.host_cmd >= 2 && self.guest_cmd == Some(self.host_cmd)
    }
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let layout = Layout::new(&LayoutSpec::x86_64(ByteSize::bytes(BASE), vec![], 40)).expect("it fits");
    let base = BaseMemory::map(&layout, Backing::None).expect("the host has addresses");
    let guest = FakeGuest::in_view(base.view().clone());
    let settings = BalloonSettings {
        deflate_on_oom: true,
        stats_polling_interval_s: u16::MAX,
        free_page_hinting: true,
        free_page_reporting: true,
        ..Default::default()
    };
    let mut device = Balloon::new(&settings, base.discard().expect("pages go")).expect("a balloon");
    let handle = device.handle();
    let mut driver = guest.activate(&mut device);
    let mut model = Model::default();
    let (mut input, mut buffers) = (Input::new(data), 0);
    while !input.is_empty() {
        fill(&guest, &mut model);
        match input.byte() % 8 {
            0 => inflate(&mut driver, &mut model, &mut input),
            1 => free(REPORTS, &mut driver, &mut model, &mut input),
            2 => free(HINTS, &mut driver, &mut model, &mut input),
            3 => command(&mut driver, &mut model, &mut input),
            4 => host(&handle, &mut model, input.byte()),
            5 => configure(&mut device, &handle, &mut input),
            6 => statistics(&mut driver, &mut buffers, &mut input),
            _ => _ = driver.queues[DEFLATE].request(&[input.bytes(16)], &[]),
        }
        check(&guest, &handle, &model);
    }
    device.reset();
    let mut driver = guest.activate(&mut device);
    fill(&guest, &mut model);
    driver.queues[INFLATE].request(&[&(FIRST as u32).to_le_bytes()], &[]);
    model.gone[0] = true;
    assert_eq!(gone(&guest), model.gone);
}

/// Fills the pages that have gone anew.
fn fill(guest: &FakeGuest, model: &mut Model) {
    for (page, gone) in (FIRST..).zip(&mut model.gone) {
        guest.memory().write_slice(&[1; PAGE as usize], GuestAddress(page * PAGE)).expect("base memory");
        *gone = false;
    }
}

fn gone(guest: &FakeGuest) -> [bool; WATCHED as usize] {
    std::array::from_fn(|index| {
        let content = guest.read(GuestAddress((FIRST + index as u64) * PAGE), PAGE as usize);
        let gone = content == [0; PAGE as usize];
        assert!(gone || content == [1; PAGE as usize], "page {index} is neither whole nor gone");
        gone
    })
}

/// Pages in any order, watched ones and ones that do not exist; sometimes with a piece of one more.
fn inflate(driver: &mut FakeDriver, model: &mut Model, input: &mut Input<'_>) {
    let mut numbers = Vec::new();
    for _ in 0..input.byte() % 24 {
        numbers.push(match input.byte() {
            watched if watched < 0xf0 => FIRST as u32 + u32::from(watched) % WATCHED as u32,
            // Behind a gap, so that it is nobody's neighbour.
            _ => ((BASE / PAGE) as u32 + 1) | input.u32(),
        });
    }
    let rest = usize::from(input.byte() % 8).saturating_sub(4);
    let mut list: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    list.resize(list.len() + rest, 0);
    let half = list.len() / 2;
    driver.queues[INFLATE].request(&[&list[..half], &list[half..]], &[]);
    if rest != 0 {
        model.refused += 1;
        return;
    }
    numbers.sort_unstable();
    numbers.dedup();
    for run in numbers.chunk_by(|page, next| next - page == 1) {
        model.discard(u64::from(run[0]) * PAGE, run.len() as u64 * PAGE);
    }
}

/// Ranges from watched pages on, or behind base memory.
fn free(queue: usize, driver: &mut FakeDriver, model: &mut Model, input: &mut Input<'_>) {
    let mut parts = Vec::new();
    let taken = queue == REPORTS || model.takes_hints();
    for _ in 0..=input.byte() % 32 {
        let kind = input.byte();
        let (mut start, mut bytes) =
            ((FIRST + u64::from(kind) % WATCHED) * PAGE, u32::from(input.byte()) % 8 * PAGE as u32);
        match kind >> 5 {
            0 => start += u64::from(input.byte()),
            1 => bytes += u32::from(input.byte()),
            2 => start = BASE | input.u64(),
            // Less than what one request may free, in all.
            3 => bytes = (1 << 20) + input.u32() % (16 << 20),
            _ => {}
        }
        parts.push(Part::WritableAt(GuestAddress(start), bytes));
        // An empty piece is none.
        if taken && bytes != 0 {
            model.discard(start, bytes.into());
        }
    }
    assert_eq!(driver.queues[queue].request_parts(&parts).len, 0);
}

/// The guest's commands, of any length.
fn command(driver: &mut FakeDriver, model: &mut Model, input: &mut Input<'_>) {
    let command = match input.byte() {
        small @ 0..=3 => small.into(),
        byte if byte % 2 == 0 => model.last_run,
        _ => input.u32(),
    };
    let length = if input.byte() < 0xe0 { 4 } else { usize::from(input.byte() % 8) };
    let mut bytes = command.to_le_bytes().to_vec();
    bytes.resize(length, 0);
    driver.queues[HINTS].request(&[&bytes], &[]);
    match length {
        0 => {}
        4 => model.command(command),
        _ => model.refused += 1,
    }
}

fn host(handle: &BalloonHandle, model: &mut Model, byte: u8) {
    if byte.is_multiple_of(3) {
        handle.stop_hinting().expect("it has hinting");
        model.host_cmd = 1;
        return;
    }
    model.acknowledge = byte.is_multiple_of(2);
    handle.start_hinting(model.acknowledge).expect("it has hinting and a driver");
    model.last_run = (model.last_run + 1).max(2);
    (model.host_cmd, model.guest_cmd) = (model.last_run, None);
}

fn configure(device: &mut Balloon, handle: &BalloonHandle, input: &mut Input<'_>) {
    let target = ByteSize::bytes(input.u64() >> (input.byte() % 64));
    let before = handle.report();
    let valid = target.get().is_multiple_of(PAGE) && target.get() <= BASE;
    assert_eq!(handle.set_target(target).is_ok(), valid);
    let offset = input.u64() >> (input.byte() % 64);
    let bytes = input.bytes(24);
    device.write_config(offset, bytes);
    let mut read = vec![0xff; bytes.len()];
    device.read_config(offset, &mut read);
    let report = handle.report();
    assert_eq!(report.target, if valid { target } else { before.target });
    assert_eq!(report.hinting, before.hinting);
    let mut config = [0; 16];
    device.read_config(0, &mut config);
    assert_eq!(config[..4], ((report.target.get() / PAGE) as u32).to_le_bytes());
    assert_eq!(config[4..8], ((report.actual.get() / PAGE) as u32).to_le_bytes());
    assert_eq!(config[8..12], report.hinting.host_cmd.to_le_bytes());
    assert_eq!(config[12..], [0; 4]);
}

/// Buffers that the device keeps until it wants other statistics, which is never here.
fn statistics(driver: &mut FakeDriver, buffers: &mut u8, input: &mut Input<'_>) {
    if *buffers < 8 {
        *buffers += 1;
        driver.queues[STATISTICS].add(&[Part::ReadableAt(GuestAddress(input.u64()), input.u32())]);
        driver.queues[STATISTICS].add(&[Part::Readable(input.bytes(64))]);
        driver.queues[STATISTICS].kick();
    }
}

fn check(guest: &FakeGuest, handle: &BalloonHandle, model: &Model) {
    assert_eq!(gone(guest), model.gone);
    let report = handle.report();
    assert_eq!(report.discarded.refused, model.refused);
    assert_eq!(report.hinting, HintingStatus { host_cmd: model.host_cmd, guest_cmd: model.guest_cmd });
}
