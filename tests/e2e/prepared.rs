//! Partitions that are prepared in the background: no plug has to wait until the guest has added memory.

use std::time::Instant;

use bellows_vmm::{ByteSize, GuestDriver, GuestState, NotPrepared, PartitionMode, PreparationReport};

use crate::extension::park;
use crate::fixture::{Guest, PATIENCE, Running, partition};

fn driver(guest: &Running, number: u16) -> GuestDriver {
    guest.vm.inspect(partition(number)).unwrap().driver.expect("our kernel's driver reports its state")
}

fn await_prepared(guest: &Running) -> PreparationReport {
    let report = guest.vm.await_prepared(PATIENCE);
    report.unwrap_or_else(|error| panic!("{error:?}\n{}", guest.console()))
}

/// Base memory that the guest can still use.
fn available(guest: &Running, id: &str) -> ByteSize {
    base_memory(guest, id, "MemAvailable")
}

/// A figure of base memory, by the guest's account.
fn base_memory(guest: &Running, id: &str, field: &str) -> ByteSize {
    let line = guest.shell(id, &format!("grep {field} /proc/meminfo"));
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    ByteSize::kib(kib.unwrap_or_else(|| panic!("{line}")))
}

#[test]
fn the_first_plug_of_a_prepared_partition_is_that_of_a_parked_one() {
    let guest = Guest::ours().vcpus(2).partition(512).partition(128).partition(256).prepare(512).boot();
    let report = await_prepared(&guest);
    println!("{report:?}");
    let prepared: Vec<_> = report.partitions.iter().map(|part| (part.prepared.get() >> 20, &part.reason)).collect();
    assert_eq!(prepared, [(512, &None), (128, &None), (256, &None)], "{}", guest.console());
    assert_eq!(report.memory_map, ByteSize::mib(8 + 2 + 4));
    for (info, mib) in guest.vm.partitions().iter().zip([512, 128, 256]) {
        assert_eq!((info.added, info.memory_map), (ByteSize::mib(mib), ByteSize::mib(mib / 64)), "{info:?}");
        assert_eq!((info.memory.plugged.get(), info.memory.target.get(), info.memory.slots), (0, 0, 0), "{info:?}");
        assert_eq!((info.mode, info.memory.preparing), (None, false), "nobody has plugged it: {info:?}");
    }
    // Memory maps are in use by now, and instances have all that they were promised.
    let promised = guest.vm.wait_ready(PATIENCE).unwrap().instances_base;
    let left = available(&guest, "before");
    assert!(left >= promised, "{left} of base memory available, {promised} promised to instances");
    for (number, mib) in [(2, 128), (1, 512), (3, 64)] {
        let before = driver(&guest, number);
        assert_eq!((before.state, before.unparks + 1), (GuestState::Parked, before.parks), "{before:?}");
        let plug = guest.vm.plug(partition(number), ByteSize::mib(mib), PATIENCE).unwrap();
        let after = plug.driver.unwrap();
        assert_eq!((after.parks, after.unparks), (before.parks, before.parks), "it was parked: {after:?}");
        assert_eq!((plug.bytes, plug.mode), (ByteSize::mib(mib), PartitionMode::Extension));
        println!("first plug of {mib} MiB: {:?}, guest {:?}", plug.usable, after.last_plug.guest());
        park(&guest, number);
    }
    assert_eq!(guest.vm.partitions()[2].added, ByteSize::mib(256), "a smaller size keeps what it has");
    guest.shutdown();
}

