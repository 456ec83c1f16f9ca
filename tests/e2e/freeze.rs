//! Frozen instances: they make no progress, give memory back, and go on as if nothing had been.

use bellows_vmm::{ByteSize, FreezeReport, InstanceSpec, NotPushedOut, ProcessSpec, ZygoteSpec};

use crate::extension::{kill, park};
use crate::fixture::{Guest, Job, PATIENCE, Running, image_id, partition};
use crate::swap::{self, Zram};

/// Keeps `KEPT`, frees 128 MiB of its own and counts aloud. Ends when it is told to, and says whether it still has what it kept.
const COUNTS: &str = r#"
import random, signal, time, zlib
kept = KEPT
before = zlib.crc32(kept)
freed = bytearray(b"x") * (128 << 20)
del freed
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
count = 0
while not told:
    count += 1
    print("count", count, flush=True)
    time.sleep(0.02)
print("kept", len(kept) >> 20, zlib.crc32(kept) == before, flush=True)"#;

/// Starts [`COUNTS`] in partition 1; returns when it counts.
fn counts(guest: &Running, id: &str, kept: &str) -> Job {
    let job = guest.start(id, &format!("exec python3 -c '{}'", COUNTS.replace("KEPT", kept)), Some(1));
    job.wait_for("count 3\n");
    job
}

fn freeze(guest: &Running, job: &Job) -> FreezeReport {
    let report = job.instance.freeze(PATIENCE);
    let report = report.unwrap_or_else(|error| panic!("{error:?}\n{}", guest.console()));
    println!("{report:?}");
    report
}

fn thaw(guest: &Running, job: &Job) -> ByteSize {
    let report = job.instance.thaw(PATIENCE);
    let report = report.unwrap_or_else(|error| panic!("{error:?}\n{}", guest.console()));
    println!("{report:?}");
    report.plugged
}

/// The last number that it has counted to.
fn count(job: &Job) -> u64 {
    let printed = job.printed();
    let last = printed.lines().filter_map(|line| line.strip_prefix("count ")).next_back();
    last.unwrap().parse().unwrap()
}

/// Checks that a frozen instance makes no progress while others do.
fn makes_no_progress(guest: &Running, job: &Job) {
    // What it had written before may still be on its way.
    guest.shell("neighbour-1", "true");
    let before = count(job);
    guest.shell("neighbour-2", "true");
    assert_eq!(count(job), before);
}

/// It was told to end, and checks what it kept.
fn ends(job: Job, kept: &str) {
    let (status, output) = job.finish();
    assert_eq!(status.code, 0, "{output}");
    assert!(output.ends_with(&format!("kept {kept} True\n")), "{output}");
}

#[test]
fn a_frozen_instance_gives_free_memory_back_and_says_that_there_is_no_swap() {
    assert!(!swap::is_on(), "this test needs a host without swap");
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    let job = counts(&guest, "idle", "bytearray(range(256)) * (32 << 12)");
    let before = guest.vm.resident_bytes().unwrap();
    let report = freeze(&guest, &job);
    assert_eq!((report.free_kept, &report.not_pushed_out), (None, &Some(NotPushedOut::NoSwap)), "{report:?}");
    assert!(report.unplugged >= ByteSize::mib(128), "{report:?}");
    assert!(report.discarded >= ByteSize::mib(96), "what it had freed had pages: {report:?}");
    assert_eq!(report.pushed_out, ByteSize::bytes(0));
    let after = guest.vm.resident_bytes().unwrap();
    assert!(after + (96 << 20) <= before, "{before} {after}");
    makes_no_progress(&guest, &job);
    // What it keeps lies in its partition, whose memory the host has.
    let [memory] = &guest.vm.measure_instances().unwrap()[..] else { panic!("one instance") };
    assert_eq!(memory.instance.as_str(), "idle");
    let apart = memory.allocated.get() - memory.limited.get();
    assert!(apart >= 32 << 20 && memory.limited < ByteSize::mib(32), "{memory:?}");
    let held = guest.vm.resident_partition_bytes().unwrap();
    assert!((apart..after).contains(&held), "{memory:?} {held} {after}");

    let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
    assert_eq!((info.frozen[0].instance.as_str(), info.frozen[0].size), ("idle", ByteSize::mib(256)));
    assert_eq!(info.memory.plugged.plus(report.unplugged), ByteSize::mib(256));
    assert_eq!(info.memory.target, info.memory.plugged, "the guest is not asked for more");
    // Again is fine, and so is a thaw of what is not frozen.
    assert!(freeze(&guest, &job).unplugged <= ByteSize::mib(4));
    let frozen_at = count(&job);
    assert!(thaw(&guest, &job) >= report.unplugged);
    assert_eq!(thaw(&guest, &job), ByteSize::bytes(0));
    job.wait_for(&format!("count {}\n", frozen_at + 3));
    let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
    assert_eq!((info.memory.plugged, info.frozen.len()), (ByteSize::mib(256), 0));
    job.signal(15);
    ends(job, "32");
    park(&guest, 1);
    guest.shutdown();
}

