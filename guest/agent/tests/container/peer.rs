//! What a container is, held against runc's for the same configuration.
//!
//! The filter of system calls is left out: it is ours alone, and has tests of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bellows_agent::container::plan::ProcessSpec;
use serde_json::{Value, json};

use super::{Fixture, shell, user};

/// Prints all that the kernel says about the process that runs it. What differs from run to run is cut away.
const LOOK: &str = r#"
while read -r id parent device root point options rest; do
    # A name that refers to nothing but the mount itself, and optional fields, end at the lone dash.
    echo "mount $point $options ${rest#*- }"
done </proc/self/mountinfo
grep -E '^(Uid|Gid|Groups|NoNewPrivs|Cap[A-Za-z]*|Sig(Ign|Blk)|Umask|NSsid):' /proc/self/status
sed 's/^/limit /' /proc/self/limits
ls -ln /dev | sed 's/ [A-Z][a-z]* .* \(\/\|[0-9:]* \)/ /' | sed 's/^/device /'
for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug \
    /proc/timer_list /proc/scsi /sys/firmware; do
    if [ -d $path ]; then echo "masked $path: $(ls $path | grep -c .) entries"; fi
    if [ -c $path ]; then echo "masked $path: device $(stat -c %t:%T $path)"; fi
    if [ -f $path ]; then echo "masked $path: file"; fi
done
for path in /proc/sys/kernel/hostname /proc/bus/x /proc/sysrq-trigger /proc/irq/x /sys/x /sys/fs/cgroup/x; do
    (: >$path) 2>/dev/null && echo "written $path"
done
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
for kind in cgroup ipc mnt net pid time user uts; do echo "namespace $kind $(readlink /proc/self/ns/$kind)"; done
hostname; pwd; umask; env | grep -v ^SHLVL | sort; ls /proc/self/fd | grep -c .; echo $$
"#;

pub fn a_container_is_what_runc_makes(fixture: &Fixture) {
    for uid in [0, 1000] {
        let name = format!("peer-{uid}");
        let spec = ProcessSpec { user: user(uid), ..shell(LOOK) };
        let (code, ours, errors) = super::finish(&fixture.start(&name, &spec));
        assert_eq!((code, errors.as_str()), (0, ""), "{ours}");
        let theirs = runc(fixture, &name, &spec);
        let lines = |text: &str| text.lines().map(normal).collect::<Vec<_>>();
        let (ours, theirs) = (lines(&ours), lines(&theirs));
        let only = |some: &[String], others: &[String]| {
            some.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>()
        };
        assert_eq!((only(&ours, &theirs), only(&theirs, &ours)), (Vec::new(), Vec::new()), "ours alone, runc's alone");
        // As many of each, in the same order.
        assert_eq!(ours, theirs);
    }
}

/// The line without what differs from run to run: of a namespace, only whether it is the agent's; of the ignored signals, all but
/// the two above 31 that are the C library's own, which `posix_spawn` may leave ignored.
fn normal(line: &str) -> String {
    if let Some(ignored) = line.strip_prefix("SigIgn:") {
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        return format!("SigIgn: {:x}", ignored & !(0b11 << 31));
    }
    if let Some((kind, namespace)) = line.strip_prefix("namespace ").and_then(|rest| rest.split_once(' ')) {
        let of_agent = fs::read_link(Path::new("/proc/self/ns").join(kind)).unwrap();
        return format!(
            "namespace {kind}: {}",
            if of_agent == Path::new(namespace) { "the agent's" } else { "its own" }
        );
    }
    line.into()
}

/// What `spec` prints in a container of runc's.
fn runc(fixture: &Fixture, name: &str, spec: &ProcessSpec) -> String {
    let bundle = fixture.folder.path().join(format!("bundle-{name}"));
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("config.json"), configuration(fixture, name, spec).to_string()).unwrap();
    let mut command = Command::new("runc");
    command.arg("--root").arg(fixture.folder.path().join("runc")).arg("run").arg("--bundle").arg(&bundle);
    let (output, errors) = (bundle.join("output"), bundle.join("errors"));
    command.arg(format!("runc-{name}")).stdin(Stdio::null());
    command.stdout(fs::File::create(&output).unwrap()).stderr(fs::File::create(&errors).unwrap());
    let (_, exit) = fixture.reaper.spawn(&mut command).expect("runc is installed");
    assert_eq!(exit.wait_for(super::LIMIT), Some(0), "{}", fs::read_to_string(errors).unwrap());
    fs::read_to_string(output).unwrap()
}

/// An OCI configuration for what the agent makes.
fn configuration(fixture: &Fixture, name: &str, spec: &ProcessSpec) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let capabilities = json!([
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ]);
    let credentials = super::credentials(spec);
    let usable = if credentials.uid == 0 { capabilities.clone() } else { json!([]) };
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": { "path": fixture.folder.path().join("root"), "readonly": false },
        "process": {
            "user": { "uid": credentials.uid, "gid": credentials.gid, "additionalGids": credentials.groups, "umask": 0o022 },
            "args": spec.arguments,
            "env": [
                "GREETING=hello", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                format!("HOSTNAME={name}"), "HOME=/home",
            ],
            "cwd": spec.working_directory,
            "capabilities": { "bounding": capabilities, "permitted": usable, "effective": usable, "inheritable": [], "ambient": [] },
            "noNewPrivileges": true,
        },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=1048576", "nr_inodes=256"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=1024"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=16777216", "nr_inodes=546"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": Path::new("/").join(format!("bellows-test-{}/runc-{name}", std::process::id())),
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/timer_list", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
            "resources": { "devices": [{ "allow": true, "access": "rwm" }] },
        },
    })
}
