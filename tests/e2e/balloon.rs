//! The balloon: base memory goes back to the host while the guest runs, and the guest has it again when it needs it.

use std::thread;
use std::time::Instant;

use bellows_vmm::{Balloon, BalloonConfig, BalloonReport, BalloonStatistics, ByteSize, InstanceSpec, Transport};

use crate::extension::park;
use crate::fixture::{Guest, Job, PATIENCE, Running, demo, image_id, partition};

/// Fills `MIB` MiB. Checks them and ends when it is told to.
const HOLDS: &str = r#"
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
kept = bytearray(MIB << 20)
numbers = bytes(range(256)) * MIB
kept[::4096] = numbers
print("holds", flush=True)
signal.sigwait([signal.SIGTERM])
print("intact", kept[::4096] == numbers)"#;

/// An instance that runs [`HOLDS`] with `mib` MiB.
fn holder(id: &str, mib: u64) -> InstanceSpec {
    InstanceSpec::new(id.parse().unwrap(), image_id(), ["python3", "-c", &HOLDS.replace("MIB", &mib.to_string())])
}

/// Starts [`HOLDS`] in base memory; returns when it holds its memory.
fn holds(guest: &Running, id: &str, mib: u64) -> Job {
    let mut spec = holder(id, mib);
    spec.base_limit = Some(ByteSize::mib(mib + 48));
    let job = guest.start_spec(&spec);
    assert!(job.says_or_ends("holds\n"), "{id}: {}\n{}", job.printed(), guest.console());
    job
}

/// Tells it to end; it still has what it kept.
fn ends(job: Job) {
    job.signal(15);
    let (status, output) = job.finish();
    assert_eq!((status.code, status.oom_killed, output.as_str()), (0, false, "holds\nintact True\n"));
}

/// An instance takes memory in base memory, and frees it.
fn uses(guest: &Running, id: &str, mib: u64) {
    ends(holds(guest, id, mib));
}

fn balloon(guest: &Running) -> &Balloon {
    guest.vm.balloon().expect("the VM has a balloon")
}

fn set_target(guest: &Running, target: ByteSize) {
    balloon(guest).set_target(target).unwrap();
}

/// Waits until the report is as wanted.
fn wait(guest: &Running, wanted: impl Fn(&BalloonReport) -> bool) -> BalloonReport {
    let waited = balloon(guest).wait(PATIENCE, wanted);
    waited.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", balloon(guest).report(), guest.console()))
}

fn reaches_its_target(report: &BalloonReport) -> bool {
    report.actual == report.target
}

fn statistics(guest: &Running) -> BalloonStatistics {
    balloon(guest).statistics().unwrap()
}

/// Waits until the statistics are as wanted.
fn wait_statistics(guest: &Running, wanted: impl Fn(&BalloonStatistics) -> bool) {
    wait(guest, |_| wanted(&statistics(guest)));
}

fn resident(guest: &Running) -> ByteSize {
    ByteSize::bytes(guest.vm.resident_bytes().unwrap())
}

/// A line of the guest's `/proc/meminfo`, rounded down to whole MiB.
fn meminfo(guest: &Running, id: &str, name: &str) -> u64 {
    let line = guest.shell(id, &format!("grep {name}: /proc/meminfo"));
    let kib: Option<u64> = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    kib.unwrap_or_else(|| panic!("{line}")) >> 10
}

/// `bytes` and `mib` MiB.
fn and(bytes: ByteSize, mib: u64) -> ByteSize {
    bytes.plus(ByteSize::mib(mib))
}

#[test]
fn an_inflated_balloon_gives_memory_to_the_host_and_a_deflated_one_to_the_guest() {
    let guest = Guest::ours().balloon(BalloonConfig::default()).boot();
    let total = meminfo(&guest, "total", "MemTotal");
    let target = meminfo(&guest, "available", "MemAvailable") - 64;
    // The balloon has no room beside this memory, so it takes most of it.
    uses(&guest, "before", 256);
    let before = resident(&guest);
    set_target(&guest, ByteSize::mib(target));
    let report = wait(&guest, reaches_its_target);
    let after = resident(&guest);
    println!("{report:?}: resident before {before}, after {after}");
    assert!(report.discarded.inflated >= ByteSize::mib(160), "{report:?}");
    assert!(and(after, 160) <= before, "{before}, then {after}");
    assert_eq!(report.discarded.refused, 0, "{report:?}");
    assert!(meminfo(&guest, "inflated", "MemTotal") <= total - target, "the guest has that much less");

    set_target(&guest, ByteSize::mib(0));
    wait(&guest, reaches_its_target);
    assert_eq!(meminfo(&guest, "deflated", "MemTotal"), total);
    let job = holds(&guest, "again", 256);
    assert!(resident(&guest) >= and(after, 160));
    ends(job);
    guest.shutdown();
}

