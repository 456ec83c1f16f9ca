//! VMs in the background, and the commands that handle them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use nix::pty::{Winsize, openpty};

use crate::command::{bellows_run, image};
use crate::fixture::{PATIENCE, artefact};

/// A user's session, whose VMs end with it.
struct Session(tempfile::TempDir);

impl Session {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn output(&self, mut command: Command) -> Output {
        command.env("XDG_RUNTIME_DIR", self.path()).output().unwrap()
    }

    fn bellows(&self, words: &[&str]) -> Output {
        let mut command = Command::new(artefact("BELLOWS_BINARY"));
        command.args(words);
        self.output(command)
    }

    /// What a command prints that succeeds.
    fn said(&self, words: &[&str]) -> String {
        text(self.bellows(words))
    }

    /// Starts a VM in the background.
    fn run(&self, options: &[&str], line: &str) -> Output {
        let mut command = bellows_run();
        command.args(["--detach", "--memory=128M"]).args(options).arg(image()).args(["/bin/sh", "-c", line]);
        self.output(command)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for vm in self.0.path().join("bellows").read_dir().into_iter().flatten().flatten() {
            if std::thread::panicking() {
                eprintln!("{}", std::fs::read_to_string(vm.path().join("log")).unwrap_or_default());
            }
            self.bellows(&["rm", "--force", vm.file_name().to_str().unwrap()]);
        }
    }
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_vm_in_the_background_is_listed_talked_to_and_stopped() {
    let session = Session::new();
    let line = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 1; done";
    assert_eq!(text(session.run(&["--name", "web", "--env", "A=b"], line)), "web\n");
    let again = session.run(&["--name", "web"], "true");
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(125) && error.contains("a VM is called `web`"), "{error}");

    let listed = session.said(&["ps"]);
    let row = listed.lines().nth(1).unwrap();
    assert!(row.starts_with("web ") && row.contains("Running") && row.ends_with("128M"), "{listed}");
    let json: serde_json::Value = serde_json::from_str(session.said(&["ps", "--json"]).trim()).unwrap();
    assert_eq!((&json["vm"], &json["partition"]), (&"web".into(), &1.into()), "{json}");
    let done = session.bellows(&["exec", "web", "/bin/sh", "-c", "echo $A; echo no >&2; exit 3"]);
    assert_eq!((done.status.code(), &done.stdout[..], &done.stderr[..]), (Some(3), &b"b\n"[..], &b"no\n"[..]));
    assert_eq!(session.bellows(&["rm", "web"]).status.code(), Some(1), "it runs");

