//! The guest memory extension: memory of an instance is in its partition and nowhere else, and goes back as it lies.

use std::collections::BTreeMap;

use bellows_vmm::{ByteSize, GuestState, PartitionMode, UnplugAccount, UnplugReport};

use crate::fixture::{Guest, Job, PATIENCE, Running, image_id, partition};

const MIB: u64 = 1 << 20;

/// Keeps `mib` MiB of each: anonymous memory, a file in the root file system, shared memory. Reads files of the image.
fn hold(mib: u32) -> String {
    format!(
        r#"exec python3 -c '
import glob, time
kept = bytearray(b"x") * ({mib} << 20)
for path in "/tmp/file", "/dev/shm/file":
    with open(path, "wb") as file:
        for _ in range({mib}):
            file.write(b"y" * (1 << 20))
read = sum(len(open(path, "rb").read()) for path in glob.glob("/usr/lib/python3*/*.py"))
assert read > 1 << 20, read
print("holds", flush=True)
time.sleep(3600)'"#
    )
}

pub fn kill(job: Job) {
    job.instance.signal(9).unwrap();
    let (status, output) = job.finish();
    assert_eq!((status.code, status.oom_killed), (128 + 9, false), "{output}");
}

/// Unplugs an unused partition and returns the reports.
fn unplug(guest: &Running, number: u16) -> (UnplugReport, UnplugAccount) {
    let (report, account) = guest.unplug_report(number);
    assert_eq!((report.left, account.migrated_pages), (ByteSize::bytes(0), Some(0)));
    (report, account)
}

/// The same with the extension: it is parked.
pub fn park(guest: &Running, number: u16) {
    let (report, account) = unplug(guest, number);
    let driver = account.driver.expect("our kernel's driver reports its state");
    assert_eq!((driver.state, driver.mode, driver.allocated_pages), (GuestState::Parked, PartitionMode::Extension, 0));
    assert_eq!(account.zeroed_pages, Some(0));
    assert!(driver.last_unplug.total > driver.last_unplug.host, "{driver:?}");
    println!("unplug {:?}, slots {:?}, guest {:?}", report.unplug, report.slots, driver.last_unplug.guest());
}

#[test]
fn an_instances_memory_is_in_its_partition_and_leaves_it_parked() {
    let guest = Guest::ours().vcpus(2).parameter("init_on_alloc=1").partition(256).boot();
    assert_eq!(guest.mode, PartitionMode::Extension);
    for round in 0..3 {
        guest.plug(1, 256);
        let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
        assert_eq!(info.mode, Some(PartitionMode::Extension));
        let job = guest.start(&format!("holds-{round}"), &hold(32), Some(1));
        job.wait_for("holds");
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert!(usage.anonymous_bytes >= 96 * MIB, "{usage:?}");
        assert_eq!(usage.file_bytes, 0, "page cache is in base memory: {usage:?}");
        assert!(usage.holders.iter().any(|holder| holder.command.starts_with("python3")), "{usage:?}");
        assert!(!usage.tmpfs_mounts.is_empty(), "{usage:?}");
        let driver = usage.driver.unwrap();
        assert_eq!((driver.state, driver.parks, driver.unparks), (GuestState::Online, round, round), "{driver:?}");
        assert!(driver.allocated_pages >= 96 * MIB / 4096, "{driver:?}");
        kill(job);
        park(&guest, 1);
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert_eq!((usage.total_bytes, usage.holders, usage.tmpfs_mounts), (0, vec![], vec![]));
    }
    let console = guest.console();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
    guest.shutdown();
}

#[test]
fn what_comes_back_to_a_parked_partition_is_intact() {
    let guest = Guest::ours().vcpus(2).partition(128).boot();
    let fill = "exec python3 -c 'b = bytes(range(256)) * (32 << 12)\nprint(b == bytes(range(256)) * (32 << 12))'";
    for round in 0..5 {
        guest.plug(1, 128);
        let (status, output) = guest.start(&format!("check-{round}"), fill, Some(1)).finish();
        assert_eq!((status.code, output.trim()), (0, "True"), "round {round}");
        park(&guest, 1);
    }
    guest.shutdown();
}

