//! Creates real containers, without a VM, on this machine's kernel. Needs root: the test runs itself in a mount namespace of its own with a unified cgroup hierarchy at the usual place. Where that cannot be
//! had it fails; it is never skipped in silence.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bellows_agent::accounts::Credentials;
use bellows_agent::container::spec::{Workload, configuration};
use bellows_agent::container::{Launcher, Process};
use bellows_agent::error::{AgentError, Result};
use bellows_agent::output::OutputStream;
use bellows_agent::placement::Placement;
use bellows_agent::reaper::Reaper;
use bellows_protocol::values::Node;
use nix::mount::{MsFlags, mount};

/// A root file system of one static program, and folders for the containers made from it.
struct Fixture {
    folder: tempfile::TempDir,
    launcher: Launcher,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let binaries = folder.path().join("root/bin");
        fs::create_dir_all(&binaries).unwrap();
        fs::copy("/bin/busybox", binaries.join("busybox")).expect("busybox-static is installed");
        for name in ["sh", "cat", "id", "ls", "mount", "unshare", "sleep", "grep", "ip", "mknod", "hostname"] {
            std::os::unix::fs::symlink("busybox", binaries.join(name)).unwrap();
        }
        fs::write(binaries.join("text"), "text").unwrap();
        fs::write(binaries.join("lost"), "#!/no/such/interpreter\n").unwrap();
        for (name, content, mode) in [("bare", "echo", 0o755), ("empty", "", 0o755), ("private", "#!/bin/sh", 0o700)] {
            fs::write(binaries.join(name), content).unwrap();
            fs::set_permissions(binaries.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(binaries.join("lost"), fs::Permissions::from_mode(0o755)).unwrap();
        let reaper = Reaper::start().unwrap();
        let launcher = Launcher::new(env!("CARGO_BIN_EXE_bellows-agent"), folder.path().join("state"), reaper);
        Self { folder, launcher }
    }

    fn launch(&self, id: &str, arguments: &[&str], uid: u32, placement: Placement) -> Result<(Process, OwnedFd)> {
        let bundle = self.folder.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let root = self.folder.path().join("root");
        let cgroup = format!("/bellows-test-{}/{id}", std::process::id());
        let credentials = Credentials { uid, gid: uid, groups: vec![uid, 4242], home: "/home".into() };
        let configuration = configuration(&Workload {
            hostname: id,
            root: &root,
            cgroup: &cgroup,
            placement,
            memory_max: None,
            arguments: &arguments,
            environment: &["GREETING=hello".to_owned()],
            working_directory: "/bin",
            credentials: &credentials,
        });
        fs::write(bundle.join("config.json"), configuration.to_string()).unwrap();
        let result = self.launcher.launch(id, &bundle);
        if result.is_err() {
            self.launcher.forget(id);
        }
        result
    }

    fn run(&self, id: &str, script: &str) -> (i32, String, String) {
        self.run_as(id, script, 0)
    }

    fn run_as(&self, id: &str, script: &str, uid: u32) -> (i32, String, String) {
        let (process, _) = self.launch(id, &["sh", "-c", script], uid, Placement::Base).unwrap();
        let stdout = text(&process.stdout);
        let stderr = text(&process.stderr);
        (process.exit.wait_for(Duration::from_secs(30)).expect("it ends"), stdout, stderr)
    }
}

fn text(stream: &OutputStream) -> String {
    let mut data = Vec::new();
    loop {
        match stream.read(0).unwrap() {
            piece if piece.is_empty() => return String::from_utf8(data).unwrap(),
            piece => data.extend(piece),
        }
    }
}

const INNER: &str = "BELLOWS_TEST_IN_NAMESPACE";

/// The namespace cannot be entered by a test's thread for the whole process, so the test's program runs itself in one.
#[test]
fn containers() {
    if std::env::var_os(INNER).is_some() {
        return inside();
    }
    assert!(nix::unistd::geteuid().is_root(), "creating containers needs root");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["containers", "--exact", "--nocapture"])
        .env(INNER, "1")
        .status()
        .expect("unshare is installed");
    assert!(status.success());
}

fn inside() {
    let none: Option<&Path> = None;
    let cgroups = PathBuf::from("/sys/fs/cgroup");
    mount(Some("cgroup2"), &cgroups, Some("cgroup2"), MsFlags::empty(), none).expect("cgroup2 can be mounted");
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let fixture = Fixture::new();

    its_streams_and_exit_code_arrive(&fixture);
    its_network_is_known(&fixture);
    it_is_contained(&fixture);
    it_has_the_rights_of_its_user(&fixture);
    system_calls_are_refused(&fixture);
    signals_are_reported(&fixture);
    a_missing_command_is_reported(&fixture);
    memory_is_bound_to_its_node(&fixture);

    let group = cgroups.join(format!("bellows-test-{}", std::process::id()));
    for entry in fs::read_dir(&group).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        fs::remove_dir(entry.path()).unwrap();
    }
    fs::remove_dir(group).unwrap();
}

