//! Zygotes: instances that others are forked from.

use std::collections::HashSet;
use std::time::Duration;

use bellows_vmm::{ByteSize, GuestState, InstanceSpec, ZygoteSpec};

use crate::extension::{escapes, kill, park};
use crate::fixture::{Guest, Job, Running, image_id, partition};

const MIB: u64 = 1 << 20;
/// Of each partition.
const WINDOW: u64 = 128;

/// A guest whose partition 1 is for a zygote and whose others are for `forks`, all plugged.
fn guest(forks: u16) -> Running {
    let guest = (0..=forks).fold(Guest::ours().vcpus(2), |guest, _| guest.partition(WINDOW)).boot();
    (1..=forks + 1).for_each(|number| guest.plug(number, WINDOW));
    guest
}

/// A zygote of Python in partition 1.
fn python(guest: &Running, modules: &[&str]) -> Job {
    let spec = ZygoteSpec::python("zygote".parse().unwrap(), image_id(), modules.iter().copied());
    guest.start_zygote(&spec.in_partition(partition(1)))
}

/// A fork of the zygote that runs Python code.
fn fork(id: &str, code: &str, number: u16) -> InstanceSpec {
    let spec = InstanceSpec::new(id.parse().unwrap(), image_id(), ["python3", "-c", code]);
    spec.in_partition(partition(number)).forked_from("zygote".parse().unwrap())
}

/// Says what it is, keeps 16 MiB of its own, and ends when it is told to.
const KEEPS: &str = "
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(os.environ['CODE'])))
kept = bytearray(b'x') * (16 << 20)
with open('/tmp/file', 'wb') as file:
    file.write(kept)
print('json' in sys.modules, os.getpid(), os.uname().nodename, os.environ['CODE'], os.getcwd(), sys.argv[1:])
print('problem', file=sys.stderr)
print(sorted(os.listdir('/proc/self/fd'))[:-1], os.listdir('/tmp'), 'BELLOWS_ZYGOTE_FD' in os.environ)
print('holds', flush=True)
while True:
    signal.pause()
";

#[test]
fn forks_are_instances_in_partitions_of_their_own() {
    let guest = guest(3);
    let zygote = python(&guest, &["json", "ssl", "uuid"]);
    let own = guest.vm.inspect(partition(1)).unwrap();
    let jobs: Vec<Job> = (1..=3)
        .map(|index| {
            let mut spec = fork(&format!("fork-{index}"), KEEPS, index + 1);
            spec.process.env = vec![format!("CODE={}", 10 + index)];
            spec.process.argv.push(format!("argument {index}"));
            spec.process.cwd = "/srv".into();
            guest.start_spec(&spec)
        })
        .collect();
    for (index, job) in (1..).zip(&jobs) {
        job.wait_for(&format!("True 1 fork-{index} {} /srv ['argument {index}']", 10 + index));
        job.wait_for("problem");
        job.wait_for("['0', '1', '2'] ['file'] False");
        job.wait_for("holds");
        let usage = guest.vm.inspect(partition(index + 1)).unwrap();
        // 16 MiB of the program, as many of its file, and what else it has written to.
        assert!((32 * MIB..64 * MIB).contains(&usage.anonymous_bytes), "{usage:?}");
        let holders: HashSet<_> = usage.holders.iter().map(|holder| holder.instance.clone()).collect();
        assert_eq!(holders, HashSet::from([Some(job.instance.id().clone())]), "{usage:?}");
    }
    // Nothing that they have written is in the zygote's partition, where they all still share something.
    let usage = guest.vm.inspect(partition(1)).unwrap();
    assert!(usage.anonymous_bytes < own.anonymous_bytes + 8 * MIB, "{own:?} {usage:?}");
    let holders: HashSet<_> = usage.holders.iter().filter_map(|holder| holder.instance.clone()).collect();
    let expected = ["zygote", "fork-1", "fork-2", "fork-3"].map(|id| id.parse().unwrap());
    assert_eq!(holders, HashSet::from(expected), "{usage:?}");
    for (index, job) in (1..).zip(jobs) {
        job.signal(15);
        let (status, output) = job.finish();
        assert_eq!((status.code, status.oom_killed), (10 + index, false), "{output}");
        park(&guest, u16::from(index) + 1);
    }
    // Its number is one that no fork has: the container's first process waits for it.
    assert!(!zygote.is_silent());
    kill(zygote);
    park(&guest, 1);
    let console = guest.console();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
    guest.shutdown();
}

