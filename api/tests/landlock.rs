//! Landlock, where the kernel has it. A process cannot take a restriction off, so each test runs in one of its own: this program again,
//! in the place of a monitor that is taken over.

#![allow(clippy::unwrap_used)]

mod client;

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, thread};

use bellows::landlock::{Allowed, is_available, restrict};
use bellows_block::Store;
use bellows_vmm::{ByteSize, DriveConfig, VmConfig};
use client::Api;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::kill;
use nix::unistd::{getpid, getppid, truncate};
use serde_json::{Value, json};

/// Whether this kernel restricts processes. Where it does not, there is nothing to test.
fn may_restrict() -> bool {
    let may = is_available();
    if !may {
        eprintln!("the kernel has no Landlock: nothing is restricted");
    }
    may
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Folders for a monitor, and for the rest of the host.
struct Host {
    monitors: tempfile::TempDir,
    others: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { monitors: tempfile::tempdir().unwrap(), others: tempfile::tempdir().unwrap() };
        for name in ["kernel", "disk", "read-only"] {
            fs::write(host.own(name), name).unwrap();
        }
        for name in ["rw", "sockets"] {
            fs::create_dir(host.own(name)).unwrap();
        }
        fs::write(host.other("secret"), "secret").unwrap();
        symlink(host.other("secret"), host.own("rw/link")).unwrap();
        Store::open(host.own("store")).unwrap();
        host
    }

    fn own(&self, name: &str) -> PathBuf {
        self.monitors.path().join(name)
    }

    fn other(&self, name: &str) -> PathBuf {
        self.others.path().join(name)
    }

    /// Runs a test in the place of a monitor.
    fn child(&self, test: &str, targets: &Value) -> Output {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("OWN", self.monitors.path()).env("OTHER", self.others.path());
        command.env("TARGETS", targets.to_string()).output().unwrap()
    }
}

