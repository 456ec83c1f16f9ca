//! The OCI runtime configuration of an instance.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bellows_protocol::user::User;
use serde_json::{Value, json};

use crate::accounts::Credentials;
use crate::placement::Placement;
use crate::streams::StdioSpec;
use crate::tmpfs::Capacities;

/// Search path for commands if the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process's program, user and standard streams.
#[derive(Debug)]
pub struct ProcessSpec {
    /// Command and arguments.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Absolute path in the image.
    pub working_directory: String,
    /// The user that it runs as.
    pub user: User,
    /// Its standard streams.
    pub stdio: StdioSpec,
}

/// An instance, and its first process.
#[derive(Debug)]
pub struct Workload<'a> {
    /// Host name within the container.
    pub hostname: &'a str,
    /// Its root file system.
    pub root: &'a Path,
    /// Path within the cgroup hierarchy; the cgroup exists and has its limits.
    pub cgroup: &'a str,
    /// The source of its memory.
    pub placement: Placement,
    /// Capacities of its file systems.
    pub capacities: Capacities,
    /// Its first process.
    pub process: &'a ProcessSpec,
    /// The user that it runs as.
    pub credentials: &'a Credentials,
}

/// The default capabilities of other container runtimes, less `MKNOD`: a container without a device controller could
/// reach the guest's disks by device nodes. (The root file system is mounted `nodev`, too.)
const CAPABILITIES: [&str; 13] = [
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
];

/// Files of the kernel that reveal, or do, too much.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];

/// Rights of users other than root in a network of their own: bind any port, and send echo requests.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The umask.
const UMASK: u32 = 0o022;

/// The configuration as `config.json` holds it.
pub fn configuration(workload: &Workload<'_>) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let mut linux = json!({
        "cgroupsPath": workload.cgroup,
        "namespaces": namespaces,
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        "sysctl": HashMap::from(SYSCTLS),
    });
    // A private node needs no policy and takes none.
    if let Placement::Policy(node) = workload.placement {
        linux["memoryPolicy"] = json!({
            "mode": "MPOL_BIND",
            // Without it, an emptied node would turn the policy into one for base memory.
            "flags": ["MPOL_F_STATIC_NODES"],
            "nodes": node.to_string(),
        });
    }
    let Capacities { shared, devices, .. } = workload.capacities;
    let ([shared, shared_inodes], [devices, devices_inodes]) = (shared.options(), devices.options());
    json!({
        "ociVersion": "1.3.0",
        "hostname": workload.hostname,
        "root": { "path": workload.root, "readonly": false },
        "process": process(workload.hostname, workload.process, workload.credentials),
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", &devices, &devices_inodes]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=1024"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shared, &shared_inodes]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": linux,
    })
}

