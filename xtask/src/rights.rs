//! With which rights the tests that need KVM run in the lab, and what there says that a monitor did more than its filters allow.

use bellows_lab::{Job, USER, USER_HOME, USER_RUNTIME};

/// With which rights a program runs in the lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rights {
    /// Those of an ordinary user in the group `kvm`.
    User,
    /// The same, and the user may make interfaces, in a network namespace of its own.
    UserWithNetwork,
    /// The superuser's.
    Root,
}

/// Tests that the superuser runs, by the beginnings of their names, and what for.
const ROOT: [(&str, &str); 6] = [
    ("clock::", "sets the host's clock"),
    ("cni::", "plugins of CNI make interfaces in the host's network, and name its namespaces"),
    ("freeze::a_frozen_instance_is_pushed_out_to_swap", "adds swap"),
    ("jail::", "only the superuser makes jails"),
    ("layers::a_bad_sector", "makes a disk with a bad sector"),
    ("sealed::", "mounts a file system that can seal files"),
];

/// Tests that make interfaces, by the beginnings of their names.
const NETWORK: [&str; 9] = [
    "clients::",
    "contract::",
    "metadata::",
    "network::",
    "network_hotplug::",
    "network_load::",
    "network_own::",
    "network_vhost::",
    "passt::",
];

/// Becomes the user; then comes a program with its arguments.
const AS_USER: [&str; 5] = ["setpriv", "--reuid=user", "--regid=user", "--init-groups", "--"];
/// Makes a network namespace that is the user's.
const IN_NETWORK: [&str; 9] = [
    "unshare",
    "--user",
    "--map-current-user",
    "--keep-caps",
    "--net",
    "--",
    "sh",
    "-ec",
    "ip link set lo up; exec \"$0\" \"$@\"",
];

impl Rights {
    /// Those of a test.
    pub fn of(test: &str) -> Self {
        if ROOT.iter().any(|(name, _)| test.starts_with(name)) {
            Self::Root
        } else if NETWORK.iter().any(|name| test.starts_with(name)) {
            Self::UserWithNetwork
        } else {
            Self::User
        }
    }

    /// A job of the lab with these rights.
    pub fn job<'a>(self, command: impl IntoIterator<Item = &'a str>) -> Job {
        let prefix = match self {
            Self::User => AS_USER.to_vec(),
            Self::UserWithNetwork => [&AS_USER[..], &IN_NETWORK].concat(),
            Self::Root => Vec::new(),
        };
        let job = Job::new(prefix.into_iter().chain(command));
        match self {
            Self::Root => job,
            Self::User | Self::UserWithNetwork => {
                job.env("HOME", USER_HOME).env("USER", USER).env("XDG_RUNTIME_DIR", USER_RUNTIME)
            }
        }
    }
}

/// A system call that a filter did not allow.
#[derive(Debug, Eq, PartialEq)]
pub struct Violation {
    thread: String,
    program: String,
    call: u64,
}

impl Violation {
    /// Reads a line of the kernel's log. Another line is `None`.
    pub fn read(line: &str) -> Option<Self> {
        // AUDIT_SECCOMP of linux/audit.h.
        let (_, record) = line.split_once("audit: type=1326 ")?;
        let field = |name: &str| record.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let text = |name: &str| field(name).unwrap_or("unknown").trim_matches('"').to_owned();
        Some(Self { thread: text("comm"), program: text("exe"), call: field("syscall")?.parse().ok()? })
    }

    /// Says it; `header` is the C header with the numbers of calls.
    pub fn describe(&self, header: &str) -> String {
        let name = header.lines().find_map(|line| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            (number.trim().parse() == Ok(self.call)).then_some(name)
        });
        let Self { thread, program, call } = self;
        format!(
            "thread `{thread}` of {program} called {} ({call}): its filter does not list it",
            name.unwrap_or("unknown")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tests_have_the_superusers_rights() {
        assert_eq!(Rights::of("detached::anything"), Rights::User);
        assert_eq!(Rights::of("network_own::anything"), Rights::UserWithNetwork);
        assert_eq!(Rights::of("jail::anything"), Rights::Root);
        assert_eq!(Rights::of("the_host_has_hardware_backed_kvm"), Rights::User);
    }

    #[test]
    fn a_job_becomes_the_user_before_anything_else() {
        let job = Rights::UserWithNetwork.job(["e2e", "--exact"]);
        assert_eq!(
            (&*job.argv[0], &job.argv[5..7], &job.argv[14..]),
            (
                "setpriv",
                &["unshare".to_owned(), "--user".to_owned()][..],
                &["e2e".to_owned(), "--exact".to_owned()][..]
            )
        );
        assert_eq!(job.env["HOME"], "/home/user");
        let job = Rights::Root.job(["e2e"]);
        assert!(job.argv == ["e2e"] && job.env.is_empty());
    }

    #[test]
    fn a_violation_is_read_from_the_log_and_named() {
        let line = "[   12.5] audit: type=1326 audit(1764555.1:2): auid=4294967295 uid=1000 gid=1000 ses=4294967295 subj=unconfined \
                    pid=77 comm=\"vcpu0\" exe=\"/work/bellows\" sig=31 arch=c000003e syscall=257 compat=0 ip=0x7f code=0x30000";
        let violation = Violation::read(line).unwrap();
        assert_eq!(violation, Violation { thread: "vcpu0".into(), program: "/work/bellows".into(), call: 257 });
        let header = "#define __NR_read 0\n#define __NR_openat 257\n";
        let said = violation.describe(header);
        assert_eq!(said, "thread `vcpu0` of /work/bellows called openat (257): its filter does not list it");
        assert!(violation.describe("").contains("called unknown (257)"));
        assert_eq!(Violation::read("[    1.0] audit: type=2000 audit(1.0:1): state=initialized"), None);
    }
}
