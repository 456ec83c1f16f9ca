//! How confined the monitors are that run on this host, as far as this user may look at them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Namespaces that a jail may have of its own.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "user"];
/// What the descriptor of a VM links to.
const VM: &str = "anon_inode:kvm-vm";

/// A process of Bellows that has a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Monitor {
    pid: u32,
    /// The VM's, if its command line gives it one.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    uid: u32,
    /// Its system calls are filtered.
    seccomp: bool,
    no_new_privileges: bool,
    /// Its effective capabilities, as a mask in hexadecimal.
    capabilities: String,
    /// The namespaces that are not this process's.
    own_namespaces: Vec<&'static str>,
    control_group: String,
    /// Whether its command line leaves Landlock on, and the kernel has it: the kernel shows it of no process.
    landlock: bool,
}

/// All monitors, by the numbers of their processes.
pub(super) fn all(root: &Path) -> Vec<Monitor> {
    let kernel_has_landlock = crate::landlock::is_available();
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut all: Vec<_> = pids.filter_map(|pid| Monitor::read(root, pid, kernel_has_landlock)).collect();
    all.sort_by_key(|monitor| monitor.pid);
    all
}

impl Monitor {
    /// `None` if the process is none, has ended, or must not be looked at.
    fn read(root: &Path, pid: u32, kernel_has_landlock: bool) -> Option<Self> {
        let folder = root.join(format!("proc/{pid}"));
        let line = fs::read(folder.join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let command = command(&words)?;
        let mut descriptors = fs::read_dir(folder.join("fd")).ok()?.filter_map(Result::ok);
        descriptors.find(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(VM)))?;
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let namespace = |of: &str, name: &str| fs::read_link(root.join(format!("proc/{of}/ns/{name}"))).ok();
        let of_process = pid.to_string();
        let is_own = |name: &&str| {
            let found = namespace(&of_process, name);
            found.is_some() && found != namespace("self", name)
        };
        let groups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        Some(Self {
            pid,
            id: words.iter().position(|word| word == "--id").and_then(|at| Some(words.get(at + 1)?.to_string())),
            uid: field("Uid")?.split_whitespace().next()?.parse().ok()?,
            seccomp: field("Seccomp") == Some("2"),
            no_new_privileges: field("NoNewPrivs") == Some("1"),
            capabilities: field("CapEff").unwrap_or_default().trim_start_matches('0').to_owned(),
            own_namespaces: NAMESPACES.into_iter().filter(|name| is_own(name)).collect(),
            control_group: groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned(),
            landlock: kernel_has_landlock && command.has_landlock(&words),
        })
    }

    /// What a monitor that a guest takes over would have for itself.
    fn lacks(&self) -> Vec<&'static str> {
        let is_jailed = self.own_namespaces.contains(&"mnt");
        [
            (!self.seccomp, "its system calls are not filtered"),
            (!self.no_new_privileges, "it can gain privileges by executing programs"),
            (!self.landlock && !is_jailed, "it can open all files that its user can"),
            (self.uid == 0, "it is the superuser"),
            (!self.capabilities.is_empty(), "it has capabilities"),
        ]
        .into_iter()
        .filter_map(|(is_missing, text)| is_missing.then_some(text))
        .collect()
    }
}

impl Display for Monitor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let lacks = self.lacks();
        let state = if lacks.is_empty() { "ok" } else { "lacks" };
        let name = self.id.clone().unwrap_or_else(|| self.pid.to_string());
        write!(f, "{state:<6} VM {name:<12} process {}, user {}", self.pid, self.uid)?;
        let mut has = Vec::new();
        if self.seccomp {
            has.push("filtered system calls".to_owned());
        }
        if self.landlock {
            has.push("Landlock".to_owned());
        }
        if !self.own_namespaces.is_empty() {
            has.push(format!("its own {}", self.own_namespaces.join(", ")));
        }
        if !has.is_empty() {
            write!(f, "; {}", has.join("; "))?;
        }
        lacks.iter().try_for_each(|text| write!(f, "\n{:<23}{text}", ""))
    }
}

/// A command that has a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Command {
    Run,
    Api,
}

impl Command {
    /// Whether Landlock is on with this command line, where the kernel has it.
    fn has_landlock(self, words: &[impl AsRef<str>]) -> bool {
        let has = |option: &str| words.iter().any(|word| word.as_ref() == option);
        match self {
            Self::Run => !has("--no-landlock"),
            Self::Api => has("--landlock"),
        }
    }
}

/// The command of a process, if it is one of Bellows' that may have a VM. In a jail, the program has the name of its file.
fn command(words: &[impl AsRef<str>]) -> Option<Command> {
    let mut words = words.iter().map(AsRef::as_ref);
    let program = Path::new(words.next()?).file_name()?.to_str()?;
    match (program, words.next()) {
        ("firecracker", _) | (_, Some("api")) => Some(Command::Api),
        ("bellows", Some("run")) => Some(Command::Run),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with one process.
    fn host(command: &str, status: &str, mount_namespace: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, namespace) in [("7", mount_namespace), ("self", "mnt:[1]")] {
            let folder = root.path().join("proc").join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::create_dir(folder.join("fd")).unwrap();
            symlink(namespace, folder.join("ns/mnt")).unwrap();
            symlink("net:[1]", folder.join("ns/net")).unwrap();
            symlink(VM, folder.join("fd/9")).unwrap();
            fs::write(folder.join("cmdline"), command.replace(' ', "\0")).unwrap();
            fs::write(folder.join("status"), status).unwrap();
            fs::write(folder.join("cgroup"), "0::/vms\n").unwrap();
        }
        root
    }

    #[test]
    fn a_confined_monitor_lacks_nothing() {
        let status = "Name:\tb\nUid:\t1234\t1234\t1234\t1234\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let host = host("bellows api --id vm-1 --api-sock s", status, "mnt:[2]");
        let found = all(host.path());
        let [monitor] = &found[..] else { panic!("{found:?}") };
        assert_eq!((monitor.id.as_deref(), &*monitor.own_namespaces), (Some("vm-1"), &["mnt"][..]));
        let text = monitor.to_string();
        assert!(text.starts_with("ok") && text.contains("its own mnt"), "{text}");
        assert_eq!(monitor.lacks(), Vec::<&str>::new());
    }

    #[test]
    fn a_monitor_that_is_not_confined_says_what_it_lacks() {
        let status = "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n";
        let found = all(host("bellows run --no-seccomp --no-landlock x", status, "mnt:[1]").path());
        let [monitor] = &found[..] else { panic!("{found:?}") };
        assert_eq!((monitor.lacks().len(), &*monitor.capabilities), (5, "1ffffffffff"));
        assert!(monitor.to_string().starts_with("lacks"), "{monitor}");
    }

    #[test]
    fn other_processes_are_none() {
        for line in ["bellows ps", "qemu-system-x86_64 run", "firecracker-helper x", ""] {
            assert!(all(host(line, "Uid:\t1\n", "mnt:[1]").path()).is_empty(), "{line}");
        }
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&words("/usr/bin/firecracker --api-sock s")), Some(Command::Api));
        assert!(Command::Run.has_landlock(&words("bellows run x")));
        assert!(!Command::Api.has_landlock(&words("bellows api --no-api")));
    }
}
