//! VMs are paused and resumed under load, and nothing gets lost.

use std::thread;
use std::time::{Duration, SystemTime};

use bellows_vmm::{AgentError, ByteSize, InstanceError, Lifecycle, LifecycleError, NotRunning, PartitionError, VmEnd};

use crate::fixture::{Guest, Job, PATIENCE, Running, partition};

/// Uses a disk, sockets and timers at once; prints a digest of all data that it has read.
const WORK: &str = include_str!("pause.py");

/// Starts [`WORK`].
fn start_work(guest: &Running, id: &str) -> Job {
    guest.start(id, &format!("exec python3 -c '{WORK}'"), Some(1))
}

/// Runs [`WORK`] while the VM is paused and resumed all the time, with an answer of the agent between two pauses. Returns its
/// output and the number of pauses.
pub fn work_under_pauses(guest: &Running, id: &str) -> (String, usize) {
    let work = start_work(guest, id);
    let mut pauses = 0;
    while !work.is_silent() {
        guest.vm.pause().unwrap();
        guest.vm.resume().unwrap();
        guest.vm.statistics().unwrap();
        pauses += 1;
    }
    let (status, output) = work.finish();
    assert_eq!(status.code, 0, "{output}\n{}", guest.console());
    (output, pauses)
}

#[test]
fn a_vm_is_paused_many_times_under_load() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    let (paused, pauses) = work_under_pauses(&guest, "paused");
    println!("{pauses} pauses");
    assert!(pauses >= 20, "the work was over after {pauses} pauses");
    // The same without pauses, from the guest's page cache.
    let (status, ran) = start_work(&guest, "ran").finish();
    assert_eq!(status.code, 0, "{ran}\n{}", guest.console());
    assert_eq!(paused, ran);
    guest.unplug(1);
    guest.shutdown();
}

#[test]
fn a_paused_vm_answers_with_a_conflict_and_goes_on() {
    let guest = Guest::ours().partition(256).boot();
    let vm = &guest.vm;
    assert_eq!(vm.lifecycle(), Lifecycle::Running);
    assert!(matches!(vm.resume(), Err(LifecycleError::NotPaused)));
    let job = guest.start("sleep", "exec sleep 1000", None);
    vm.pause().unwrap();
    assert_eq!(vm.lifecycle(), Lifecycle::Paused);
    assert!(matches!(vm.pause(), Err(LifecycleError::Paused)));
    let plug = vm.plug(partition(1), ByteSize::mib(256), PATIENCE);
    assert!(matches!(plug, Err(PartitionError::NotRunning(NotRunning::Paused))), "{plug:?}");
    let signal = job.instance.signal(15);
    assert!(matches!(signal, Err(InstanceError::Agent { source: AgentError::Paused { .. }, .. })), "{signal:?}");
    assert!(vm.wait_timeout(Duration::ZERO).is_none());
    thread::scope(|scope| scope.spawn(|| vm.resume()).join().unwrap().unwrap());
    assert_eq!(vm.lifecycle(), Lifecycle::Running);
    guest.plug(1, 256);
    guest.unplug(1);
    job.instance.remove(PATIENCE).unwrap();
    guest.shutdown();
}

#[test]
fn the_guests_clock_is_right_after_a_pause() {
    let guest = Guest::ours().boot();
    guest.vm.pause().unwrap();
    // The passing of time is the point of the test.
    thread::sleep(Duration::from_secs(2));
    guest.vm.resume().unwrap();
    let before = now();
    let told: u64 = guest.shell("date", "date +%s%N").trim().parse().unwrap();
    let allowed = Duration::from_millis(100);
    let told = Duration::from_nanos(told);
    assert!(told + allowed >= before && told <= now() + allowed, "{before:?}: the guest says {told:?}");
    guest.shutdown();
}

#[test]
fn a_paused_vm_can_be_stopped() {
    let guest = Guest::ours().boot();
    guest.vm.pause().unwrap();
    assert!(matches!(guest.vm.shutdown(PATIENCE), VmEnd::Stopped));
    assert_eq!(guest.vm.lifecycle(), Lifecycle::Ended);
    assert!(matches!(guest.vm.resume(), Err(LifecycleError::Ended(VmEnd::Stopped))));
    let dropped = Guest::ours().boot();
    dropped.vm.pause().unwrap();
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}
