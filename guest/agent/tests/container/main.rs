//! Creates real containers, without a VM, on this machine's kernel. Needs root: the test runs itself in a mount namespace of its own with a unified cgroup hierarchy at the usual place. Where that cannot be
//! had it fails; it is never skipped in silence.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod copy;
mod peer;
mod volume;
mod zygote;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_agent::accounts::Credentials;
use bellows_agent::container::plan::ProcessSpec;
use bellows_agent::container::{HELPER, Joining, Launcher, Process, Running};
use bellows_agent::error::{AgentError, Result};
use bellows_agent::placement::Placement;
use bellows_agent::reaper::Reaper;
use bellows_agent::streams::{Permits, StdioSpec};
use bellows_protocol::stream::{MAX_ANSWER_LINE, StreamName, parse_answer_line, read_line};
use bellows_protocol::user::{Account, User};
use bellows_protocol::values::{Node, TerminalSize};
use nix::mount::{MsFlags, mount};

/// A root file system of one static program, and folders for the containers made from it.
struct Fixture {
    folder: tempfile::TempDir,
    launcher: Launcher,
    reaper: Arc<Reaper>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let binaries = folder.path().join("root/bin");
        fs::create_dir_all(&binaries).unwrap();
        fs::copy("/bin/busybox", binaries.join("busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "id", "ls", "mount", "unshare", "sleep", "grep", "ip", "mknod", "hostname", "stty", "tty",
            "sed", "stat", "sort", "env", "readlink",
        ] {
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
        let launcher = Launcher::new(env!("CARGO_BIN_EXE_bellows-agent"), Arc::clone(&reaper));
        Self { folder, launcher, reaper }
    }

    fn launch(&self, id: &str, process: &ProcessSpec, placement: Placement) -> Result<(Process, OwnedFd)> {
        self.launch_as(id, process, placement, Running::Command)
    }

    fn launch_as(
        &self,
        id: &str,
        process: &ProcessSpec,
        placement: Placement,
        running: Running<'_>,
    ) -> Result<(Process, OwnedFd)> {
        self.launch_with(id, process, placement, running, &[])
    }

    fn start(&self, id: &str, process: &ProcessSpec) -> Process {
        self.launch(id, process, Placement::Base).unwrap().0
    }

    fn join(&self, id: &str, init: &Process, process: &ProcessSpec) -> Result<Process> {
        self.join_at(id, init, process, Placement::Base)
    }

    fn join_at(&self, id: &str, init: &Process, process: &ProcessSpec, placement: Placement) -> Result<Process> {
        let joining = Joining { hostname: id, cgroup: &Self::cgroup(id), placement, init, shares_network: false };
        self.launcher.join(&joining, process, &credentials(process))
    }

    fn cgroup(id: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(format!("bellows-test-{}/{id}", std::process::id()))
    }

    fn run(&self, id: &str, script: &str) -> (i32, String, String) {
        self.run_as(id, script, 0)
    }

    fn run_as(&self, id: &str, script: &str, uid: u32) -> (i32, String, String) {
        finish(&self.start(id, &ProcessSpec { user: user(uid), ..shell(script) }))
    }
}

/// A shell that runs `script` as root, without input.
fn shell(script: &str) -> ProcessSpec {
    command(&["sh", "-c", script])
}

fn command(arguments: &[&str]) -> ProcessSpec {
    ProcessSpec {
        arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
        environment: vec!["GREETING=hello".into()],
        working_directory: "/bin".into(),
        user: user(0),
        stdio: StdioSpec::Pipes { stdin: false },
    }
}

fn user(number: u32) -> User {
    User { user: Account::Number(number), group: None }
}

fn credentials(process: &ProcessSpec) -> Credentials {
    let Account::Number(uid) = process.user.user else { panic!("{:?}", process.user) };
    Credentials { uid, gid: uid, groups: vec![uid, 4242], home: "/home".into() }
}

const LIMIT: Duration = Duration::from_secs(30);
const INPUT: StdioSpec = StdioSpec::Pipes { stdin: true };
const TERMINAL: StdioSpec = StdioSpec::Terminal(TerminalSize { columns: 91, rows: 17 });

/// Connects to a stream as the monitor does.
fn connect(process: &Process, stream: StreamName) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    process.streams.connect(stream, &theirs, &process.ended, Permits::new(1).take().unwrap()).unwrap();
    parse_answer_line(&read_line(&ours, MAX_ANSWER_LINE, LIMIT).unwrap()).unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    ours
}