/// What a fork shares with its zygote stays where it is until the fork has ended; the report says whose it is.
#[test]
fn a_zygote_may_end_before_its_forks() {
    let guest = guest(1);
    let zygote = python(&guest, &["json"]);
    let mut spec = fork("fork", KEEPS, 2);
    spec.process.env = vec!["CODE=3".into()];
    let job = guest.start_spec(&spec);
    job.wait_for("holds");
    kill(zygote);
    let error = guest.refused(&fork("late", "pass", 2));
    assert!(error.contains("zygote"), "{error}");
    let (report, account) = guest.vm.unplug_accounted(partition(1), Duration::from_secs(10)).unwrap();
    assert!(report.left > ByteSize::bytes(0), "{report:?}");
    assert_eq!(account.driver.unwrap().state, GuestState::Draining, "{account:?}");
    let usage = guest.vm.inspect(partition(1)).unwrap();
    let holders: Vec<_> = usage.holders.iter().map(|holder| holder.instance.clone()).collect();
    assert_eq!(holders, [Some("fork".parse().unwrap())], "{usage:?}");
    // The fork goes on.
    job.signal(15);
    assert_eq!(job.finish().0.code, 3);
    park(&guest, 1);
    park(&guest, 2);
    guest.shutdown();
}

/// A fork runs in the cgroup of its own partition, which bounds it.
#[test]
fn a_greedy_fork_is_killed_and_nothing_else_is() {
    let guest = guest(2);
    let zygote = python(&guest, &[]);
    let mut spec = fork("neighbour", KEEPS, 2);
    spec.process.env = vec!["CODE=3".into()];
    let neighbour = guest.start_spec(&spec);
    neighbour.wait_for("holds");
    let (status, output) = guest.start_spec(&fork("greedy", "kept = bytearray(b'x') * (200 << 20)", 3)).finish();
    assert_eq!((status.code, status.oom_killed), (128 + 9, true), "{output}");
    park(&guest, 3);
    neighbour.signal(15);
    assert_eq!(neighbour.finish().0.code, 3);
    assert!(!zygote.is_silent());
    kill(zygote);
    guest.shutdown();
}

/// A program that gets ready by itself: `before` runs first.
fn own(before: &str) -> ZygoteSpec {
    own_after("", before)
}

/// The same with lines of code before it.
fn own_after(lines: &str, before: &str) -> ZygoteSpec {
    let code = format!(
        "{lines}
import os
def main():
    {before}
    os.write(3, b'ready\\n')
    assert os.read(3, 16) == b'fork\\n'
    os.close(3)
    while os.fork() != 0:
        pass
    print(os.read(3, 1 << 16).decode(), os.getpid(), flush=True)
main()"
    );
    let spec = InstanceSpec::new("zygote".parse().unwrap(), image_id(), ["python3", "-c", &code]);
    ZygoteSpec::new(spec).in_partition(partition(1))
}