#[test]
fn another_size_than_the_parked_one_can_be_plugged() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    for mib in [256, 128, 256] {
        guest.plug(1, mib);
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert_eq!(usage.total_bytes, mib * MIB, "{usage:?}");
        park(&guest, 1);
    }
    guest.shutdown();
}

/// The stock mode with our kernel, on request.
#[test]
fn our_kernel_works_in_stock_mode() {
    let guest = Guest::ours().mode(PartitionMode::Stock).vcpus(2).partition(256).boot();
    assert_eq!(guest.mode, PartitionMode::Stock);
    guest.plug(1, 256);
    let job = guest.start("holds", &hold(32), Some(1));
    job.wait_for("holds");
    let usage = guest.vm.inspect(partition(1)).unwrap();
    assert!(usage.anonymous_bytes >= 96 * MIB, "{usage:?}");
    assert_eq!(usage.driver.map(|driver| driver.mode), Some(PartitionMode::Stock));
    kill(job);
    let driver = unplug(&guest, 1).1.driver.unwrap();
    assert_eq!((driver.state, driver.mode, driver.parks), (GuestState::Empty, PartitionMode::Stock, 0));
    guest.shutdown();
}

/// The stock mode of a kernel that has no other, and does not know the parameter.
#[test]
fn debians_kernel_works_in_stock_mode() {
    let guest = Guest::debian().vcpus(2).partition(256).boot();
    assert_eq!(guest.mode, PartitionMode::Stock);
    guest.plug(1, 256);
    let job = guest.start("holds", &hold(32), Some(1));
    job.wait_for("holds");
    kill(job);
    let (_, account) = unplug(&guest, 1);
    assert_eq!((account.driver, account.zeroed_pages), (None, None));
    let [info] = &guest.vm.partitions()[..] else { panic!("one partition") };
    assert_eq!(info.mode, Some(PartitionMode::Stock));
    guest.shutdown();
}

/// Python code that tries the ways out of the partition on `node`, as root in the container.
pub fn escapes(node: u16) -> String {
    r#"
import ctypes, errno, os, time
libc = ctypes.CDLL(None, use_errno=True)
nodes = ctypes.c_ulong(1)
calls = {"set_mempolicy": (238, 2, ctypes.byref(nodes), 64), "mbind": (237, 0, 4096, 2, ctypes.byref(nodes), 64, 0),
         "migrate_pages": (256, 0, 64, ctypes.byref(nodes), ctypes.byref(nodes)), "move_pages": (279, 0, 0, 0, 0, 0, 0),
         "unshare": (272, 0x02000000), "mount": (165, b"tmpfs", b"/tmp", b"tmpfs", 0, b"")}
for name, arguments in calls.items():
    assert libc.syscall(*arguments) == -1 and ctypes.get_errno() == errno.EPERM, name
root = "/sys/fs/cgroup/"
for name in "memory.private_node", "memory.max", "cpuset.mems", "cgroup.procs":
    try:
        os.close(os.open(root + name, os.O_WRONLY))
        raise SystemExit(name + " can be written")
    except OSError as error:
        assert error.errno == errno.EROFS, (name, error)
assert open(root + "memory.private_node").read().strip() == "NODE"
try:
    os.mkdir(root + "out")
    raise SystemExit("a cgroup can be made")
except OSError as error:
    assert error.errno == errno.EROFS, error
"#
    .replace("NODE", &node.to_string())
}

/// Tries the ways out, then takes memory, which must still come from the partition.
#[test]
fn a_container_can_not_leave_its_partition() {
    let guest = Guest::ours().vcpus(2).partition(256).boot();
    guest.plug(1, 256);
    let takes = r#"
if os.fork() == 0:
    os.setsid()
    kept = bytearray(b"x") * (64 << 20)
    print("holds", flush=True)
time.sleep(3600)"#;
    let job = guest.start("prisoner", &format!("exec python3 -c '{}{takes}'", escapes(1)), Some(1));
    job.wait_for("holds");
    let usage = guest.vm.inspect(partition(1)).unwrap();
    assert!(usage.anonymous_bytes >= 64 * MIB, "{usage:?}");
    kill(job);
    park(&guest, 1);
    guest.shutdown();
}

