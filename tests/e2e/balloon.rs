//! Base memory that the guest can do without goes back to the host: the balloon, free page reporting and hinting.

use bellows_vmm::{Balloon, BalloonConfig, ByteSize};

use crate::fixture::{Guest, PATIENCE, Running};

const MIB: u64 = 1 << 20;

/// Takes 96 MiB of memory, tells, waits for a signal, checks the memory, and ends.
const USE: &str = r#"exec python3 -c '
import signal
kept = bytearray(bytes(range(256)) * (96 << 12))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("holds", flush=True)
signal.sigwait({signal.SIGUSR1})
print("intact" if kept == bytes(range(256)) * (96 << 12) else "damaged")'"#;

/// Has a program of the guest use 96 MiB and end. Returns the host memory under the guest while it had them.
fn use_memory(guest: &Running, id: &str) -> u64 {
    let job = guest.start(id, USE, None);
    job.wait_for("holds");
    let resident = guest.vm.resident_bytes().unwrap();
    job.signal(10);
    let (status, output) = job.finish();
    assert_eq!(status.code, 0, "{output}\n{}", guest.console());
    assert!(output.contains("intact"), "{output}");
    resident
}

fn balloon(guest: &Running) -> &Balloon {
    guest.vm.balloon().expect("the VM has a balloon")
}

/// Sets the target and waits until the balloon has it.
fn resize(guest: &Running, mib: u64) {
    let target = ByteSize::mib(mib);
    balloon(guest).set_target(target).unwrap();
    let reached = balloon(guest).wait(PATIENCE, |report| report.actual == target);
    reached.unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
}

fn inflates_and_deflates(guest: Guest) {
    let config = BalloonConfig { amount_mib: 16, stats_polling_interval_s: 1, ..BalloonConfig::default() };
    let guest = guest.balloon(config).boot();
    balloon(&guest).wait(PATIENCE, |report| report.actual == ByteSize::mib(16)).unwrap();
    let statistics = balloon(&guest).statistics().unwrap();
    let total = statistics.memory.total_memory.expect("the driver reports when it binds");
    assert!((256 * MIB..512 * MIB).contains(&total), "{statistics:?}");
    assert!(statistics.memory.free_memory.unwrap() > 0 && statistics.age.is_some(), "{statistics:?}");

    let held = use_memory(&guest, "before");
    resize(&guest, 256);
    let report = balloon(&guest).report();
    assert!(report.discarded.inflated >= ByteSize::mib(32), "{report:?}");
    assert_eq!(report.discarded.refused, 0, "{report:?}");
    let left = guest.vm.resident_bytes().unwrap();
    println!("{}: {} MiB resident, then {} MiB; {report:?}", guest.kernel, held / MIB, left / MIB);
    assert!(left + 32 * MIB <= held, "{left} of {held}");
    resize(&guest, 0);
    use_memory(&guest, "after");
    guest.shutdown();
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back() {
    inflates_and_deflates(Guest::ours().vcpus(2));
}

#[test]
fn a_balloon_takes_memory_of_debians_kernel() {
    inflates_and_deflates(Guest::debian().vcpus(2));
}

#[test]
fn a_balloon_takes_memory_of_an_older_kernel() {
    inflates_and_deflates(Guest::old().vcpus(2));
}

fn reports(guest: Guest) {
    let config = BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() };
    let guest = guest.balloon(config).boot();
    let before = balloon(&guest).report().discarded.reported.get();
    let held = use_memory(&guest, "first");
    let reported = |bytes| balloon(&guest).wait(PATIENCE, |report| report.discarded.reported.get() >= bytes).unwrap();
    let report = reported(before + 64 * MIB);
    let left = guest.vm.resident_bytes().unwrap();
    println!("{}: {} MiB resident, then {} MiB; {report:?}", guest.kernel, held / MIB, left / MIB);
    assert!(left + 64 * MIB <= held, "{left} of {held}");
    // What was given back can be used again, and goes back again.
    use_memory(&guest, "second");
    reported(report.discarded.reported.get() + 64 * MIB);
    guest.shutdown();
}

#[test]
fn memory_that_a_program_freed_is_reported() {
    reports(Guest::ours().vcpus(2));
}

#[test]
fn memory_that_a_program_freed_is_reported_by_debians_kernel() {
    reports(Guest::debian().vcpus(2));
}

#[test]
fn memory_that_a_program_freed_is_reported_by_an_older_kernel() {
    reports(Guest::old().vcpus(2));
}

/// Reports come while a partition is plugged, used and unplugged; they are about base memory, and the partition goes as ever.
#[test]
fn reports_leave_partitions_alone() {
    let config = BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() };
    let guest = Guest::ours().vcpus(2).partition(256).balloon(config).boot();
    for round in 0..3 {
        guest.plug(1, 256);
        let before = balloon(&guest).report().discarded.reported.get();
        let job = guest.start(&format!("inside-{round}"), USE, Some(1));
        job.wait_for("holds");
        use_memory(&guest, &format!("outside-{round}"));
        balloon(&guest).wait(PATIENCE, |report| report.discarded.reported.get() >= before + 32 * MIB).unwrap();
        job.signal(10);
        let (status, output) = job.finish();
        assert!(status.code == 0 && output.contains("intact"), "{output}");
        assert_eq!(guest.unplug(1), 0, "pages were migrated");
    }
    println!("{:?}", balloon(&guest).report());
    guest.shutdown();
}

#[test]
fn a_run_of_hinting_takes_what_is_free() {
    let config = BalloonConfig { free_page_hinting: true, ..BalloonConfig::default() };
    let guest = Guest::ours().vcpus(2).balloon(config).boot();
    let held = use_memory(&guest, "first");
    for acknowledge in [true, false] {
        balloon(&guest).start_hinting(acknowledge).unwrap();
        balloon(&guest).wait(PATIENCE, |report| report.hinting.is_complete()).unwrap();
        if !acknowledge {
            balloon(&guest).stop_hinting().unwrap();
        }
        assert_eq!(balloon(&guest).hinting().unwrap().host_cmd, 1);
        let left = guest.vm.resident_bytes().unwrap();
        println!("{} MiB resident, then {} MiB; {:?}", held / MIB, left / MIB, balloon(&guest).report());
        assert!(left + 64 * MIB <= held, "{left} of {held}");
        use_memory(&guest, if acknowledge { "second" } else { "third" });
    }
    guest.shutdown();
}