#[test]
fn statistics_come_at_an_interval_that_can_be_changed() {
    let hour = BalloonConfig { stats_polling_interval_s: 3600, ..BalloonConfig::default() };
    let guest = Guest::ours().balloon(hour).boot();
    wait_statistics(&guest, |statistics| statistics.age.is_some());
    let first = statistics(&guest);
    println!("{first:?}");
    let memory = first.memory;
    let free = memory.free_memory.unwrap();
    let total = memory.total_memory.unwrap();
    assert!((400 << 20..=512 << 20).contains(&total), "{memory:?}");
    assert!(free > 0 && free < total && memory.available_memory.unwrap() < total, "{memory:?}");
    assert!(memory.disk_caches.unwrap() < total - free, "{memory:?}");
    assert!(memory.minor_faults.unwrap() >= memory.major_faults.unwrap(), "{memory:?}");
    assert_eq!((memory.swap_in, memory.swap_out, memory.oom_kill), (Some(0), Some(0), Some(0)), "{memory:?}");
    assert_eq!((first.target_pages, first.actual_pages), (0, 0));

    let job = holds(&guest, "holds", 192);
    let later = statistics(&guest);
    assert_eq!(later.memory, memory, "they are an hour old at most");
    assert!(later.age > first.age, "{later:?}, after {first:?}");
    balloon(&guest).set_polling_interval(1).unwrap();
    wait_statistics(&guest, |now| now.memory.free_memory.unwrap() + (128 << 20) <= free);
    assert!(statistics(&guest).age < later.age, "{:?}, after {later:?}", statistics(&guest));
    // Again and again.
    let held = statistics(&guest).memory.free_memory.unwrap();
    ends(job);
    wait_statistics(&guest, |now| now.memory.free_memory.unwrap() >= held + (128 << 20));
    guest.shutdown();
}

#[test]
fn memory_that_an_instance_has_freed_goes_back_by_itself() {
    let reporting = BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() };
    let guest = Guest::ours().balloon(reporting).boot();
    for id in ["first", "again"] {
        let job = holds(&guest, id, 192);
        let (held, before) = (resident(&guest), balloon(&guest).report().discarded.reported);
        ends(job);
        let report = wait(&guest, |report| report.discarded.reported >= and(before, 160));
        let after = resident(&guest);
        println!("{report:?}: resident held {held}, after {after}");
        assert!(and(after, 128) <= held, "{held}, then {after}");
        assert_eq!((report.target, report.actual, report.discarded.refused), (ByteSize::mib(0), ByteSize::mib(0), 0));
    }
    guest.shutdown();
}

#[test]
fn free_memory_goes_back_when_the_host_asks_for_hints() {
    let hinting = BalloonConfig { free_page_hinting: true, ..BalloonConfig::default() };
    let guest = Guest::ours().balloon(hinting).boot();
    let mut hinted = ByteSize::mib(0);
    for (id, acknowledge_on_stop) in [("first", false), ("again", true)] {
        uses(&guest, id, 192);
        let before = resident(&guest);
        balloon(&guest).start_hinting(acknowledge_on_stop).unwrap();
        let report = wait(&guest, |report| report.hinting.is_complete());
        let after = resident(&guest);
        println!("{report:?}: resident before {before}, after {after}");
        assert!(report.discarded.hinted >= and(hinted, 128), "{report:?}, after {hinted}");
        assert!(and(after, 96) <= before, "{before}, then {after}");
        hinted = report.discarded.hinted;
        if acknowledge_on_stop {
            assert_eq!(report.hinting.host_cmd, 1, "the host has answered");
        } else {
            assert!(report.hinting.host_cmd > 1, "the guest keeps its pages until the host has ended the run");
            balloon(&guest).stop_hinting().unwrap();
            assert_eq!(balloon(&guest).hinting().unwrap().host_cmd, 1);
        }
    }
    // The guest has its pages again, and nothing goes back between runs.
    uses(&guest, "between", 256);
    let report = balloon(&guest).report();
    assert_eq!((report.discarded.hinted, report.discarded.refused), (hinted, 0), "{report:?}");
    guest.shutdown();
}

