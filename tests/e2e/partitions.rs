//! Memory that is plugged and unplugged.

use std::time::Duration;

use bellows_vmm::{ByteSize, InstanceError, InstanceSpec, PartitionMode};

use crate::extension::kill;
use crate::fixture::{Guest, PATIENCE, image_id, partition};

/// Keeps `mib` MiB of memory, with content that cannot be merged, prints a line, and sleeps.
fn hold(mib: u32) -> String {
    format!(
        "exec python3 -c 'import time; b = bytearray(b\"x\") * ({mib} << 20); print(\"holds\", flush=True); time.sleep(3600)'"
    )
}

#[test]
fn a_killed_instance_gives_all_back_while_its_neighbour_runs() {
    let guest = Guest::ours().vcpus(2).partition(256).partition(256).boot();
    guest.plug(1, 256);
    guest.plug(2, 256);
    let killed = guest.start("killed", &hold(128), Some(1));
    let neighbour = guest.start("neighbour", &hold(128), Some(2));
    killed.wait_for("holds");
    neighbour.wait_for("holds");
    let usage = guest.vm.inspect(partition(1)).unwrap();
    assert!(usage.anonymous_bytes >= 128 << 20, "the memory is in the partition: {usage:?}");
    killed.instance.signal(9).unwrap();
    assert_eq!(killed.finish().0.code, 128 + 9);
    assert_eq!(guest.unplug(1), 0, "pages were migrated");
    let usage = guest.vm.inspect(partition(2)).unwrap();
    assert!(usage.anonymous_bytes >= 128 << 20, "the neighbour keeps its memory: {usage:?}");
    neighbour.instance.signal(9).unwrap();
    neighbour.finish();
    assert_eq!(guest.unplug(2), 0, "pages were migrated");
    guest.shutdown();
}

#[test]
fn an_instance_that_exceeds_its_partition_is_killed_and_its_neighbour_is_not() {
    let guest = Guest::ours().vcpus(2).partition(128).partition(128).boot();
    guest.plug(1, 128);
    guest.plug(2, 128);
    let neighbour = guest.start("neighbour", &hold(48), Some(2));
    neighbour.wait_for("holds");
    let (status, _) = guest.start("greedy", &hold(256), Some(1)).finish();
    assert_eq!((status.code, status.oom_killed), (128 + 9, true));
    neighbour.instance.signal(9).unwrap();
    let (status, _) = neighbour.finish();
    assert_eq!((status.code, status.oom_killed), (128 + 9, false), "it lived until it was told to end");
    guest.shutdown();
}

/// Each plug but the first comes before the last unplug's memory has been discarded: it waits, for a late discard would
/// destroy what an instance keeps there.
#[test]
fn plugs_and_unplugs_100_times_with_data_intact() {
    let guest = Guest::ours().vcpus(2).partition(128).boot();
    let fill = "exec python3 -c 'b = bytes(range(256)) * (32 << 12)\nprint(b == bytes(range(256)) * (32 << 12))'";
    let migrated = || guest.vm.statistics().unwrap().migrated_pages;
    let before = migrated();
    for round in 0..100 {
        guest.plug(1, 128);
        if round % 10 == 9 {
            let (status, output) = guest.start(&format!("check-{round}"), fill, Some(1)).finish();
            assert_eq!((status.code, output.trim()), (0, "True"), "round {round}");
        }
        let report = guest.vm.unplug(partition(1), PATIENCE).unwrap();
        assert_eq!(report.left, ByteSize::bytes(0), "round {round}");
    }
    assert_eq!(migrated(), before);
    guest.vm.await_discard(partition(1), PATIENCE).unwrap();
    let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
    assert_eq!((info.memory.plugged, info.memory.discarding), (ByteSize::bytes(0), ByteSize::bytes(0)));
    assert_eq!(info.memory.unplugged, ByteSize::mib(128 * 100));
    guest.shutdown();
}

/// A plug works even after an earlier one timed out and its target was taken back, whatever the guest's driver was doing.
#[test]
fn plugs_that_are_taken_back_cost_no_partition() {
    for mode in [PartitionMode::Extension, PartitionMode::Stock] {
        let guest = Guest::ours().mode(mode).vcpus(2).partition(256).boot();
        let mut taken_back = 0;
        for round in 0..60 {
            // From no time at all to about the time that the guest needs.
            let limit = Duration::from_millis(round % 30);
            taken_back += u32::from(guest.vm.plug(partition(1), ByteSize::mib(256), limit).is_err());
            guest.vm.unplug(partition(1), PATIENCE).unwrap();
        }
        assert!(taken_back >= 5, "{taken_back} of 60 in mode {mode}");
        guest.plug(1, 256);
        guest.unplug(1);
        let console = guest.console();
        assert!(!console.contains("marking device broken"), "mode {mode}: {console}");
        guest.shutdown();
    }
}

#[test]
fn who_waits_for_memory_hears_that_the_vm_has_ended() {
    let guest = Guest::ours().partition(128).boot();
    guest.plug(1, 128);
    let holder = guest.start("holder", &hold(32), Some(1));
    holder.wait_for("holds");
    std::thread::scope(|scope| {
        let unplug = scope.spawn(|| guest.vm.unplug(partition(1), PATIENCE));
        while guest.vm.partitions()[0].memory.target != ByteSize::bytes(0) {
            std::thread::yield_now();
        }
        guest.vm.stopper().stop();
        let error = unplug.join().unwrap().expect_err("the memory is still in use");
        assert!(format!("{error:?}").contains("Ended"), "{error:?}");
    });
}

/// One call to the guest plugs and starts; where the start fails, nothing stays plugged.
#[test]
fn an_instance_starts_as_its_partition_is_plugged() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    let spec = |command: &str| {
        let spec = InstanceSpec::new("both".parse().unwrap(), image_id(), ["/bin/sh", "-c", command]);
        spec.in_partition(partition(1))
    };
    let size = ByteSize::mib(256);
    let plugged = || guest.vm.partitions()[0].memory.plugged;
    for round in 0..2 {
        let mut missing = spec("true");
        missing.process.argv[0] = "/bin/none".into();
        let error = guest.vm.plug_and_start(&missing, size, PATIENCE).map(drop).unwrap_err();
        assert!(matches!(error, InstanceError::Agent { .. }), "{error:?}");
        assert_eq!(plugged(), ByteSize::bytes(0), "round {round}");
        let (instance, report) = guest.vm.plug_and_start(&spec(&hold(16)), size, PATIENCE).unwrap();
        assert_eq!((report.bytes, report.mode), (size, PartitionMode::Extension));
        assert!(report.accepted < report.usable && report.driver.is_some(), "{report:?}");
        let job = guest.job(instance);
        job.wait_for("holds");
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert!(usage.anonymous_bytes >= 16 << 20, "{usage:?}");
        kill(job);
        guest.unplug(1);
    }
    let error = guest.vm.plug_and_start(&InstanceSpec { partition: None, ..spec("true") }, size, PATIENCE);
    assert!(matches!(error.map(drop), Err(InstanceError::NoPartition(_))));
    guest.shutdown();
}