/// All that comes of a stream. It does not break off.
fn text(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Reads until `end` has come.
fn text_until(mut stream: &UnixStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{end:?} does not come: {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

fn finish(process: &Process) -> (i32, String, String) {
    let stdout = text(connect(process, StreamName::Stdout));
    let stderr = text(connect(process, StreamName::Stderr));
    (process.exit.wait_for(LIMIT).expect("it ends"), stdout, stderr)
}

const INNER: &str = "BELLOWS_TEST_IN_NAMESPACE";

/// The namespace cannot be entered by a test's thread for the whole process, so the test's program runs itself in one.
#[test]
fn containers() {
    if std::env::var_os(INNER).is_some() {
        return inside();
    }
    assert!(nix::unistd::geteuid().is_root(), "creating containers needs root");
    let status = Command::new("sh")
        .args(["-c", "trap '' INT USR1; exec \"$0\" \"$@\"", "unshare", "--mount", "--propagation", "private"])
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
    no_signal_is_ignored(&fixture);
    a_missing_command_is_reported(&fixture);
    volume::is_mounted_read_only_within_the_image(&fixture);
    copy::files_go_both_ways(&fixture);
    memory_is_bound_to_its_node(&fixture);
    input_comes_to_its_end(&fixture);
    streams_belong_to_the_user(&fixture);
    a_terminal_is_one(&fixture);
    a_terminal_has_a_size(&fixture);
    a_terminal_is_hung_up(&fixture);
    a_process_joins(&fixture);
    what_joins_has_streams_of_its_own(&fixture);
    what_cannot_join_is_reported(&fixture);
    what_a_process_leaves_behind_does_not_hold_its_streams(&fixture);
    a_helper_that_is_gone_is_replaced(&fixture);
    peer::a_container_is_what_runc_makes(&fixture);
    zygote::has_its_socket_and_a_number_of_its_own(&fixture);
    zygote::ends_as_its_process_does(&fixture);
    zygote::cannot_be_forked_by_this_kernel(&fixture);

    let group = cgroups.join(format!("bellows-test-{}", std::process::id()));
    for entry in fs::read_dir(&group).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        // Some still run.
        fs::write(entry.path().join("cgroup.kill"), "1").unwrap();
        let start = Instant::now();
        while let Err(error) = fs::remove_dir(entry.path()) {
            assert!(start.elapsed() < LIMIT, "{error}");
            std::thread::yield_now();
        }
    }
    fs::remove_dir(group).unwrap();
}

fn no_signal_is_ignored(fixture: &Fixture) {
    assert!(!fs::read_to_string("/proc/self/status").unwrap().contains("SigIgn:\t0000000000000000"), "the test does");
    let process = fixture.start("no-signals", &command(&["grep", "SigIgn", "/proc/self/status"]));
    assert_eq!(finish(&process), (0, "SigIgn:\t0000000000000000\n".into(), String::new()));
}

fn a_helper_that_is_gone_is_replaced(fixture: &Fixture) {
    let beside = fixture.start("beside", &command(&["cat"]));
    let mut ours = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap();
        ours.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    let is_helper = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|&byte| byte == 0).nth(1) == Some(HELPER.as_bytes())
    };
    ours.retain(is_helper);
    // The process beside executed its command: it is no helper any more.
    let [helper] = ours[..] else { panic!("one helper: {ours:?}") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL).unwrap();
    let start = Instant::now();
    while Path::new(&format!("/proc/{helper}")).exists() {
        assert!(start.elapsed() < LIMIT, "it stays");
        std::thread::yield_now();
    }
    assert_eq!(fixture.run("replaced", "echo again"), (0, "again\n".into(), String::new()));
    assert_eq!(finish(&beside).0, 0, "what it had made is not its");
}

fn its_streams_and_exit_code_arrive(fixture: &Fixture) {
    let (code, stdout, stderr) = fixture.run("streams", "echo $GREETING; pwd; echo oops >&2; cat; exit 5");
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (5, "hello\n/bin\n", "oops\n"));
}

/// Though it has ended before anybody could look.
fn its_network_is_known(fixture: &Fixture) {
    let spec = command(&["ls", "-l", "/proc/self/ns/net"]);
    let (process, network) = fixture.launch("network", &spec, Placement::Base).unwrap();
    let inode = nix::sys::stat::fstat(&network).unwrap().st_ino;
    let (_, stdout, _) = finish(&process);
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
    let process = fixture.start("killed", &command(&["sleep", "60"]));
    nix::sys::signal::kill(process.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(finish(&process), (128 + 9, String::new(), String::new()));
}

fn a_missing_command_is_reported(fixture: &Fixture) {
    let error = |id, name| fixture.launch(id, &command(&[name]), Placement::Base).unwrap_err();
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
        let error = fixture
            .launch(id, &ProcessSpec { user: user(1000), ..self::command(&[command]) }, Placement::Base)
            .unwrap_err();
        let AgentError::CommandNotExecutable(text) = error else { panic!("{id}: {error:?}") };
        assert!(text.contains(reason) && text.contains(command), "{text}");
    }
}