#[test]
fn any_program_can_be_a_zygote() {
    let guest = guest(1);
    let zygote = guest.start_zygote(&own("assert os.getpid() > 1024 and os.environ['BELLOWS_ZYGOTE_FD'] == '3'"));
    let mut spec = fork("fork", "unused", 2);
    spec.process.argv = vec!["any".into(), "ü".into()];
    let (status, output) = guest.start_spec(&spec).finish();
    assert_eq!(status.code, 0, "{output}");
    let (document, pid) = output.trim().rsplit_once(' ').unwrap();
    let document: serde_json::Value = serde_json::from_str(document).unwrap();
    assert_eq!((&document["args"], &document["cwd"], pid), (&serde_json::json!(["any", "ü"]), &"/".into(), "1"));
    let variables = document["env"].as_array().unwrap();
    assert!(variables.contains(&"HOSTNAME=fork".into()), "{document}");
    kill(zygote);
    park(&guest, 2);
    park(&guest, 1);
    guest.shutdown();
}

/// Neither a zygote nor what is forked from it has more rights than another instance.
#[test]
fn a_zygote_and_its_forks_cannot_leave_their_partitions() {
    let guest = guest(1);
    let zygote = guest.start_zygote(&own_after(&escapes(1), "pass"));
    kill(zygote);
    let zygote = python(&guest, &["ctypes"]);
    let (status, output) = guest.start_spec(&fork("fork", &(escapes(2) + "print('done')"), 2)).finish();
    assert_eq!((status.code, output.trim()), (0, "done"));
    kill(zygote);
    park(&guest, 1);
    park(&guest, 2);
    guest.shutdown();
}

#[test]
fn what_cannot_be_forked_is_refused_by_name() {
    let guest = guest(1);
    for (before, named) in [
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "more than one thread (python3, python3)",
        ),
        ("import socket; main.kept = socket.socket()", "descriptor 4 (socket:["),
        ("import select; main.kept = select.epoll()", "descriptor 4 (anon_inode:[eventpoll])"),
        ("main.kept = os.open('/etc/passwd', os.O_RDONLY)", "descriptor 4 (/etc/passwd)"),
        ("import mmap; main.kept = mmap.mmap(-1, 4096)", "/dev/zero (deleted) at 0x0"),
        (
            "import ctypes; libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p; \
             libc.shmat(libc.shmget(0, 4096, 0o1600), None, 0)",
            "SysV shared memory (/SYSV00000000",
        ),
        ("import ctypes; ctypes.CDLL(None).syscall(206, 1, ctypes.byref(ctypes.c_ulong()))", "asynchronous I/O"),
        ("os.fork() or __import__('signal').pause()", "2 processes beside the first"),
        ("raise SystemExit(3)", "ended before it was ready"),
        ("os.write(3, b'error nothing works\\n')", "nothing works"),
        ("os.write(3, bytes(range(256)))", "expected `ready`"),
        ("os.write(3, b'x' * (64 << 10))", "expected `ready`"),
        ("os.close(3); __import__('signal').pause()", "ended before it was ready"),
    ] {
        let error = guest.refused_zygote(&own(before));
        assert!(error.contains(named), "{before}: {error}");
        // The kernel's count of them is exact to some pages.
        let usage = guest.vm.inspect(partition(1)).unwrap();
        assert!(usage.anonymous_bytes < MIB && usage.holders.is_empty(), "{before}: {usage:?}");
    }
    let python = ZygoteSpec::python("zygote".parse().unwrap(), image_id(), ["no_such_module"]);
    let error = guest.refused_zygote(&python.in_partition(partition(1)));
    assert!(error.contains("No module named 'no_such_module'"), "{error}");
    // Neither is it a zygote, nor is another's user its own.
    let plain = guest.start("zygote", "echo holds; exec sleep 3600", Some(1));
    plain.wait_for("holds");
    let error = guest.refused(&fork("fork", "pass", 2));
    assert!(error.contains("is not a zygote"), "{error}");
    kill(plain);
    let zygote = guest.start_zygote(&own("pass"));
    let mut spec = fork("fork", "pass", 2);
    spec.process.user = "1000".parse().unwrap();
    let error = guest.refused(&spec);
    assert!(error.contains("runs as user 0") && error.contains("1000"), "{error}");
    kill(zygote);
    park(&guest, 1);
    park(&guest, 2);
    guest.shutdown();
}

