//! Base memory that grows while instances wait for memory, and shrinks afterwards.

use bellows_vmm::{ByteSize, ElasticBase, ElasticBaseConfig, ElasticBaseReport};

use crate::command::{bellows_run, image};
use crate::fixture::{Guest, Job, PATIENCE, Running};

/// Reads all files of the image again and again, and says so for each MiB.
const READER: &str = "
import os
total = said = 0
while True:
    for folder, _, names in os.walk('/usr'):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                with open(path, 'rb', buffering=0) as file:
                    while count := len(file.read(1 << 16)):
                        total += count
                        if said < total >> 20:
                            said = total >> 20
                            print(f'MiB {said}.', flush=True)
";

/// Makes files and removes them.
const FILES: &str = "
import os
for number in range(100000):
    open(f'/tmp/{number}', 'w').close()
for number in range(100000):
    os.unlink(f'/tmp/{number}')
print('done')
";

fn up_to(mib: u64) -> ElasticBaseConfig {
    // Short for a processor, and long enough for one that is emulated.
    ElasticBaseConfig { shrink_after_s: 20, ..ElasticBaseConfig::new(ByteSize::mib(mib)) }
}

fn elastic(guest: &Running) -> &ElasticBase {
    guest.vm.elastic_base().unwrap()
}

fn wait(guest: &Running, wanted: impl Fn(&ElasticBaseReport) -> bool) -> ElasticBaseReport {
    let report = elastic(guest).wait(PATIENCE, wanted);
    report.unwrap_or_else(|report| panic!("{report:?}\n{}", guest.console()))
}

fn python(guest: &Running, id: &str, code: &str, number: Option<u16>) -> Job {
    guest.start(id, &format!("exec python3 -c \"{code}\""), number)
}

/// Has an instance bring in page cache until base memory grows, and waits until it has shrunk after that.
fn burst(guest: &Running, number: Option<u16>) -> ElasticBaseReport {
    let job = python(guest, "reader", READER, number);
    let grown = wait(guest, |report| report.plugged.get() > 0 && report.cycle.peak == report.plugged);
    println!("grown: {grown:?}");
    // So much more finds room now, in a guest that had to free some for each page before.
    let read = job.printed().matches("MiB").count();
    job.wait_for(&format!("MiB {}.", read + 48));
    let resident = guest.vm.resident_bytes().unwrap();
    job.signal(9);
    job.finish();
    let back = wait(guest, |report| report.plugged.get() == 0 && report.cycle.returned.get() > 0);
    println!("back: {back:?}, {resident} bytes resident before");
    assert_eq!((back.target.get(), back.cycle.kept.get(), &back.fault), (0, 0, &None), "{back:?}");
    assert!(back.grown >= grown.plugged && back.returned >= back.grown, "{back:?}");
    back
}

#[test]
fn page_cache_brings_base_memory_in_and_it_goes_back() {
    let guest = Guest::ours().vcpus(2).partition(128).elastic(128, up_to(512)).boot();
    guest.plug(1, 128);
    guest.vm.pause().unwrap();
    guest.vm.resume().unwrap();
    let report = burst(&guest, Some(1));
    // The host has the memory back, too.
    assert!(report.discarded.get() > 16 << 20, "{report:?}");
    assert!(guest.vm.resident_bytes().unwrap() < (128 + 128) << 20);
    assert_eq!(guest.unplug(1), 0, "base memory that comes and goes moves nothing of a partition");
    let console = guest.console();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
    guest.shutdown();
}

#[test]
fn a_stock_kernels_base_memory_grows_and_shrinks() {
    let guest = Guest::debian().vcpus(2).elastic(256, up_to(768)).boot();
    burst(&guest, None);
    guest.shutdown();
}

/// Inodes and names are kernel objects, which cannot lie in memory that has come.
#[test]
fn a_hundred_thousand_files_leave_no_base_memory_behind() {
    let guest = Guest::ours().vcpus(2).partition(256).elastic(512, up_to(1024)).boot();
    guest.plug(1, 256);
    let (status, output) = python(&guest, "files", FILES, Some(1)).finish();
    assert_eq!((status.code, output.trim()), (0, "done"));
    let report = wait(&guest, |report| report.plugged.get() == 0);
    println!("after 100,000 files: {report:?}");
    assert_eq!(report.returned, report.grown);
    guest.shutdown();
}

#[test]
fn a_kernel_that_does_not_measure_pressure_is_reported() {
    let guest = Guest::ours().elastic(256, up_to(512)).parameter("psi=0").boot();
    let report = wait(&guest, |report| report.fault.is_some());
    assert!(report.fault.unwrap().contains("pressure stall information"));
    guest.shutdown();
}

#[test]
fn the_command_takes_the_most_that_base_memory_may_have() {
    let run = |max: &str| bellows_run().arg(format!("--base-max={max}")).arg(image()).arg("true").output().unwrap();
    let output = run("1G");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let output = run("4G");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() != Some(0) && text.contains("at most 2 GiB"), "{text}");
}