/// Calls come from the moment on that the guest is ready: a plug of the partition that is being prepared, one of a partition that
/// waits for it, and the removal of a device.
#[test]
fn calls_go_first_and_find_nothing_of_a_preparation() {
    let guest = Guest::ours().vcpus(2).partition(1024).partition(256).partition(512).prepare(1024).boot_unmounted();
    guest.plug(1, 256);
    let used = guest.vm.inspect(partition(1)).unwrap();
    assert_eq!(used.total_bytes, 256 << 20, "{used:?}");
    guest.vm.detach_partition(partition(3), PATIENCE).unwrap();
    guest.plug(2, 256);
    guest.mount();
    let fill = "exec python3 -c 'b = bytes(range(256)) * (96 << 12)\nprint(b == bytes(range(256)) * (96 << 12))'";
    let jobs = [1, 2].map(|number| guest.start(&format!("fills-{number}"), fill, Some(number)));
    for (job, number) in jobs.into_iter().zip([1, 2]) {
        let (status, output) = job.finish();
        assert_eq!((status.code, output.trim()), (0, "True"), "{}", guest.console());
        park(&guest, number);
    }
    let report = await_prepared(&guest);
    println!("{report:?}");
    for part in &report.partitions {
        let whole = part.prepared == part.wanted;
        let reason = &part.reason;
        assert!(whole || matches!(reason, Some(NotPrepared::Used | NotPrepared::NoDevice)), "{part:?}");
    }
    let first = &report.partitions[0];
    assert!(first.prepared < first.wanted, "the plug met the preparation: {first:?}");
    guest.vm.attach_partition(partition(3), PATIENCE).unwrap();
    guest.plug(3, 128);
    park(&guest, 3);
    let console = guest.console();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:") && !console.contains("broken"), "{console}");
    guest.shutdown();
}

#[test]
fn a_vm_that_is_paused_all_the_time_prepares_in_between_and_one_that_ends_stops() {
    let guest = Guest::ours().vcpus(2).partition(512).prepare(512).boot_unmounted();
    let mut pauses = 0;
    while guest.vm.await_prepared(std::time::Duration::ZERO).is_err() {
        guest.vm.pause().unwrap();
        guest.vm.resume().unwrap();
        guest.vm.statistics().unwrap();
        pauses += 1;
    }
    let report = await_prepared(&guest);
    println!("{pauses} pauses: {report:?}");
    assert!(pauses > 0, "it was prepared before the first pause");
    assert_eq!(report.partitions[0].prepared, ByteSize::mib(512), "{report:?}");
    guest.shutdown();
    drop(Guest::ours().partition(512).prepare(512).boot_unmounted());
}

/// Does nothing until `done`.
fn until(what: &str, guest: &Running, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: never\n{}", guest.console());
    }
}

#[test]
fn what_is_parked_for_long_gives_its_memory_map_back() {
    let guest = Guest::ours().partition(1024).remove_parked_after_s(5).boot();
    guest.plug(1, 1024);
    park(&guest, 1);
    assert_eq!(guest.vm.partitions()[0].added, ByteSize::gib(1));
    let parked = base_memory(&guest, "parked", "MemFree");
    until("it is removed", &guest, || driver(&guest, 1).state != GuestState::Parked);
    assert_eq!(driver(&guest, 1).state, GuestState::Empty);
    let removed = base_memory(&guest, "removed", "MemFree");
    // 16 MiB, less what the shell's program had the guest read.
    assert!(removed >= parked.plus(ByteSize::mib(12)), "{parked} were free, and {removed} afterwards");
    until("the host knows", &guest, || guest.vm.partitions()[0].added.get() == 0);
    // It can be plugged as before.
    guest.plug(1, 512);
    assert_eq!(guest.vm.inspect(partition(1)).unwrap().total_bytes, 512 << 20);
    assert_eq!(guest.vm.partitions()[0].added, ByteSize::mib(512));
    guest.shutdown();
}

#[test]
fn without_the_extension_nothing_is_prepared() {
    let guest = Guest::ours().mode(PartitionMode::Stock).partition(256).prepare(256).boot_unmounted();
    let report = await_prepared(&guest);
    assert_eq!(report.partitions[0].reason, Some(NotPrepared::Stock));
    assert_eq!((report.partitions[0].prepared, report.memory_map), (ByteSize::bytes(0), ByteSize::bytes(0)));
    let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
    assert_eq!((info.added, info.memory.unplugged), (ByteSize::bytes(0), ByteSize::bytes(0)), "it was left alone");
    guest.plug(1, 256);
    assert_eq!(guest.vm.partitions()[0].memory_map, ByteSize::mib(4));
    guest.unplug(1);
    assert_eq!(guest.vm.partitions()[0].memory_map, ByteSize::bytes(0), "the guest has removed its memory blocks");
    guest.shutdown();
}