/// A zygote that says it is ready and never forks holds up nothing but its own forks.
#[test]
fn a_zygote_that_ends_instead_of_forking_is_reported() {
    let guest = guest(1);
    let code = "import os; os.write(3, b'ready\\n'); os.read(3, 16)";
    let spec = InstanceSpec::new("zygote".parse().unwrap(), image_id(), ["python3", "-c", code]);
    let zygote = guest.start_zygote(&ZygoteSpec::new(spec).in_partition(partition(1)));
    let error = guest.refused(&fork("fork", "pass", 2));
    assert!(error.contains("has ended"), "{error}");
    assert_eq!(zygote.finish().0.code, 0);
    park(&guest, 1);
    park(&guest, 2);
    guest.shutdown();
}

/// Prints random numbers from every source that Python has, in the instance and in a child that it starts before.
const RANDOM: &str = "import os, random, ssl, uuid
child = os.fork()
print(random.random(), uuid.uuid4().hex, ssl.RAND_bytes(16).hex(), os.urandom(16).hex(), flush=True)
if child != 0:
    os.waitpid(child, 0)";

/// Forks a zygote so often, one after the other; neither forks nor their own children repeat what another has drawn.
pub fn draw_random_numbers(forks: usize) {
    let guest = guest(1);
    let zygote = python(&guest, &["random", "uuid", "ssl"]);
    let mut seen = HashSet::new();
    for number in 0..forks {
        let (status, output) = guest.start_spec(&fork(&format!("fork-{number}"), RANDOM, 2)).finish();
        assert_eq!(status.code, 0, "{output}");
        let words: Vec<_> = output.split_whitespace().map(str::to_owned).collect();
        assert_eq!(words.len(), 8, "{output}");
        for word in words {
            assert!(seen.insert(word), "fork {number} repeats: {output}");
        }
    }
    kill(zygote);
    park(&guest, 1);
    park(&guest, 2);
    guest.shutdown();
}

#[test]
fn no_two_forks_draw_the_same_random_numbers() {
    draw_random_numbers(6);
}

/// Before it has started, or at the latest when the kernel is asked.
#[test]
fn a_kernel_without_adoption_refuses() {
    let guest = Guest::debian().vcpus(2).partition(WINDOW).boot();
    guest.plug(1, WINDOW);
    let python = ZygoteSpec::python("zygote".parse().unwrap(), image_id(), ["json"]);
    let error = guest.refused_zygote(&python.in_partition(partition(1)));
    assert!(error.contains("this kernel has no adoption of memory"), "{error}");
    guest.unplug(1);
    guest.shutdown();
}

/// Says how much of 32 MiB is in huge pages.
const HUGE: &str = "
held = bytearray(32 << 20)
held[::4096] = b'x' * len(range(0, len(held), 4096))
with open('/proc/self/smaps_rollup') as file:
    print(*[int(line.split()[1]) >> 10 for line in file if line.startswith('AnonHugePages')])
";

/// Linux leaves huge pages off in a guest this small, which is right for base memory and for nothing else.
#[test]
fn memory_of_partitions_is_in_huge_pages_and_base_memory_is_not() {
    let guest = guest(1);
    let zygote = python(&guest, &["json"]);
    let python = ["python3", "-c", HUGE];
    let base = InstanceSpec::new("base".parse().unwrap(), image_id(), python);
    let own = InstanceSpec::new("own".parse().unwrap(), image_id(), python).in_partition(partition(2));
    for (spec, least, most) in [(base, 0, 0), (own, 28, 32), (fork("fork", HUGE, 2), 28, 32)] {
        let (status, output) = guest.start_spec(&spec).finish();
        let huge: u64 = output.trim().parse().unwrap_or_else(|error| panic!("{error}: {status:?} {output}"));
        assert!((least..=most).contains(&huge), "{}: {huge} MiB", spec.id);
    }
    kill(zygote);
    guest.shutdown();
}