fn its_streams_and_exit_code_arrive(fixture: &Fixture) {
    let (code, stdout, stderr) = fixture.run("streams", "echo $GREETING; pwd; echo oops >&2; cat; exit 5");
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (5, "hello\n/bin\n", "oops\n"));
}

/// Though it has ended before anybody could look.
fn its_network_is_known(fixture: &Fixture) {
    let (process, network) = fixture.launch("network", &["ls", "-l", "/proc/self/ns/net"], 0, Placement::Base).unwrap();
    let inode = nix::sys::stat::fstat(&network).unwrap().st_ino;
    let stdout = text(&process.stdout);
    assert!(stdout.contains(&format!("net:[{inode}]")), "{inode} {stdout}");
}

fn it_is_contained(fixture: &Fixture) {
    let (code, stdout, stderr) = fixture.run(
        "contained",
        "echo $$; hostname; ls /; cat /proc/self/cgroup; ip link show lo | grep -c ,UP; ls /proc/self/fd | grep -c .; \
         echo >/proc/sys/kernel/hostname; mknod /dev/x b 254 0; mount -t tmpfs x /bin",
    );
    assert_ne!(code, 0);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..2], ["1", "contained"]);
    assert!(lines.contains(&"bin") && !lines.contains(&"work"), "{stdout}");
    // Its cgroup is the root of what it sees; loopback is up; descriptors 0, 1, 2 and that of `ls`.
    assert_eq!(lines[lines.len() - 3..], ["0::/", "1", "4"], "{stdout}");
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
}

fn it_has_the_rights_of_its_user(fixture: &Fixture) {
    let script = "id -u; id -g; id -G; echo $HOME; umask; grep -E '^(CapEff|NoNewPrivs|Seccomp|SigIgn|SigBlk):' /proc/self/status";
    let (code, stdout, _) = fixture.run_as("user", script, 1000);
    assert_eq!(code, 0);
    let words: Vec<_> = stdout.split_whitespace().collect();
    assert_eq!(words[..6], ["1000", "1000", "1000", "4242", "/home", "0022"]);
    let value = |key: &str| words[words.iter().position(|word| *word == key).unwrap() + 1];
    assert_eq!(value("CapEff:"), "0000000000000000");
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2");
    assert_eq!(u64::from_str_radix(value("SigIgn:"), 16).unwrap() & 1 << 12, 0, "SIGPIPE is not ignored");
    assert_eq!(value("SigBlk:"), "0000000000000000");
}

fn system_calls_are_refused(fixture: &Fixture) {
    let (code, _, stderr) = fixture.run("refused", "unshare -U true");
    assert_ne!(code, 0);
    assert!(stderr.contains("Operation not permitted"), "{stderr}");
}

fn signals_are_reported(fixture: &Fixture) {
    let (code, _, _) = fixture.run("signalled", "sh -c 'kill -SEGV $$'; exit $?");
    assert_eq!(code, 128 + 11);
    // The first process itself, from outside.
    let (process, _) = fixture.launch("killed", &["sleep", "60"], 0, Placement::Base).unwrap();
    nix::sys::signal::kill(process.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(process.exit.wait_for(Duration::from_secs(30)), Some(128 + 9));
    assert_eq!(text(&process.stdout), "");
}

fn a_missing_command_is_reported(fixture: &Fixture) {
    let error = |id, command| fixture.launch(id, &[command], 0, Placement::Base).unwrap_err();
    let missing = error("missing", "no-such-command");
    assert!(matches!(&missing, AgentError::CommandNotFound(text) if text.contains("no-such-command")), "{missing:?}");
    let lost = error("lost", "lost");
    assert!(matches!(&lost, AgentError::CommandNotFound(text) if text.contains("interpreter")), "{lost:?}");
    let lost = error("lost-elsewhere", "/bin/lost");
    assert!(matches!(&lost, AgentError::CommandNotFound(text) if text.contains("/no/such/interpreter")), "{lost:?}");
    for (id, command, reason) in [
        ("text", "text", "permission denied"),
        ("bare", "/bin/bare", "exec format error"),
        ("empty", "/bin/empty", "exec format error"),
        ("folder", "/bin", "directory"),
        ("private", "/bin/private", "permission denied"),
    ] {
        let error = fixture.launch(id, &[command], 1000, Placement::Base).unwrap_err();
        let AgentError::CommandNotExecutable(text) = error else { panic!("{id}: {error:?}") };
        assert!(text.contains(reason) && text.contains(command), "{text}");
    }
}

/// This machine has one node, so that is where the policy points; that it is asked for is what can be seen here.
fn memory_is_bound_to_its_node(fixture: &Fixture) {
    let partition = Placement::Policy(Node::try_from(1).unwrap());
    let error = fixture.launch("elsewhere", &["sh"], 0, partition).unwrap_err();
    let exists = Path::new("/sys/devices/system/node/node1").exists();
    assert!(!exists, "this test expects a machine with one node");
    assert!(matches!(error, AgentError::Container(_)), "{error:?}");
}