#[test]
fn a_partition_has_one_instance_at_a_time() {
    let guest = Guest::ours().partition(128).boot();
    guest.plug(1, 128);
    let first = guest.start("first", "echo holds; exec sleep 3600", Some(1));
    first.wait_for("holds");
    let argv = ["/bin/true"];
    let spec = bellows_vmm::InstanceSpec::new("second".parse().unwrap(), image_id(), argv).in_partition(partition(1));
    let error = guest.vm.start_instance(&spec).err().expect("the partition is taken");
    let text = format!("{error:?}");
    assert!(text.contains("node 1 is in use by another instance"), "{text}");
    kill(first);
    let (status, _) = guest.start("second", "true", Some(1)).finish();
    assert_eq!(status.code, 0);
    park(&guest, 1);
    guest.shutdown();
}

#[test]
fn a_greedy_instance_is_killed_and_its_neighbour_is_not() {
    let guest = Guest::ours().vcpus(2).partition(128).partition(256).boot();
    guest.plug(1, 128);
    guest.plug(2, 256);
    let neighbour = guest.start("neighbour", &hold(32), Some(2));
    neighbour.wait_for("holds");
    let before = guest.vm.inspect(partition(2)).unwrap();
    for (id, line) in [
        ("memory", "exec python3 -c 'b = bytearray(b\"x\") * (300 << 20)'"),
        ("files", "exec python3 -c 'f = open(\"/tmp/f\", \"wb\")\nb = bytearray(b\"x\") * (80 << 20)\nf.write(b)'"),
    ] {
        let (status, output) = guest.start(id, line, Some(1)).finish();
        assert_eq!((status.code, status.oom_killed), (128 + 9, true), "{id}: {output}");
    }
    let after = guest.vm.inspect(partition(2)).unwrap();
    assert!(after.anonymous_bytes >= 96 * MIB, "{after:?}");
    // Its interpreter may touch a huge page or two more.
    let difference = after.anonymous_bytes.abs_diff(before.anonymous_bytes);
    assert!(difference <= 4 * MIB, "the neighbour keeps its memory, and no more: {before:?} {after:?}");
    park(&guest, 1);
    kill(neighbour);
    park(&guest, 2);
    guest.shutdown();
}

/// The report names the rest and its holder; the rest goes back once the holder is gone.
#[test]
fn a_partition_in_use_stays_and_says_by_whom() {
    let guest = Guest::ours().vcpus(2).partition(128).boot();
    guest.plug(1, 128);
    let job = guest.start("stays", &hold(16), Some(1));
    job.wait_for("holds");
    let (report, account) = guest.vm.unplug_accounted(partition(1), std::time::Duration::from_secs(10)).unwrap();
    assert!(report.left >= ByteSize::mib(48), "{report:?}");
    let driver = account.driver.unwrap();
    assert_eq!(driver.state, GuestState::Draining, "{account:?}");
    assert!(driver.allocated_pages >= 48 * MIB / 4096, "{account:?}");
    assert!(!guest.vm.inspect(partition(1)).unwrap().holders.is_empty());
    kill(job);
    let report = guest.vm.unplug(partition(1), PATIENCE).unwrap();
    assert_eq!(report.left, ByteSize::bytes(0), "{report:?}");
    guest.vm.await_discard(partition(1), PATIENCE).unwrap();
    guest.shutdown();
}