#[test]
fn a_monitor_that_is_taken_over_reaches_nothing_else() {
    if !may_restrict() {
        return;
    }
    let host = Host::new();
    let name = format!("bellows-landlock-{}", getpid());
    let _hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = json!({ "abstract": name, "port": tcp.local_addr().unwrap().port() });
    let output = host.child("inside", &targets);
    let said = text(&output);
    assert!(output.status.success() && said.contains("tried everything"), "{said}");
    let reached: Vec<_> = said.lines().filter(|line| line.contains("REACHED")).collect();
    assert!(reached.is_empty(), "{said}");
    assert_eq!(fs::read_to_string(host.other("secret")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(host.own("read-only")).unwrap(), "read-only");
    assert_eq!(fs::read_to_string(host.own("disk")).unwrap(), "written");
    assert_eq!(fs::read_dir(host.others.path()).unwrap().count(), 1);
}

/// Runs in the place of a monitor. Each attempt that succeeds is a line with `REACHED`.
#[test]
#[ignore = "a restricted process"]
fn inside() {
    let targets: Value = serde_json::from_str(&env::var("TARGETS").unwrap()).unwrap();
    let [own, other] = ["OWN", "OTHER"].map(|name| PathBuf::from(env::var_os(name).unwrap()));
    let open_before = File::open(other.join("secret")).unwrap();
    let mut allowed = Allowed::new();
    let mut config = VmConfig::new(own.join("kernel"), ByteSize::mib(128));
    config.drives = vec![DriveConfig::new(own.join("disk"), false), DriveConfig::new(own.join("read-only"), true)];
    allowed.vm(&config).unwrap();
    let store = Store::open(own.join("store")).unwrap();
    allowed.store(&store).unwrap();
    allowed.rule(&format!("path={},access=rw", own.join("rw").display()).parse().unwrap());
    allowed.socket(&own.join("sockets/socket"));
    restrict(&allowed).unwrap();
    // A thread that comes later has no more.
    thread::scope(|scope| scope.spawn(|| attempt(&own, &other, &targets)).join()).unwrap();

    // What a monitor does late.
    for name in ["kernel", "read-only", "store/format"] {
        File::open(own.join(name)).unwrap();
    }
    fs::write(own.join("disk"), "written").unwrap();
    fs::create_dir(own.join("rw/folder")).unwrap();
    fs::write(own.join("rw/folder/file"), "file").unwrap();
    fs::rename(own.join("rw/folder/file"), own.join("rw/file")).unwrap();
    fs::remove_dir(own.join("rw/folder")).unwrap();
    drop(UnixListener::bind(own.join("sockets/socket")).unwrap());
    fs::remove_file(own.join("sockets/socket")).unwrap();
    fs::write(own.join("store/tmp/new"), "new").unwrap();
    fs::rename(own.join("store/tmp/new"), own.join("store/profiles/new")).unwrap();
    for path in ["/proc/meminfo", "/proc/self/status", "/proc/self/pagemap", "/dev/urandom"] {
        File::open(path).unwrap();
    }
    let mut secret = String::new();
    (&open_before).read_to_string(&mut secret).unwrap();
    assert_eq!(secret, "secret", "a descriptor that is open stays");
    println!("tried everything");
}

fn attempt(own: &Path, other: &Path, targets: &Value) {
    let reached = |what: &str, is_reached: bool| println!("{what}: {}", if is_reached { "REACHED" } else { "denied" });
    for path in [&*other.join("secret"), &own.join("rw/link"), Path::new("/etc/passwd"), &env::current_exe().unwrap()] {
        reached(&format!("read {}", path.display()), File::open(path).is_ok());
    }
    for path in [other, Path::new("/"), Path::new("/etc"), own] {
        reached(&format!("list {}", path.display()), fs::read_dir(path).is_ok());
    }
    for path in [
        own.join("read-only"),
        own.join("kernel"),
        other.join("secret"),
        own.join("store/format"),
        "/proc/self/mem".into(),
    ] {
        let what = path.display();
        reached(&format!("write {what}"), File::options().write(true).open(&path).is_ok());
        reached(&format!("truncate {what}"), path.starts_with(own) && truncate(&path, 0).is_ok());
    }
    reached("make a file", File::create(other.join("new")).is_ok() || File::create(own.join("new")).is_ok());
    reached("make a folder", fs::create_dir(other.join("folder")).is_ok());
    reached("remove", fs::remove_file(other.join("secret")).is_ok());
    reached("move in", fs::rename(other.join("secret"), own.join("rw/secret")).is_ok());
    reached("link", fs::hard_link(other.join("secret"), own.join("rw/secret")).is_ok());
    reached("remove of the store", fs::remove_file(own.join("store/format")).is_ok());
    for program in ["/bin/sh", "/usr/bin/env"] {
        reached(program, Command::new(program).arg("-c").stdin(Stdio::null()).status().is_ok());
    }
    // Not even what may be written.
    let own_program = own.join("rw/program");
    fs::write(&own_program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&own_program, PermissionsExt::from_mode(0o755)).unwrap();
    reached("a program of its own", Command::new(&own_program).status().is_ok());
    let port: u16 = targets["port"].as_u64().unwrap().try_into().unwrap();
    // From Linux 6.7 on.
    reached("TCP", TcpStream::connect(("127.0.0.1", port)).is_ok());
    reached("a port", TcpListener::bind("127.0.0.1:0").is_ok());
    reached("ptrace", ptrace::attach(getppid()).is_ok());
    reached("memory of others", File::open(format!("/proc/{}/mem", getppid())).is_ok());
    // From Linux 6.12 on.
    let address = SocketAddr::from_abstract_name(targets["abstract"].as_str().unwrap()).unwrap();
    reached("an abstract socket", UnixStream::connect_addr(&address).is_ok());
    reached("a signal", kill(getppid(), None).is_ok());
}

#[test]
fn requests_reach_the_files_of_rules_alone() {
    if !may_restrict() {
        return;
    }
    let host = Host::new();
    let rules = [("disk", "rw"), ("kernel", "r")]
        .map(|(name, access)| format!("path={},access={access}", host.own(name).display()));
    let store = host.own("store").display().to_string();
    let metrics = host.other("metrics").display().to_string();
    let options =
        ["api", "--store", &store, "--metrics-path", &metrics, "--landlock", "--landlock-rules", &rules[0], &rules[1]];
    let mut api = Api::start(Path::new(env!("CARGO_BIN_EXE_bellows")), &options);
    let drive = |path: PathBuf| json!({ "drive_id": "a", "is_root_device": false, "path_on_host": path });
    api.put("/drives/a", drive(host.own("disk")));
    api.put("/boot-source", json!({ "kernel_image_path": host.own("kernel") }));
    for path in [host.other("secret"), host.own("read-only"), host.own("kernel")] {
        let refused = api.refused("PUT", "/drives/a", &drive(path).to_string());
        assert!(refused.contains("ermission denied"), "{refused}");
    }
    // All threads have what the first one has.
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", api.process())).unwrap();
    let threads: Vec<_> = threads.map(|thread| status(thread.unwrap())).collect();
    assert!(threads.len() > 1 && threads.iter().all(|status| status.contains("NoNewPrivs:\t1")), "{threads:?}");
    let before = api.files();
    assert_eq!(api.end_by_signal(libc::SIGTERM), Some(128 + libc::SIGTERM));
    assert_eq!((before, api.files()), (vec!["api.sock".into(), "stderr".into()], vec!["stderr".to_owned()]));
}

#[test]
fn a_rule_without_the_restriction_is_refused() {
    let command = |options: &[&str]| Command::new(env!("CARGO_BIN_EXE_bellows")).args(options).output().unwrap();
    let output = command(&["api", "--landlock-rules", "path=/,access=r"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let output = command(&["api", "--landlock", "--landlock-rules", "path=/,access=x"]);
    assert!(output.status.code() == Some(2) && text(&output).contains("expected r, w or rw"), "{}", text(&output));
}
