//! Memory that comes and goes.

use crate::fixture::{Guest, partition};

/// Keeps MiB of memory that must not be merged away, says so, and sleeps.
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