/// This machine has one node, so that is where the policy points; that it is asked for is what can be seen here.
fn memory_is_bound_to_its_node(fixture: &Fixture) {
    let partition = Placement::Policy(Node::try_from(1).unwrap());
    let error = fixture.launch("elsewhere", &shell(":"), partition).unwrap_err();
    let exists = Path::new("/sys/devices/system/node/node1").exists();
    assert!(!exists, "this test expects a machine with one node");
    assert!(matches!(&error, AgentError::Container(text) if text.contains("memory policy")), "{error:?}");

    let init = fixture.start("here", &shell("sleep 60"));
    let error = fixture.join_at("here", &init, &shell(":"), partition).unwrap_err();
    assert!(matches!(&error, AgentError::Container(text) if text.contains("memory policy")), "{error:?}");
}

fn input_comes_to_its_end(fixture: &Fixture) {
    let process = fixture.start("input", &ProcessSpec { stdio: INPUT, ..shell("cat; echo END") });
    let mut stdin = connect(&process, StreamName::Stdin);
    let stdout = connect(&process, StreamName::Stdout);
    // More than all that lies in between holds.
    let sent = "0123456789abcdef".repeat(1 << 16);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(sent.as_bytes()).unwrap();
            stdin.shutdown(Shutdown::Write).unwrap();
        });
        assert!(text(stdout) == format!("{sent}END\n"));
    });
    assert_eq!(process.exit.wait_for(LIMIT), Some(0));

    // Without, there is nothing to connect to, and nothing to read.
    let process = fixture.start("no-input", &shell("cat; ls -l /proc/self/fd/0"));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let permit = Permits::new(1).take().unwrap();
    let error = process.streams.connect(StreamName::Stdin, &theirs, &process.ended, permit).unwrap_err();
    assert!(error.to_string().contains("stdin"), "{error}");
    let (_, stdout, _) = finish(&process);
    assert!(stdout.trim().ends_with("/dev/null"), "{stdout}");
}

fn streams_belong_to_the_user(fixture: &Fixture) {
    let script = "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin";
    let process = fixture.start("owner", &ProcessSpec { user: user(1000), stdio: INPUT, ..shell(script) });
    let mut stdin = connect(&process, StreamName::Stdin);
    stdin.write_all(b"in\n").unwrap();
    drop(stdin);
    assert_eq!(finish(&process), (0, "out\nin\n".into(), "err\n".into()));
}

fn a_terminal_is_one(fixture: &Fixture) {
    let script =
        "test -t 0 -a -t 1 -a -t 2 && tty && stty size && echo $TERM && : >/dev/tty && cat /dev/null >$(tty); exit 7";
    let spec = ProcessSpec { user: user(1000), stdio: TERMINAL, ..shell(script) };
    let process = fixture.start("terminal", &spec);
    // Its output waits until somebody connects.
    assert_eq!(process.exit.wait_for(LIMIT), Some(7));
    assert_eq!(text(connect(&process, StreamName::Terminal)), "/dev/pts/0\r\n17 91\r\nxterm\r\n");
}

fn a_terminal_has_a_size(fixture: &Fixture) {
    let script = "trap 'stty size; exit 3' WINCH; echo ready; sleep 60 & wait";
    let process = fixture.start("size", &ProcessSpec { stdio: TERMINAL, ..shell(script) });
    let terminal = connect(&process, StreamName::Terminal);
    text_until(&terminal, "ready\r\n");
    process.streams.resize(TerminalSize { columns: 100, rows: 50 }).unwrap();
    assert_eq!(text(terminal), "50 100\r\n");
    assert_eq!(process.exit.wait_for(LIMIT), Some(3));
    let error = fixture.start("pipes", &shell(":")).streams.resize(TerminalSize::default()).unwrap_err();
    assert!(error.to_string().contains("terminal"), "{error}");
}

