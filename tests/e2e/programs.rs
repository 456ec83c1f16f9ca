//! The environment of a program and its end, as with `docker run`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bellows_vmm::{AgentError, ErrorKind, ExitStatus, InstanceError, InstanceSpec, StartFailure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::archives::{Imported, import, scratch, small_archives, tar};
use crate::command::{bellows_run, image as demo_image};
use crate::fixture::{Guest, Running, image_id};

/// An image of busybox with users, and with files that cannot be executed.
fn image(directory: &Path) -> Imported {
    let source = directory.join("source");
    for folder in ["etc", "bad", "home/app"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    let file = |name: &str, text: &str, mode| {
        fs::write(source.join(name), text).unwrap();
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:2000::/home/app:/bin/sh\nlast:x:4294967295:0::/:/bin/sh\n";
    file("etc/passwd", passwd, 0o644);
    file("etc/group", "root:x:0:\nstaff:x:2000:\nextra:x:3000:app,other\nwheel:x:10:root\n", 0o644);
    file("bad/text", "#!/bin/sh\n", 0o644);
    file("bad/bare", "echo hi\n", 0o755);
    file("bad/lost", "#!/no/such/shell\n", 0o755);
    file("bad/empty", "", 0o755);
    let archive = directory.join("users.tar");
    tar(
        Command::new("tar").args(["-c", "--owner=0", "--group=0", "-f"]).arg(&archive).args(["etc", "bad", "home"]),
        &source,
    );
    let mut archives = small_archives(directory);
    archives.push(archive);
    import(directory, &archives)
}

/// Runs a shell line as `user` in `cwd`.
fn run(guest: &Running, id: &str, user: &str, cwd: &str, line: &str) -> (ExitStatus, String) {
    let mut spec = InstanceSpec::new(id.parse().unwrap(), image_id(), ["/bin/sh", "-c", line]);
    (spec.process.user, spec.process.cwd) = (user.parse().unwrap(), cwd.into());
    guest.start_spec(&spec).finish()
}

#[test]
fn a_program_finds_what_it_takes_for_granted() {
    let directory = scratch();
    let image = image(directory.path());
    let guest = Guest::ours().image(image.config()).boot();

    let line = "id; echo $HOME $HOSTNAME $(umask) $(ulimit -Sn) $(ulimit -Hn); echo out >/dev/stdout; echo err >>/dev/stderr; \
                stat -c '%u %g %a' .; pwd; cat /etc/hostname; grep -c nameserver /etc/resolv.conf; \
                cd /proc/sys/net/ipv4; echo ports $(cat ip_unprivileged_port_start) ping $(cat ping_group_range)";
    let (status, output) = run(&guest, "named", "app", "/not/there/yet", line);
    assert_eq!(status.code, 0, "{output}");
    let ids = output.lines().find(|line| line.starts_with("uid=")).unwrap();
    assert!(ids.starts_with("uid=1000(app) gid=2000(staff) groups=2000(staff),3000(extra)"), "{output}");
    let facts = output.lines().find(|line| line.starts_with("/home/app named 0022 ")).unwrap();
    let limits = facts.split(' ').skip(3).map(|limit| limit.parse::<u64>().unwrap());
    assert!(limits.into_iter().all(|limit| limit >= 65_536), "{output}");
    for line in ["out", "err", "0 0 755", "/not/there/yet", "named", "1", "ports 0 ping 0 2147483647"] {
        assert!(output.lines().any(|found| found == line), "{line}: {output}");
    }

    // This ping needs a raw socket.
    let (status, output) = run(&guest, "named", "", "", "ping -c1 -W2 localhost && ping -c1 -W2 named");
    assert_eq!(status.code, 0, "{output}");

    for (id, user, expected) in [
        ("root", "", "0:0:0 10:/root"),
        ("number", "1000", "1000:2000:2000 3000:/home/app"),
        ("group", "app:extra", "1000:3000:3000:/home/app"),
        ("nobody", "4242:4343", "4242:4343:4343:/"),
    ] {
        let (status, output) = run(&guest, id, user, "", "echo $(id -u):$(id -g):$(id -G):$HOME");
        assert_eq!((status.code, output.trim()), (0, expected), "{user}");
    }

    let failure = |user: &str, command: &str| {
        let mut spec = InstanceSpec::new("failed".parse().unwrap(), image_id(), [command]);
        spec.process.user = user.parse().unwrap();
        match guest.vm.start_instance(&spec) {
            Err(InstanceError::Agent { source: AgentError::NotStarted { reason, message }, .. }) => (reason, message),
            other => panic!("{user} {command}: {:?}", other.err()),
        }
    };
    for (user, command, reason, said) in [
        ("", "nosuchtool", StartFailure::CommandNotFound, "nosuchtool"),
        ("", "/bad/lost", StartFailure::CommandNotFound, "/no/such/shell"),
        ("", "/bad/text", StartFailure::CommandNotExecutable, "permission denied"),
        ("", "/bad/bare", StartFailure::CommandNotExecutable, "exec format error"),
        ("", "/bad/empty", StartFailure::CommandNotExecutable, "exec format error"),
        ("", "/bad", StartFailure::CommandNotExecutable, "directory"),
        ("nosuch", "true", StartFailure::Other(ErrorKind::Invalid), "nosuch"),
        ("app:nosuch", "true", StartFailure::Other(ErrorKind::Invalid), "nosuch"),
        ("last", "true", StartFailure::Other(ErrorKind::Invalid), "4294967295"),
    ] {
        let (found, message) = failure(user, command);
        assert_eq!(found, reason, "{user} {command}: {message}");
        assert!(message.contains(said) && message.lines().count() == 1, "{user} {command}: {message}");
    }
    guest.shutdown();
}

/// A `bellows run` whose program has printed that it is ready.
struct Run {
    monitor: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Run {
    fn start(arguments: &[&str], script: &str) -> Self {
        let mut command = bellows_run();
        command.arg("--memory=256M").args(arguments).arg(demo_image()).args(["/bin/sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut monitor = command.spawn().unwrap();
        let mut stdout = BufReader::new(monitor.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { monitor, stdout }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.monitor.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code, the rest of its output, and its own messages.
    fn finish(mut self) -> (Option<i32>, String, String) {
        let (mut output, mut words) = (String::new(), String::new());
        self.stdout.read_to_string(&mut output).unwrap();
        self.monitor.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        (self.monitor.wait().unwrap().code(), output, words)
    }
}

#[test]
fn signals_reach_the_program() {
    // The shell runs a trap only after its current command, so that is short.
    let script = |name: &str| format!("trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.1; done");
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP")] {
        let run = Run::start(&[], &script(name));
        run.signal(signal);
        assert_eq!(run.finish(), (Some(7), format!("got {name}\n"), String::new()));
    }
}

/// The first process of a container has only the handlers that it installs.
#[test]
fn a_program_that_does_not_listen_is_killed() {
    let run = Run::start(&["--stop-timeout=1"], "echo ready; while :; do sleep 0.1; done");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.finish(), (Some(137), String::new(), String::new()));
}

#[test]
fn a_second_interrupt_ends_the_run_at_once() {
    let run =
        Run::start(&["--stop-timeout=100000"], "trap 'echo got INT' INT; echo ready; while :; do sleep 0.1; done");
    run.signal(Signal::SIGINT);
    let mut line = String::new();
    let mut run = run;
    run.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "got INT\n");
    run.signal(Signal::SIGINT);
    let (code, _, words) = run.finish();
    assert_eq!(code, Some(130), "{words}");
}

#[test]
fn output_that_nobody_reads_ends_the_run() {
    let Run { mut monitor, stdout } = Run::start(&[], "echo ready; while :; do echo y; done");
    drop(stdout);
    let mut words = String::new();
    monitor.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(monitor.wait().unwrap().code(), Some(141), "{words}");
    assert!(!words.contains("panicked"), "{words}");
}

#[test]
fn words_to_nobody_are_no_reason_to_fail() {
    let mut command = bellows_run();
    command.args(["--json", "--memory=256M"]).arg(demo_image());
    command.args(["/bin/sh", "-c", "echo out; echo err >&2; echo more"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut monitor = command.spawn().unwrap();
    drop(monitor.stderr.take());
    let output = monitor.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["exit_code"]), (Some(0), &0.into()), "{report}");
}