/// A socket sends a page in place to a peer that never answers, for as long as TCP can wait.
#[test]
fn what_a_socket_has_to_send_does_not_stay_in_the_partition() {
    let guest = Guest::ours().vcpus(2).partition(128).boot();
    guest.plug(1, 128);
    let line = r#"exec python3 -c '
import mmap, socket
IP_MINTTL, TCP_USER_TIMEOUT, SO_ZEROCOPY, MSG_ZEROCOPY = 21, 18, 60, 0x4000000
page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.write(b"x" * 4096)
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
client.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)
client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 2**31 - 1)
client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
print(client.send(memoryview(page), MSG_ZEROCOPY))'"#;
    let (status, output) = guest.start("sends", line, Some(1)).finish();
    assert_eq!((status.code, output.trim()), (0, "4096"));
    park(&guest, 1);
    guest.shutdown();
}

/// What the node of base memory has in KiB, by the names of its meminfo; and `Lists`, free pages that the CPUs keep for themselves.
struct BaseMemory(BTreeMap<String, u64>);

impl BaseMemory {
    fn of(guest: &Running) -> Self {
        const LISTS: &str =
            r#"/^Node/ { node = $2 } $1 == "count:" && node == "0," { pages += $2 } END { print "Lists:", 4 * pages }"#;
        let look = format!("sed 's/^Node 0 //' /sys/devices/system/node/node0/meminfo; awk '{LISTS}' /proc/zoneinfo");
        let value = |line: &str| {
            let (name, value) = line.split_once(':').expect("a name and a value");
            (name.to_owned(), value.trim().trim_end_matches(" kB").parse().expect("a number"))
        };
        Self(guest.shell("look", &look).lines().map(value).collect())
    }

    /// KiB that each of `count` things has taken since `before`. Prints the parts that the kernel counts.
    fn taken(&self, before: &Self, count: u64) -> u64 {
        for name in ["MemTotal", "SUnreclaim", "KernelStack", "PageTables", "AnonPages", "Shmem"] {
            println!("{name}: {} KiB before, {} KiB now", before.0[name], self.0[name]);
        }
        let free = |memory: &Self| {
            ["MemFree", "Lists", "FilePages", "SReclaimable"].map(|name| memory.0[name]).iter().sum::<u64>()
        };
        let each = free(before).saturating_sub(free(self)) / count;
        println!("{} KiB free or cache before, {} KiB now: {each} KiB for each of {count}", free(before), free(self));
        each
    }
}

/// With several CPUs: much of what the kernel keeps for a node is there once for each. A guest may have four times as many
/// windows, but an emulated processor takes minutes to find them.
#[test]
fn windows_cost_little_base_memory() {
    const WINDOWS: u64 = 60;
    let after_boot = |windows| {
        let guest = (0..windows).fold(Guest::ours().vcpus(4), |guest, _| guest.partition(2)).boot();
        let memory = BaseMemory::of(&guest);
        guest.shutdown();
        memory
    };
    let without = after_boot(0);
    // 52 of it are objects of the kernel: of the device, and of each control group for the node and each CPU.
    let each = after_boot(WINDOWS).taken(&without, WINDOWS);
    assert!(each < 64, "{each} KiB");
}

/// A process that sleeps, in a container of its own, in a partition that an instance had before.
#[test]
fn instances_cost_little_base_memory() {
    const INSTANCES: u16 = 12;
    let guest = (0..INSTANCES).fold(Guest::ours().vcpus(4), |guest, _| guest.partition(128)).boot();
    let plug = || (1..=INSTANCES).for_each(|number| guest.plug(number, 128));
    let start = || {
        let start = |number| guest.start(&format!("idle-{number}"), "echo ready; exec sleep 100000", Some(number));
        let jobs: Vec<Job> = (1..=INSTANCES).map(start).collect();
        jobs.iter().for_each(|job| job.wait_for("ready"));
        jobs
    };
    // What comes with the first plugs and starts stays: memory maps, files in the page cache.
    plug();
    start().into_iter().for_each(kill);
    let before = BaseMemory::of(&guest);
    let jobs = start();
    let each = BaseMemory::of(&guest).taken(&before, INSTANCES.into());
    jobs.into_iter().for_each(kill);
    guest.shutdown();
    assert!(each < 352, "{each} KiB");
}