    // Output as it comes, until the end.
    let following = {
        let mut command = Command::new(artefact("BELLOWS_BINARY"));
        command.args(["logs", "--follow", "web"]).env("XDG_RUNTIME_DIR", session.path());
        std::thread::spawn(move || command.output().unwrap())
    };
    let begun = Instant::now();
    assert_eq!(session.said(&["stop", "web"]), "web\n");
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(text(following.join().unwrap()), "ready\nbye\n");
    assert_eq!(session.said(&["ps", "--all"]).lines().count(), 1);
    assert_eq!(session.path().join("bellows").read_dir().unwrap().count(), 0, "nothing stays");
    let gone = session.bellows(&["logs", "web"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no instance is called `web`"));
}

/// What a reader gives, until `end` is there.
fn text_until(source: &mut impl Read, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        assert!(source.read(&mut byte).is_ok_and(|count| count == 1), "{end:?} does not come: {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn a_further_command_has_streams_and_a_terminal() {
    let session = Session::new();
    text(session.run(&["--name", "web"], "while :; do sleep 1; done"));
    let exec = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).env("XDG_RUNTIME_DIR", session.path());
        command
    };
    let binary = artefact("BELLOWS_BINARY");
    let binary = binary.to_str().unwrap();

    // What it prints comes while its input goes on.
    let mut cat = exec(binary, &["exec", "-i", "web", "/bin/sh", "-c", "cat; echo end >&2; exit 3"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    for line in ["one\n", "two\n"] {
        stdin.write_all(line.as_bytes()).unwrap();
        assert_eq!(text_until(&mut stdout, "\n"), line);
    }
    drop(stdin);
    let output = cat.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(3), &b"end\n"[..]));

    // It ends with its client.
    let line = "echo $$ >/number; echo begun; exec sleep 1000";
    let mut left = exec(binary, &["exec", "web", "/bin/sh", "-c", line]).stdout(Stdio::piped()).spawn().unwrap();
    text_until(left.stdout.as_mut().unwrap(), "begun\n");
    left.kill().unwrap();
    left.wait().unwrap();
    session.said(&["exec", "web", "/bin/sh", "-c", "while kill -0 $(cat /number) 2>/dev/null; do sleep 0.1; done"]);

    // A terminal follows this one's size, and takes keys as they are.
    let size = Winsize { ws_row: 17, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let line = "tty; stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 9' INT; echo ready; \
        sleep 1000 & while :; do wait $!; done";
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut typed = exec("setsid", &["-c", binary, "exec", "-it", "web", "/bin/sh", "-c", line]);
    let mut typed = typed.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    let mut master = File::from(pty.master);
    assert_eq!(text_until(&mut master, "ready\r\n"), "/dev/pts/0\r\n17 91\r\nready\r\n");
    assert!(Command::new("stty").args(["rows", "50", "cols", "100"]).stdin(slave()).status().unwrap().success());
    assert_eq!(text_until(&mut master, "50 100\r\n"), "50 100\r\n");
    master.write_all(b"\x03").unwrap();
    assert_eq!(text_until(&mut master, "interrupted\r\n"), "^Cinterrupted\r\n");
    assert_eq!(typed.wait().unwrap().code(), Some(9));
    let modes = Command::new("stty").arg("-a").stdin(slave()).output().unwrap();
    assert!(text(modes).contains(" icanon"), "the terminal is as it was");
    let refused = session.bellows(&["exec", "-it", "web", "true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("needs a terminal on standard input"), "{refused:?}");
    assert_eq!(session.said(&["stop", "--time=0", "web"]), "web\n");
}

/// A partition that breathes while its instance runs, and a folder of the host in it.
#[test]
fn a_vm_in_the_background_finds_folders_and_its_partition_grows_and_shrinks() {
    let session = Session::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    std::fs::write(folder.path().join("below/name"), "from the host\n").unwrap();
    let volume = |path: &str, mode: &str| format!("{}:{path}{mode}", folder.path().display());
    for (mode, part) in [("", "`:ro` is missing"), (":rw", "read-only")] {
        let refused = session.run(&["-v", &volume("/data", mode)], "true");
        assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(part), "{refused:?}");
    }
    let line = "cat /new/data/below/name; { echo x >/new/data/x; } 2>/dev/null || echo refused; \
        echo ready; while :; do sleep 1; done";
    text(session.run(&["--name", "web", "-v", &volume("/new/data", ":ro"), "-v", &volume("/again", ":ro")], line));
    let log = {
        let mut command = Command::new(artefact("BELLOWS_BINARY"));
        command.args(["logs", "--follow", "web"]).env("XDG_RUNTIME_DIR", session.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let log: Vec<_> = lines.take_while(|line| line != "ready").collect();
        child.kill().unwrap();
        child.wait().unwrap();
        log
    };
    assert!(log.contains(&"from the host".into()) && log.contains(&"refused".into()), "{log:?}");
    assert_eq!(
        session.said(&["exec", "web", "cat", "/again/below/name"]),
        "from the host\n",
        "one layer in two places"
    );

    let listed = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(session.said(&[words, &["--json"]].concat()).lines().next().unwrap()).unwrap()
    };
    let partition = listed(&["partition", "ls", "web"]);
    assert_eq!((&partition["state"], &partition["instance"]), (&"Plugged".into(), &"web".into()), "{partition}");
    assert_eq!(partition["memory"]["plugged"], 128 << 20);
    let [used, held] = ["used_bytes", "resident_bytes"].map(|name| partition[name].as_u64().unwrap());
    assert!(used > 0 && (1..=128 << 20).contains(&held), "{partition}");

    assert_eq!(session.said(&["partition", "resize", "web", "64M"]), "partition 1 of web: 64M of 128M plugged\n");
    let shrunk = listed(&["partition", "ls"]);
    assert_eq!(shrunk["memory"]["unplugged"], 64 << 20, "{shrunk}");
    assert_eq!(session.said(&["partition", "plug", "web"]), "partition 1 of web: 128M of 128M plugged\n");
    for (words, part) in [
        (&["partition", "plug", "web", "64M"][..], "resize"),
        (&["partition", "resize", "web", "1G"], "128 MiB"),
        (&["partition", "unplug", "web"], "belongs to instance `web`"),
        (&["partition", "resize", "web", "64M", "--partition", "2"], "no partition 2"),
        (&["partition", "ls", "other"], "no VM is called `other`"),
    ] {
        let refused = session.bellows(words);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && error.contains(part), "{words:?}: {error}");
    }

    let table = session.said(&["top", "--once"]);
    let row: Vec<_> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["web", "Running", "128M"], "{table}");
    assert!(table.contains("VMs 1, instances 1"), "{table}");
    let seen = listed(&["top"]);
    assert_eq!((&seen["vm"], seen["layers"].as_array().unwrap().is_empty()), (&"web".into(), false), "{seen}");
    assert!(seen["layers"][0]["cached_bytes"].as_u64().is_some(), "{seen}");
}

#[test]
fn files_are_copied_into_an_instance_and_out_of_it() {
    let session = Session::new();
    text(session.run(&["--name", "web"], "while :; do sleep 1; done"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("tree")).unwrap();
    // More than all that lies in between holds.
    let large: Vec<u8> = (0..3 << 20).map(|number: u32| (number % 251) as u8).collect();
    std::fs::write(path("tree/large"), &large).unwrap();
    std::os::unix::fs::symlink("large", path("tree/link")).unwrap();

    session.said(&["cp", &path("tree"), "web:/srv/copy"]);
    session.said(&["cp", &path("tree"), "web:srv"]);
    let look = "cd /srv; ls copy tree; test -L copy/link && cat copy/link | wc -c; umask 0; cp copy/large set; chmod 6755 set; ln -s /etc out";
    let listed = session.said(&["exec", "web", "/bin/sh", "-c", look]);
    assert_eq!(
        listed.split_whitespace().collect::<Vec<_>>(),
        ["copy:", "large", "link", "tree:", "large", "link", &large.len().to_string()]
    );

    session.said(&["cp", "web:/srv/copy/.", &path("back")]);
    assert!(std::fs::read(path("back/large")).unwrap() == large);
    assert_eq!(std::fs::read_link(path("back/link")).unwrap(), Path::new("large"));
    session.said(&["cp", "web:/srv/set", &path("back/large")]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path("back/large")).unwrap());
    assert_eq!(mode & 0o7777, 0o755, "no set-id bits");
    let archive = session.bellows(&["cp", "web:/srv/tree", "-"]);
    assert!(archive.status.success() && archive.stdout.len() > large.len());
    let mut tar = Command::new("tar");
    let mut tar = tar.args(["-tf", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive.stdout).unwrap();
    let names = tar.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&names.stdout), "tree/\ntree/large\ntree/link\n");

