//! An instance's share of base memory is bounded, and its limit harms no other instance.

use std::process::Output;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use bellows_vmm::{ByteSize, ImageConfig, InstanceSpec, OomLimit, Transport};

use crate::archives::scratch;
use crate::command::{bellows_run, image};
use crate::fixture::{Guest, Job, PATIENCE, Running, artefact, config_of, demo, image_id, partition};

/// Takes more and more of one resource, or works on each request.
const ATTACKER: &str = include_str!("attacker.py");
const LIMIT: ByteSize = ByteSize::mib(24);

/// The end of an attacker that has met its limit.
#[derive(Debug)]
enum End {
    /// It got this error, and still runs.
    Refused(&'static str),
    /// The kernel killed it.
    Killed(OomLimit),
    /// One of the two, by the kernel's choice: some allocations fail, others wait for memory.
    Bounded,
}

use End::{Bounded, Killed, Refused};

fn attack(id: &str, arguments: &[&str], number: u16) -> InstanceSpec {
    let argv = ["python3", "-c", ATTACKER].into_iter().chain(arguments.iter().copied());
    InstanceSpec::new(id.parse().unwrap(), image_id(), argv).in_partition(partition(number))
}

/// A neighbour of the attacker.
struct Neighbour {
    job: Job,
    rounds: u32,
}

impl Neighbour {
    fn start(guest: &Running, number: u16) -> Self {
        let job = guest.start_spec(&attack("neighbour", &["neighbour"], number));
        job.wait_for("ready");
        Self { job, rounds: 0 }
    }

    /// Checks that it can use one of each resource, and that none of its processes was killed.
    fn works(&mut self) {
        self.job.signal(10);
        self.job.wait_for(&format!("works {}, oom_kill 0", self.rounds));
        self.rounds += 1;
    }