#[test]
fn a_frozen_instance_is_pushed_out_to_swap_and_comes_back_intact() {
    let zram = Zram::new(512);
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    // Half of it cannot be compressed.
    let job = counts(&guest, "idle", "random.Random(1).randbytes(32 << 20) + bytes(range(256)) * (32 << 12)");
    let before = guest.vm.resident_bytes().unwrap();
    let report = freeze(&guest, &job);
    assert_eq!((report.free_kept, &report.not_pushed_out), (None, &None), "{report:?}");
    assert!(report.pushed_out >= ByteSize::mib(60), "{report:?}");
    let resident = report.pushed_out.plus(report.resident);
    assert!(report.resident.get() * 4 < resident.get(), "{report:?}");
    assert!(guest.vm.resident_bytes().unwrap() + (160 << 20) <= before, "{before} {report:?}");
    makes_no_progress(&guest, &job);
    // A signal waits for the thaw.
    job.signal(15);
    assert!(!job.printed().contains("kept"));
    thaw(&guest, &job);
    ends(job, "64");
    park(&guest, 1);
    guest.shutdown();
    drop(zram);
}

#[test]
fn a_frozen_instance_is_removed_and_nothing_of_it_stays() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    let job = counts(&guest, "idle", "bytes(16 << 20)");
    freeze(&guest, &job);
    let error = job.instance.exec("another".parse().unwrap(), &ProcessSpec::new(["true"])).err().expect("refused");
    assert!(format!("{error:?}").contains("instance \\\"idle\\\" is frozen: thaw it first"), "{error:?}");
    job.instance.remove(PATIENCE).unwrap();
    assert_eq!(guest.vm.partitions()[0].frozen, []);
    park(&guest, 1);
    // By its name.
    guest.plug(1, 256);
    let job = counts(&guest, "idle", "bytes(16 << 20)");
    freeze(&guest, &job);
    guest.vm.remove_instance(&"idle".parse().unwrap(), PATIENCE).unwrap();
    assert_eq!(guest.vm.partitions()[0].frozen, []);
    park(&guest, 1);
    guest.shutdown();
}

#[test]
fn a_frozen_zygote_is_not_forked() {
    let guest = Guest::ours().vcpus(2).partition(128).partition(128).boot();
    (1..=2).for_each(|number| guest.plug(number, 128));
    let zygote = ZygoteSpec::python("zygote".parse().unwrap(), image_id(), ["json"]);
    let zygote = guest.start_zygote(&zygote.in_partition(partition(1)));
    let fork = InstanceSpec::new("fork".parse().unwrap(), image_id(), ["python3", "-c", "print(6 * 7)"]);
    let fork = fork.in_partition(partition(2)).forked_from("zygote".parse().unwrap());
    freeze(&guest, &zygote);
    let error = guest.refused(&fork);
    assert!(error.contains("instance \\\"zygote\\\" is frozen: thaw it first"), "{error}");
    thaw(&guest, &zygote);
    let (status, output) = guest.start_spec(&fork).finish();
    assert_eq!((status.code, output.trim()), (0, "42"));
    kill(zygote);
    (1..=2).for_each(|number| park(&guest, number));
    guest.shutdown();
}