    for (words, part) in [
        (["cp", "web:/nowhere", &path("x")], "/nowhere"),
        (["cp", &path("tree"), "web:/srv/set"], "is a file"),
        (["cp", &path("tree/large"), "web:/none/"], "no folder"),
        (["cp", "web:/srv", "web:/x"], "both sides"),
        (["cp", "other:/srv", &path("x")], "no instance is called `other`"),
    ] {
        let refused = session.bellows(&words);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && error.contains(part), "{words:?}: {error}");
    }
    assert!(!Path::new(&path("x")).exists());
}

#[test]
fn a_command_that_has_ended_is_kept_until_it_is_removed_unless_told_otherwise() {
    let session = Session::new();
    let name = text(session.run(&[], "echo out; exit 7"));
    let name = name.trim();
    assert_eq!(session.said(&["logs", "--follow", name]), "out\n");
    let begun = Instant::now();
    while !session.said(&["ps", "--all"]).contains("Exited (7)") {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(session.said(&["ps"]).lines().count(), 1, "it does not run");
    assert_eq!(session.said(&["rm", name]), format!("{name}\n"));
    assert_eq!(session.said(&["ps", "--all"]).lines().count(), 1);

    // A command that is not there: as in the foreground, and nothing stays.
    let mut command = bellows_run();
    command.args(["--detach", "--memory=128M"]).arg(image()).arg("/nowhere");
    let wrong = session.output(command);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("/nowhere"));
    assert_eq!(session.said(&["ps", "--all"]).lines().count(), 1);

    text(session.run(&["--rm", "--name", "brief"], "exit 0"));
    let begun = Instant::now();
    while session.said(&["ps", "--all"]).contains("brief") {
        assert!(begun.elapsed() < PATIENCE, "it ends with its command");
    }
}

/// It keeps the files of its VM, and its filters.
#[test]
fn a_vm_in_the_background_is_confined() {
    let session = Session::new();
    text(session.run(&["--name", "alone"], "sleep 1000"));
    // A host that lacks something that VMs do without is fine.
    let report: serde_json::Value = serde_json::from_str(&session.said(&["doctor", "--json"])).unwrap();
    let monitors = report["monitors"].as_array().unwrap();
    let monitor = monitors.iter().find(|monitor| monitor["id"] == "alone").unwrap_or_else(|| panic!("{report:#}"));
    let has_landlock =
        report["findings"].as_array().unwrap().iter().any(|f| f["name"] == "Landlock" && f["state"] == "ok");
    for (name, expected) in [("seccomp", true), ("no_new_privileges", true), ("landlock", has_landlock)] {
        assert_eq!(monitor[name], expected, "{name}: {monitor}");
    }
    assert_eq!(monitor["own_namespaces"], serde_json::json!([]));
    if !has_landlock {
        return;
    }
    // A drive of its socket's owner, which the VM's configuration does not name.
    let other = session.path().join("other");
    std::fs::write(&other, [0; 512]).unwrap();
    let socket = session.path().join("bellows/alone/api.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    let body = serde_json::json!({ "drive_id": "other", "is_root_device": false, "path_on_host": other }).to_string();
    let head = "PUT /drives/other HTTP/1.1\r\nHost: l\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("ermission denied"), "{answer}");
}
