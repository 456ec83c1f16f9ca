//! Tests that take too long for every run: `cargo xtask stress`.

use std::fs;
use std::time::{Duration, Instant};

use bellows_vmm::{ByteSize, DriveConfig};

use crate::files;
use crate::fixture::{Guest, Job, PATIENCE, Running, partition};
use crate::pause::work_under_pauses;
use crate::zygotes::draw_random_numbers;

const PARTITIONS: u16 = 4;
const WINDOW: u64 = 128;

/// Duration of the random test.
fn minutes() -> Duration {
    let minutes = std::env::var("BELLOWS_STRESS_MINUTES").map_or(5, |text| text.parse().expect("whole minutes"));
    Duration::from_secs(60 * minutes)
}

/// Fills memory with a pattern and compares it again and again; prints a line when it has changed.
fn keeper(mib: u64) -> String {
    format!(
        "exec python3 -c 'w = bytes(range(256)) * ({mib} << 12)\nb = bytearray(w)\nprint(\"filled\", flush=True)\n\
         while b == w: pass\nprint(\"corrupt\", flush=True)'"
    )
}

/// Numbers that look random and are the same in each run (Marsaglia's xorshift64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The use of a partition.
enum Use {
    Unplugged,
    Plugged,
    Running(Job),
}

fn end(job: Job) {
    job.wait_for("filled");
    job.instance.signal(9).unwrap();
    let (status, output) = job.finish();
    assert_eq!((status.code, output.trim()), (128 + 9, "filled"));
}

fn unplug(guest: &Running, number: u16) {
    let (report, account) = guest.vm.unplug_accounted(partition(number), PATIENCE).unwrap();
    assert_eq!((report.left, account.migrated_pages), (ByteSize::bytes(0), Some(0)));
}

/// Some 3,500 files in each way, read by an emulated processor.
#[test]
fn every_file_is_seen_whichever_way_an_image_comes() {
    files::compare_every_way(&files::WAYS);
}

#[test]
fn partitions_instances_and_disks_come_and_go_by_chance() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let mut guest = Guest::ours().vcpus(2);
    for _ in 0..PARTITIONS {
        guest = guest.partition(WINDOW);
    }
    let guest = guest.boot();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut uses: Vec<_> = (0..PARTITIONS).map(|_| Use::Unplugged).collect();
    let mut plugs = [0_u64; PARTITIONS as usize];
    let mut instances = 0;
    let mut disk = None;
    let start = Instant::now();
    let mut told = Duration::ZERO;
    while start.elapsed() < minutes() {
        if start.elapsed() > told + Duration::from_secs(60) {
            told = start.elapsed();
            println!("after {} s: {plugs:?} plugs, {instances} instances", told.as_secs());
        }
        if chance.below(10) == 0 {
            disk = match disk {
                None => {
                    let drive = DriveConfig::new(&path, true);
                    Some(guest.vm.attach_drive(&drive, PATIENCE).unwrap().serial)
                }
                Some(serial) => {
                    guest.vm.detach_disk(&serial, PATIENCE).unwrap();
                    None
                }
            };
        }
        let index = chance.below(PARTITIONS.into()) as usize;
        let number = index as u16 + 1;
        let now = std::mem::replace(&mut uses[index], Use::Unplugged);
        uses[index] = match now {
            Use::Unplugged => {
                guest.plug(number, WINDOW);
                plugs[index] += 1;
                Use::Plugged
            }
            Use::Plugged if chance.below(3) == 0 => {
                unplug(&guest, number);
                Use::Unplugged
            }
            Use::Plugged => {
                instances += 1;
                Use::Running(guest.start(&format!("keeper-{instances}"), &keeper(1 + chance.below(40)), Some(number)))
            }
            Use::Running(job) => {
                end(job);
                Use::Plugged
            }
        };
    }
    for (index, used) in uses.into_iter().enumerate() {
        let number = index as u16 + 1;
        match used {
            Use::Unplugged => {}
            Use::Plugged => unplug(&guest, number),
            Use::Running(job) => {
                end(job);
                unplug(&guest, number);
            }
        }
        guest.vm.await_discard(partition(number), PATIENCE).unwrap();
    }
    println!("{plugs:?} plugs, {instances} instances");
    for (info, plugs) in guest.vm.partitions().iter().zip(plugs) {
        assert_eq!((info.memory.plugged, info.memory.slots), (ByteSize::bytes(0), 0));
        assert_eq!(info.memory.unplugged, ByteSize::mib(WINDOW * plugs));
    }
    guest.shutdown();
}

/// A monitor that plugs and unplugs for days must not grow.
#[test]
fn a_thousand_plugs_leave_no_descriptor_and_no_memory_behind() {
    let guest = Guest::ours().vcpus(2).partition(WINDOW).boot();
    let cycle = || {
        guest.plug(1, WINDOW);
        assert_eq!(guest.unplug(1), 0);
    };
    // One-time allocations are done after some rounds.
    (0..50).for_each(|_| cycle());
    let before = (descriptors(), anonymous_kib(), guest_kernel_kib(&guest, "before"));
    for hundred in 1..=10 {
        (0..100).for_each(|_| cycle());
        println!("{hundred}00 plugs");
    }
    let after = (descriptors(), anonymous_kib(), guest_kernel_kib(&guest, "after"));
    println!("descriptors, anonymous KiB, guest kernel KiB: before {before:?}, after {after:?}");
    assert_eq!(before.0, after.0);
    assert!(after.1 < before.1 + 1024, "the monitor grew from {} to {} KiB", before.1, after.1);
    assert!(after.2 < before.2 + 2048, "the guest's kernel grew from {} to {} KiB", before.2, after.2);
    guest.shutdown();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The process's anonymous memory without guest memory, which is in mappings of 64 MiB and more.
fn anonymous_kib() -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut size, mut sum) = (0, 0);
    for line in maps.lines() {
        let kib = |name: &str| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        size = kib("Size:").unwrap_or(size);
        if let Some(anonymous) = kib("Anonymous:").filter(|_| size < 64 << 10) {
            sum += anonymous;
        }
    }
    sum
}

/// Memory that the guest's kernel has allocated for itself.
fn guest_kernel_kib(guest: &Running, id: &str) -> u64 {
    let info = guest.shell(id, "cat /proc/meminfo");
    let kib = |name: &str| -> u64 {
        let line = info.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    kib("SUnreclaim:") + kib("VmallocUsed:")
}

#[test]
fn a_thousand_forks_draw_no_number_twice() {
    draw_random_numbers(1000);
}

/// As [`crate::pause`], for longer.
#[test]
fn a_thousand_pauses_lose_nothing() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    let (mut pauses, mut digest) = (0, None);
    while pauses < 1000 {
        let (output, more) = work_under_pauses(&guest, &format!("work-{pauses}"));
        assert_eq!(*digest.get_or_insert(output.clone()), output);
        pauses += more;
        println!("{pauses} pauses");
    }
    guest.unplug(1);
    guest.shutdown();
}