    fn end(self) {
        self.job.instance.signal(9).unwrap();
        let (status, output) = self.job.finish();
        assert_eq!((status.code, status.oom_killed, status.oom_limit), (128 + 9, false, None), "{output}");
    }
}

/// Each attacker takes as much as it gets of one resource, and keeps it while its neighbour works and another instance starts.
fn attacks(guest: &Running, attacks: &[(&str, &str, End)]) {
    let mut neighbour = Neighbour::start(guest, 2);
    for (number, (what, directory, end)) in attacks.iter().enumerate() {
        let mut spec = attack(&format!("attacker-{number}"), &[what, directory], 1);
        spec.base_limit = Some(LIMIT);
        let job = guest.start_spec(&spec);
        let lives = job.says_or_ends(", then ");
        neighbour.works();
        assert_eq!(guest.shell(&format!("starts-{number}"), "(echo lives)").trim(), "lives");
        if lives {
            job.instance.signal(9).unwrap();
        }
        let (status, output) = job.finish();
        println!("{what} {directory}: {status:?} {output}");
        let refused = |reason: &str| lives && output.trim().ends_with(&format!(", then {reason}"));
        let good = match *end {
            Refused(reason) => refused(reason) && !status.oom_killed,
            Killed(limit) => (status.code, status.oom_killed, status.oom_limit) == (128 + 9, true, Some(limit)),
            Bounded => refused("") || status.oom_limit == Some(OomLimit::Base) || lives && !status.oom_killed,
        };
        assert!(good, "{what} {directory}: {status:?} {output}, expected {end:?}\n{}", guest.console());
    }
    neighbour.works();
    neighbour.end();
    let console = guest.console();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
}

/// Boots with a partition for an attacker and one for its neighbour.
fn boot(guest: Guest) -> Running {
    let guest = guest.vcpus(2).partition(128).partition(128).boot();
    guest.plug(1, 128);
    guest.plug(2, 128);
    guest
}

/// An image whose files take no memory of the guest. Otherwise the kernel would reclaim and read again the code of a program at
/// its limit, for minutes.
fn mapped_image() -> ImageConfig {
    demo().transport(Transport::Pmem)
}

#[test]
fn an_attacker_meets_its_own_limit_and_its_neighbour_lives() {
    let guest = boot(Guest::ours().image(mapped_image()));
    attacks(
        &guest,
        &[
            ("files", "/tmp", Refused("ENOSPC")),
            ("files", "/dev/shm", Refused("ENOSPC")),
            ("files", "/dev", Refused("ENOSPC")),
            ("directories", "/tmp", Refused("ENOSPC")),
            ("links", "/tmp", Refused("ENOSPC")),
            ("long-links", "/tmp", Refused("ENOSPC")),
            ("data", "/tmp", Refused("ENOSPC")),
            ("data", "/dev/shm", Refused("ENOSPC")),
            ("memory", "/tmp", Killed(OomLimit::Partition)),
            ("page-tables", "/tmp", Killed(OomLimit::Base)),
            ("pipes", "/tmp", Killed(OomLimit::Base)),
            ("unix-sockets", "/tmp", Bounded),
            ("tcp-sockets", "/tmp", Bounded),
            ("ping-sockets", "/tmp", Bounded),
            ("raw-sockets", "/tmp", Bounded),
            ("packet-sockets", "/tmp", Bounded),
            ("corked-sockets", "/tmp", Bounded),
            ("inotify", "/tmp", Bounded),
            ("epoll", "/tmp", Bounded),
            ("messages", "/tmp", Bounded),
            ("semaphores", "/tmp", Bounded),
            ("timers", "/tmp", Bounded),
            ("file-locks", "/tmp", Bounded),
            ("terminals", "/tmp", Bounded),
            ("polls", "/tmp", Bounded),
            ("readers", "/usr", Bounded),
            ("filters", "/tmp", Bounded),
            ("fanouts", "/tmp", Bounded),
            ("signals", "/tmp", Bounded),
            ("cgroups", "/tmp", Refused("EROFS")),
        ],
    );
    for number in [1, 2] {
        assert_eq!(guest.unplug(number), 0);
    }
    guest.shutdown();
}

#[test]
fn page_cache_is_reclaimed_before_anybody_is_killed() {
    let guest = boot(Guest::ours());
    attacks(&guest, &[("page-cache", "/usr", Refused("all is read"))]);
    guest.shutdown();
}

/// A stock kernel counts all memory against one limit, so only the file systems are bounded.
#[test]
fn with_a_stock_kernel_full_file_systems_are_no_more_than_that() {
    let guest = boot(Guest::debian().image(mapped_image()));
    attacks(
        &guest,
        &[
            ("files", "/tmp", Refused("ENOSPC")),
            ("files", "/dev/shm", Refused("ENOSPC")),
            ("data", "/tmp", Refused("ENOSPC")),
            ("memory", "/tmp", Killed(OomLimit::MemoryMax)),
            ("page-tables", "/tmp", Killed(OomLimit::MemoryMax)),
            ("cgroups", "/tmp", Refused("EROFS")),
        ],
    );
    guest.shutdown();
}

fn run(arguments: &[&str], command: &[&str]) -> Output {
    let mut run = bellows_run();
    run.arg("--profile=off").args(arguments).arg(image()).args(command);
    run.output().unwrap()
}

#[test]
fn a_hundred_thousand_files_fit_by_default() {
    let output = run(&[], &["python3", "-c", ATTACKER, "small-files", "/tmp", "100000"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.trim()), (Some(0), "took 100000"), "{errors}");
}

#[test]
fn the_report_names_the_limit() {
    let limit = &["--json", "--base-limit=16M", "--transport=pmem"];
    let output = run(limit, &["python3", "-c", ATTACKER, "page-tables"]);
    let text = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} {text}"));
    assert_eq!(
        (&report["exit_code"], &report["oom_killed"], &report["oom_limit"]),
        (&137.into(), &true.into(), &"base".into())
    );
    // More than all base memory, and more than the part for instances.
    for (limit, named) in
        [("--base-limit=513M", "513 MiB"), ("--base-limit=512M", "536870912 bytes"), ("--base-limit=1M", "1 MiB")]
    {
        let output = run(&[limit], &["true"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() != Some(0) && text.contains(named), "{limit}: {text}");
    }
}

/// Prints its limit, and the growth of its use by an allocation of 64 MiB.
const SEEN: &str = r#"
def read(name):
    return open("/sys/fs/cgroup/memory." + name).read().strip()
before = int(read("current"))
kept = bytearray(b"x") * (64 << 20)
print(read("max"), int(read("current")) - before, read("peak"), read("stat").split("anon ")[1].split()[0])"#;

#[test]
fn a_program_sees_its_partition_and_what_it_uses_of_it() {
    const MIB: u64 = 1 << 20;
    let guest = Guest::ours().partition(256).boot();
    guest.plug(1, 256);
    let spec = InstanceSpec::new("sees".parse().unwrap(), image_id(), ["python3", "-c", SEEN]);
    let (status, output) = guest.start_spec(&spec.in_partition(partition(1))).finish();
    assert_eq!(status.code, 0, "{output}");
    let numbers: Vec<u64> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let [max, used, peak, anonymous] = numbers[..] else { panic!("{output}") };
    assert_eq!(max, 256 * MIB);
    assert!(used.abs_diff(64 * MIB) <= 64 * MIB / 20, "{output}");
    assert!((64 * MIB..128 * MIB).contains(&peak) && (64 * MIB..128 * MIB).contains(&anonymous), "{output}");

    let mut limited = attack("limited", &["memory"], 1);
    limited.memory_max = Some(ByteSize::mib(128));
    let error = format!("{:?}", guest.vm.start_instance(&limited).err().expect("the partition is the limit"));
    assert!(error.contains("134217728 bytes") && error.contains("268435456 bytes"), "{error}");
    guest.shutdown();
}

/// A runtime and the memory limit that it detects.
fn runtime(variable: &str, id: &str, command: &[&str]) -> String {
    let directory = scratch();
    let store = Store::open(directory.path()).unwrap();
    let layout = OciLayout::open(artefact(variable)).unwrap();
    let image = store.import(&layout.image(&Platform::host(), None).unwrap(), None, &ImportOptions::default()).unwrap();
    let image = ImageConfig { id: id.parse().unwrap(), ..config_of(&store, &image) };
    let guest = Guest::ours().image(image).partition(1024).boot_unmounted();
    guest.vm.mount_image(&id.parse().unwrap(), PATIENCE).unwrap();
    guest.plug(1, 1024);
    let spec = InstanceSpec::new(id.parse().unwrap(), id.parse().unwrap(), command.iter().copied());
    let (status, output) = guest.start_spec(&spec.in_partition(partition(1))).finish();
    assert_eq!(status.code, 0, "{output}");
    guest.shutdown();
    output
}

#[test]
fn node_takes_the_partition_for_its_memory() {
    let output = runtime("BELLOWS_NODE_IMAGE", "node", &["/usr/bin/node", "-p", "process.constrainedMemory()"]);
    assert_eq!(output.trim(), (1u64 << 30).to_string());
}

/// By default the heap is a quarter of it. `Runtime.maxMemory()` is a little less with this collector: one of the two survivor spaces is
/// never in use.
#[test]
fn java_takes_the_partition_for_its_memory() {
    let command = ["/usr/bin/java", "-XX:+UseSerialGC", "-XshowSettings:vm", "-version"];
    let output = runtime("BELLOWS_JAVA_IMAGE", "java", &command);
    let heap = output.lines().find_map(|line| line.trim().strip_prefix("Max. Heap Size (Estimated): ")).unwrap();
    let heap: f64 = heap.strip_suffix('M').unwrap().parse().unwrap();
    assert!((240.0..=256.0).contains(&heap), "{output}");
}