/// Without `deflate_on_oom` the guest's kernel kills the instance.
#[test]
fn an_instance_gets_what_it_needs_out_of_the_balloon() {
    let deflating = BalloonConfig { deflate_on_oom: true, stats_polling_interval_s: 1, ..BalloonConfig::default() };
    // In memory of the host, files of the image can't be reclaimed and read again all the time while memory is short.
    let guest = Guest::ours().image(demo().transport(Transport::Pmem)).balloon(deflating).boot();
    let target = ByteSize::mib(meminfo(&guest, "available", "MemAvailable") - 96);
    set_target(&guest, target);
    wait(&guest, reaches_its_target);
    let job = holds(&guest, "needs", 144);
    let report = wait(&guest, |report| and(report.actual, 16) <= target);
    println!("{report:?}");
    assert_eq!(report.target, target, "the host did not ask for it");
    ends(job);
    // Statistics of after the end.
    let ended = Instant::now();
    wait_statistics(&guest, |now| now.age.is_some_and(|age| age < ended.elapsed()));
    assert_eq!(statistics(&guest).memory.oom_kill, Some(0), "{}", guest.console());
    guest.shutdown();
}

#[test]
fn a_balloon_leaves_partitions_alone() {
    let guest = Guest::ours().vcpus(2).partition(128).balloon(BalloonConfig::default()).boot();
    for round in 0..4 {
        // It grows and shrinks while the partition comes and goes.
        set_target(&guest, ByteSize::mib(if round % 2 == 0 { 160 } else { 32 }));
        guest.plug(1, 128);
        let job = guest.start_spec(&holder(&format!("holds-{round}"), 64).in_partition(partition(1)));
        job.wait_for("holds");
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert!(usage.anonymous_bytes >= 64 << 20, "{usage:?}");
        ends(job);
        park(&guest, 1);
        assert_eq!(guest.vm.inspect(partition(1)).unwrap().total_bytes, 0);
    }
    let report = wait(&guest, reaches_its_target);
    assert_eq!((report.actual, report.discarded.refused), (ByteSize::mib(32), 0), "{report:?}");
    guest.shutdown();
}

#[test]
fn a_balloon_goes_on_after_a_pause() {
    let config = BalloonConfig { free_page_reporting: true, stats_polling_interval_s: 1, ..BalloonConfig::default() };
    let guest = Guest::ours().balloon(config).boot();
    let job = holds(&guest, "holds", 96);
    for round in 0..10 {
        // It is paused while it works.
        set_target(&guest, ByteSize::mib(if round % 2 == 0 { 160 } else { 32 }));
        guest.vm.pause().unwrap();
        guest.vm.resume().unwrap();
    }
    set_target(&guest, ByteSize::mib(192));
    wait(&guest, reaches_its_target);

    guest.vm.pause().unwrap();
    set_target(&guest, ByteSize::mib(64));
    let paused = balloon(&guest).report();
    assert_eq!((paused.target, paused.actual), (ByteSize::mib(64), ByteSize::mib(192)), "the guest stands still");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| wait(&guest, reaches_its_target));
        guest.vm.resume().unwrap();
        assert_eq!(waiter.join().unwrap().actual, ByteSize::mib(64), "it hears of it when it goes on");
    });
    let resumed = Instant::now();
    wait_statistics(&guest, |now| now.age.is_some_and(|age| age < resumed.elapsed()));
    ends(job);
    let report = wait(&guest, |report| report.discarded.reported >= and(paused.discarded.reported, 64));
    assert_eq!(report.discarded.refused, 0, "{report:?}");
    guest.shutdown();
}