/// When the monitor is gone. What is typed arrives, and ^C is a signal.
fn a_terminal_is_hung_up(fixture: &Fixture) {
    // The kernel spares a container's first process what it does not handle.
    // The kernel otherwise throws away what has been printed by the time that it has sent the signal, and puts the echo in between.
    let script = "stty noflsh -echo; trap 'echo interrupted' INT; trap 'exit 5' HUP; echo ready; read line; echo got $line; read line; sleep 60 & wait";
    let process = fixture.start("hung-up", &ProcessSpec { stdio: TERMINAL, ..shell(script) });
    let mut terminal = connect(&process, StreamName::Terminal);
    text_until(&terminal, "ready\r\n");
    terminal.write_all(b"typed\n").unwrap();
    text_until(&terminal, "got typed\r\n");
    // A shell that is about to read, and no longer looks for signals, goes on with the line.
    terminal.write_all(b"\x03\n").unwrap();
    text_until(&terminal, "interrupted\r\n");
    drop(terminal);
    assert_eq!(process.exit.wait_for(LIMIT), Some(5));

    let spec = ProcessSpec { stdio: TERMINAL, ..command(&["sleep", "60"]) };
    let init = fixture.start("hung-up-too", &command(&["sleep", "60"]));
    let process = fixture.join("hung-up-too", &init, &spec).unwrap();
    drop(connect(&process, StreamName::Terminal));
    assert_eq!(process.exit.wait_for(LIMIT), Some(128 + 1));
}

fn a_process_joins(fixture: &Fixture) {
    let init = fixture.start("joined", &command(&["sleep", "60"]));
    let script = "echo $GREETING; pwd; hostname; id -u; grep ^0: /proc/self/cgroup; \
                  grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls -l /proc/self/ns; exit 9";
    let process = fixture.join("joined", &init, &ProcessSpec { user: user(1000), ..shell(script) }).unwrap();
    let (code, stdout, stderr) = finish(&process);
    assert_eq!((code, stderr.as_str()), (9, ""), "{stdout}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..5], ["hello", "/bin", "joined", "1000", "0::/"], "{stdout}");
    let rights = ["CapEff:\t0000000000000000", "CapBnd:\t00000000a00425fb", "NoNewPrivs:\t1", "Seccomp:\t2"];
    assert_eq!(lines[5..9], rights, "{stdout}");
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let namespace = fs::read_link(format!("/proc/{}/ns/{kind}", init.pid)).unwrap();
        assert!(stdout.contains(namespace.to_str().unwrap()), "{kind} {namespace:?} {stdout}");
    }
    // It ends with the container.
    let process = fixture.join("joined", &init, &command(&["sleep", "60"])).unwrap();
    nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(process.exit.wait_for(LIMIT), Some(128 + 9));
}

fn what_joins_has_streams_of_its_own(fixture: &Fixture) {
    let init = fixture.start("streams-of", &shell("sleep 60"));
    let process = fixture.join("streams-of", &init, &ProcessSpec { stdio: INPUT, ..shell("cat") }).unwrap();
    let mut stdin = connect(&process, StreamName::Stdin);
    stdin.write_all(b"in").unwrap();
    drop(stdin);
    assert_eq!(finish(&process), (0, "in".into(), String::new()));

    let spec = ProcessSpec { user: user(1000), stdio: TERMINAL, ..shell("tty; stty size; : >/dev/tty; exit 4") };
    let process = fixture.join("streams-of", &init, &spec).unwrap();
    assert_eq!(text(connect(&process, StreamName::Terminal)), "/dev/pts/0\r\n17 91\r\n");
    assert_eq!(process.exit.wait_for(LIMIT), Some(4));
}

fn what_cannot_join_is_reported(fixture: &Fixture) {
    let init = fixture.start("not-joined", &shell("sleep 60"));
    let error = |process: &ProcessSpec| fixture.join("not-joined", &init, process).unwrap_err();
    let missing = error(&command(&["no-such-command"]));
    assert!(matches!(&missing, AgentError::CommandNotFound(text) if text.contains("no-such-command")), "{missing:?}");
    assert!(matches!(error(&command(&["text"])), AgentError::CommandNotExecutable(_)));
    let nowhere = error(&ProcessSpec { working_directory: "/nowhere".into(), ..shell(":") });
    assert!(matches!(nowhere, AgentError::Container(_)), "{nowhere:?}");
    nix::sys::signal::kill(init.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    init.exit.wait_for(LIMIT).unwrap();
    let gone = error(&shell(":"));
    assert!(matches!(gone, AgentError::Container(_)), "{gone:?}");
}

fn what_a_process_leaves_behind_does_not_hold_its_streams(fixture: &Fixture) {
    let init = fixture.start("left-behind", &shell("sleep 300"));
    let silent = fixture.join("left-behind", &init, &shell("sleep 300 & echo done")).unwrap();
    assert_eq!(finish(&silent), (0, "done\n".into(), String::new()));
    // One that never stops to write; what was written before is there.
    let script = "(while :; do echo x; done) & echo mine; exit 3";
    let noisy = fixture.join("left-behind", &init, &shell(script)).unwrap();
    let (code, stdout, _) = finish(&noisy);
    assert_eq!(code, 3);
    assert!(stdout.contains("mine\n"));
}