/// A process in the form of `config.json`, which the library also takes for further processes. The library does not make
/// its terminal: see `terminal`.
pub fn process(hostname: &str, spec: &ProcessSpec, credentials: &Credentials) -> Value {
    // Root gets the capabilities; another user can only ever get them back by a set-user-ID program, which
    // `noNewPrivileges` rules out.
    let (all, none) = (json!(CAPABILITIES), json!([]));
    let usable = if credentials.uid == 0 { &all } else { &none };
    json!({
        "terminal": false,
        "user": {
            "uid": credentials.uid,
            "gid": credentials.gid,
            "additionalGids": credentials.groups,
            "umask": UMASK,
        },
        "args": spec.arguments,
        "env": environment(hostname, spec, credentials),
        "cwd": spec.working_directory,
        "capabilities": {
            "bounding": all,
            "permitted": usable,
            "effective": usable,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": true,
    })
}

/// The given variables, of which the last of a name wins, with those that Docker and runc add; an empty `HOME` counts
/// as missing.
fn environment(hostname: &str, spec: &ProcessSpec, credentials: &Credentials) -> Vec<String> {
    let mut names = HashSet::new();
    let mut variables: Vec<String> = Vec::new();
    for variable in spec.environment.iter().rev() {
        let name = variable.split('=').next().unwrap_or_default();
        if names.insert(name) && variable != "HOME=" {
            variables.push(variable.clone());
        }
    }
    variables.reverse();
    let terminal = matches!(spec.stdio, StdioSpec::Terminal(_)).then_some(("TERM", "xterm"));
    let added =
        [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname), ("HOME", &credentials.home)].into_iter().chain(terminal);
    for (name, value) in added {
        let start = format!("{name}=");
        if !variables.iter().any(|variable| variable.starts_with(&start)) {
            variables.push(start + value);
        }
    }
    variables
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

#[cfg(test)]
mod tests {
    use bellows_protocol::values::{Node, TerminalSize};

    use super::*;

    fn user(uid: u32) -> Credentials {
        Credentials { uid, gid: 7, groups: vec![7, 8], home: "/home/user".into() }
    }

    fn spec(environment: &[&str], stdio: StdioSpec) -> ProcessSpec {
        ProcessSpec {
            arguments: vec!["/bin/true".into()],
            environment: environment.iter().map(ToString::to_string).collect(),
            working_directory: "/".into(),
            user: User::default(),
            stdio,
        }
    }

    fn configured(placement: Placement) -> Value {
        configuration(&Workload {
            hostname: "f-1",
            root: Path::new("/run/i/f-1/root"),
            cgroup: "/instances/f-1",
            placement,
            capacities: Capacities::within(placement, 64 << 20, 64 << 20),
            process: &spec(&[], PIPES),
            credentials: &user(0),
        })
    }

    const PIPES: StdioSpec = StdioSpec::Pipes { stdin: false };

    #[test]
    fn the_policy_names_the_partition() {
        let node = Node::try_from(3).unwrap();
        let configuration = configured(Placement::Policy(node));
        let policy = &configuration["linux"]["memoryPolicy"];
        assert_eq!(policy["nodes"], "3");
        assert_eq!(policy["flags"], json!(["MPOL_F_STATIC_NODES"]));
    }

    #[test]
    fn base_memory_and_private_nodes_need_no_policy() {
        for placement in [Placement::Base, Placement::Private(Node::try_from(3).unwrap())] {
            assert!(configured(placement)["linux"].get("memoryPolicy").is_none());
        }
    }

    #[test]
    fn every_tmpfs_has_a_capacity() {
        let mounts = configured(Placement::Base)["mounts"].clone();
        let tmpfs = mounts.as_array().unwrap().iter().filter(|mount| mount["type"] == "tmpfs");
        let options: Vec<Vec<String>> =
            tmpfs.map(|mount| serde_json::from_value(mount["options"].clone()).unwrap()).collect();
        assert_eq!(options.len(), 2);
        for options in options {
            // Each by itself: the library takes everything behind the first `=` as the option's value.
            for wanted in ["size=", "nr_inodes="] {
                assert!(options.iter().any(|option| option.starts_with(wanted)), "{options:?}");
            }
            assert!(options.iter().all(|option| !option.contains(',')), "{options:?}");
        }
    }

    fn environment(given: &[&str]) -> Value {
        process("f-1", &spec(given, PIPES), &user(0))["env"].clone()
    }

    #[test]
    fn expected_variables_have_defaults() {
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(environment(&[]), json!([path, "HOSTNAME=f-1", "HOME=/home/user"]));
        let given = ["HOME=/image", "PATH=/opt", "HOSTNAME=me"];
        assert_eq!(environment(&given), json!(given));
        assert_eq!(environment(&["PATH=", "HOME=", "HOSTNAME="]), json!(["PATH=", "HOSTNAME=", "HOME=/home/user"]));
    }

    #[test]
    fn a_terminal_sets_its_type() {
        let terminal = StdioSpec::Terminal(TerminalSize::default());
        let environment = |given: &[&str]| process("f-1", &spec(given, terminal), &user(0))["env"].clone();
        assert_eq!(environment(&["PATH=", "HOME=/", "HOSTNAME="])[3], "TERM=xterm");
        assert_eq!(environment(&["TERM=dumb"])[0], "TERM=dumb");
        assert_eq!(environment(&["TERM=dumb"]).as_array().unwrap().len(), 4);
    }

    #[test]
    fn the_last_of_a_name_wins() {
        let all = environment(&["A=1", "HOME=/x", "EQ=a=b=c", "A=2", "AB=", "HOME="]);
        assert_eq!(all.as_array().unwrap()[..3], [json!("EQ=a=b=c"), json!("A=2"), json!("AB=")]);
        assert!(all.as_array().unwrap().contains(&json!("HOME=/home/user")), "{all}");
    }

    #[test]
    fn a_user_has_groups_and_a_umask() {
        let user = process("f-1", &spec(&[], PIPES), &user(1000))["user"].clone();
        assert_eq!(user, json!({ "uid": 1000, "gid": 7, "additionalGids": [7, 8], "umask": 0o022 }));
    }

    #[test]
    fn only_root_has_capabilities() {
        let capabilities = |uid| process("f-1", &spec(&[], PIPES), &user(uid))["capabilities"].clone();
        assert_eq!(capabilities(0)["effective"], json!(CAPABILITIES));
        assert_eq!(capabilities(1000)["effective"], json!([]));
        assert!(!CAPABILITIES.contains(&"CAP_MKNOD") && !CAPABILITIES.contains(&"CAP_SYS_ADMIN"));
    }

    #[test]
    fn the_library_understands_it() {
        let text = configured(Placement::Policy(Node::try_from(1).unwrap())).to_string();
        let spec: libcontainer::oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
        assert!(spec.linux().as_ref().unwrap().memory_policy().is_some());
    }
}
