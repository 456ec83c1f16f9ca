//! The OCI runtime configuration of an instance.

use std::path::Path;

use serde_json::{Value, json};

use crate::placement::Placement;

/// Where commands are looked for when the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an instance runs, and as whom.
#[derive(Debug)]
pub struct Workload<'a> {
    /// Host name within the container.
    pub hostname: &'a str,
    /// Its root file system.
    pub root: &'a Path,
    /// Path within the cgroup hierarchy; the cgroup exists and has its limits.
    pub cgroup: &'a str,
    /// Where its memory comes from.
    pub placement: Placement,
    /// Its limit in bytes, which its tmpfs share.
    pub memory_max: Option<u64>,
    /// Command and arguments.
    pub arguments: &'a [String],
    /// `NAME=value`.
    pub environment: &'a [String],
    /// Absolute.
    pub working_directory: &'a str,
    /// User it runs as.
    pub uid: u32,
    /// Group it runs as.
    pub gid: u32,
}

/// What containers may do by default elsewhere, less `MKNOD`: device nodes are how a container without a device
/// controller would reach the guest's disks. (The root file system is mounted `nodev`, too.)
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

/// Files of the kernel's that say, or do, too much.
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

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration as `config.json` holds it.
pub fn configuration(workload: &Workload<'_>) -> Value {
    let mut environment = workload.environment.to_vec();
    if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
        environment.push(format!("PATH={DEFAULT_PATH}"));
    }
    // Root gets the capabilities; another user can only ever get them back by a set-user-ID program, which
    // `noNewPrivileges` rules out.
    let (all, none) = (json!(CAPABILITIES), json!([]));
    let usable = if workload.uid == 0 { &all } else { &none };
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let mut linux = json!({
        "cgroupsPath": workload.cgroup,
        "namespaces": namespaces,
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    });
    // A private node needs no policy, and knows none.
    if let Placement::Policy(node) = workload.placement {
        linux["memoryPolicy"] = json!({
            "mode": "MPOL_BIND",
            // Without it, an emptied node would turn the policy into one for base memory.
            "flags": ["MPOL_F_STATIC_NODES"],
            "nodes": node.to_string(),
        });
    }
    // Without a size it would be half of all memory, partitions included.
    let size = workload.memory_max.map(|bytes| format!("size={bytes}"));
    let shm: Vec<&str> = ["nosuid", "noexec", "nodev", "mode=1777"].into_iter().chain(size.as_deref()).collect();
    json!({
        "ociVersion": "1.3.0",
        "hostname": workload.hostname,
        "root": { "path": workload.root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": workload.uid, "gid": workload.gid },
            "args": workload.arguments,
            "env": environment,
            "cwd": workload.working_directory,
            "capabilities": {
                "bounding": all,
                "permitted": usable,
                "effective": usable,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": true,
        },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", "shm", &shm),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": linux,
    })
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

#[cfg(test)]
mod tests {
    use bellows_protocol::values::Node;

    use super::*;

    fn workload<'a>(
        placement: Placement,
        uid: u32,
        arguments: &'a [String],
        environment: &'a [String],
    ) -> Workload<'a> {
        Workload {
            hostname: "f-1",
            root: Path::new("/run/i/f-1/root"),
            cgroup: "/instances/f-1",
            placement,
            memory_max: Some(4096),
            arguments,
            environment,
            working_directory: "/",
            uid,
            gid: 0,
        }
    }

    #[test]
    fn the_policy_names_the_partition() {
        let node = Node::try_from(3).unwrap();
        let configuration = configuration(&workload(Placement::Policy(node), 0, &[], &[]));
        let policy = &configuration["linux"]["memoryPolicy"];
        assert_eq!(policy["nodes"], "3");
        assert_eq!(policy["flags"], json!(["MPOL_F_STATIC_NODES"]));
    }

    #[test]
    fn base_memory_and_private_nodes_need_no_policy() {
        for placement in [Placement::Base, Placement::Private(Node::try_from(3).unwrap())] {
            assert!(configuration(&workload(placement, 0, &[], &[]))["linux"].get("memoryPolicy").is_none());
        }
    }

    #[test]
    fn shared_memory_is_bounded_by_the_limit() {
        let mounts = configuration(&workload(Placement::Base, 0, &[], &[]))["mounts"].clone();
        let shm = mounts.as_array().unwrap().iter().find(|mount| mount["source"] == "shm").unwrap();
        assert!(shm["options"].as_array().unwrap().contains(&json!("size=4096")), "{shm}");
    }

    #[test]
    fn a_path_is_there_unless_given() {
        let given = ["PATH=/opt".to_owned()];
        assert_eq!(configuration(&workload(Placement::Base, 0, &[], &given))["process"]["env"], json!(["PATH=/opt"]));
        let default = configuration(&workload(Placement::Base, 0, &[], &[]));
        assert_eq!(default["process"]["env"], json!([format!("PATH={DEFAULT_PATH}")]));
    }

    #[test]
    fn only_root_has_capabilities() {
        let capabilities =
            |uid| configuration(&workload(Placement::Base, uid, &[], &[]))["process"]["capabilities"].clone();
        assert_eq!(capabilities(0)["effective"], json!(CAPABILITIES));
        assert_eq!(capabilities(1000)["effective"], json!([]));
        assert!(!CAPABILITIES.contains(&"CAP_MKNOD") && !CAPABILITIES.contains(&"CAP_SYS_ADMIN"));
    }

    #[test]
    fn the_library_understands_it() {
        let arguments = ["/bin/true".to_owned()];
        let text =
            configuration(&workload(Placement::Policy(Node::try_from(1).unwrap()), 0, &arguments, &[])).to_string();
        let spec: libcontainer::oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
        assert!(spec.linux().as_ref().unwrap().memory_policy().is_some());
    }
}
