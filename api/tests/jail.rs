//! Jails, as the superuser makes them. In the place of a monitor they hold a program that tries to get out: this one.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, chroot, getegid, geteuid, getgroups, getpid, setgid, setgroups, setuid};
use serde_json::{Value, json};

/// How long a test waits for another process.
const PATIENCE: Duration = Duration::from_secs(60);
const UID: u32 = 1234;
const GID: u32 = 100;
/// The number of a descriptor that jails inherit and must not pass on.
const INHERITED: i32 = 777;

/// Whether this process may make jails. Where it may not, there is nothing to test.
fn may_jail() -> bool {
    let may = geteuid().is_root()
        && Command::new("unshare").args(["-m", "-n", "-p", "-f", "true"]).status().is_ok_and(|s| s.success());
    if !may {
        eprintln!("not the superuser, or without namespaces: no jail is made");
    }
    may
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn jail(base: &Path, program: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
    command.arg("jail").args(["--id", "vm-1", "--uid", "1234", "--gid", "100", "--chroot-base-dir"]).arg(base);
    command.arg("--exec-file").arg(program).env("SECRET", "of the host");
    command
}

fn root_of(base: &Path, program: &Path) -> PathBuf {
    base.join(program.file_name().unwrap()).join("vm-1/root")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A network namespace, at a path.
struct Network(PathBuf);

impl Network {
    fn new(directory: &Path) -> Self {
        let path = directory.join("network");
        File::create(&path).unwrap();
        let made = Command::new("unshare").arg(format!("--net={}", path.display())).arg("true").status().unwrap();
        assert!(made.success());
        Self(path)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What the program in the jail looks for, in a file of the jail.
fn targets(base: &Path) -> (UnixListener, UnixListener, TcpListener, Value) {
    let path = base.join("host.sock");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    let name = format!("bellows-jail-{}", getpid());
    let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = json!({
        "socket": path, "abstract": name, "port": tcp.local_addr().unwrap().port(), "pid": getpid().as_raw(),
        "files": ["/etc/passwd", "/proc/1/status", "/proc/self/status", "/sys/kernel/vmcoreinfo", "/dev/mem", "/dev/null", base.join("file")],
    });
    fs::write(base.join("file"), "of the host").unwrap();
    (listener, hidden, tcp, targets)
}

#[test]
fn a_program_that_is_taken_over_finds_no_way_out() {
    if !may_jail() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let network = Network::new(base.path());
    let (_socket, _hidden, _tcp, targets) = targets(base.path());
    let program = this_program();
    let root = root_of(base.path(), &program);
    // Whoever starts a jail puts the monitor's files there first.
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::write(root.join("tmp/targets"), targets.to_string()).unwrap();
    fs::set_permissions(root.join("tmp/targets"), PermissionsExt::from_mode(0o644)).unwrap();

    let open = File::open("/etc/passwd").unwrap();
    let mut command = jail(base.path(), &program);
    command.arg("--netns").arg(&network.0).args([
        "--new-pid-ns",
        "--",
        "inside",
        "--exact",
        "--ignored",
        "--nocapture",
    ]);
    // SAFETY: one system call, of numbers. The copy of the descriptor survives until the jail closes it.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, {
            let open = open.as_raw_fd();
            move || if libc::dup2(open, INHERITED) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    // The jailed process holds the output open until it ends.
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("tried everything"), "{said}");
    let reached: Vec<_> = said.lines().filter(|line| line.contains("REACHED")).collect();
    assert!(reached.is_empty(), "{said}");
    assert!(said.contains("test result: ok. 1 passed"), "{said}");

    let name = program.file_name().unwrap().to_string_lossy().into_owned();
    let status = fs::metadata(&root).unwrap();
    assert_eq!((status.uid(), status.gid(), status.mode() & 0o7777), (UID, GID, 0o700));
    let copy = fs::metadata(root.join(&name)).unwrap();
    assert_eq!((copy.uid(), copy.mode() & 0o7777), (0, 0o555));
    let pid: i32 = fs::read_to_string(root.join(format!("{name}.pid"))).unwrap().parse().unwrap();
    assert!(pid > 1, "the number that the host knows");
    assert_eq!(fs::read_dir(root.join("dev")).unwrap().count(), 0, "devices are in the jail's namespace alone");
}

/// Runs in a jail. Each attempt that succeeds is a line with `REACHED`.
#[test]
#[ignore = "the program in a jail"]
fn inside() {
    let targets: Value = serde_json::from_str(&fs::read_to_string("/tmp/targets").unwrap()).unwrap();
    let string = |name: &str| targets[name].as_str().unwrap().to_owned();
    let reached = |what: &str, is_reached: bool| println!("{what}: {}", if is_reached { "REACHED" } else { "denied" });

    // What a jail promises.
    let groups = getgroups().unwrap();
    assert_eq!((geteuid().as_raw(), getegid().as_raw(), groups.len()), (UID, GID, 0));
    assert_eq!(getpid().as_raw(), 1);
    assert!(prctl::get_no_new_privs().unwrap());
    assert_eq!(std::env::vars_os().count(), 0);
    let names = |path: &str| {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let root = names("/");
    assert!(
        root.iter()
            .all(|name| name.starts_with("jail-") || ["dev", "lib", "lib64", "proc", "run", "tmp"].contains(&&**name)),
        "{root:?}"
    );
    let mut devices = names("/dev");
    devices.retain(|name| name != "userfaultfd");
    assert_eq!(devices, ["kvm", "net", "urandom"]);
    assert_eq!((names("/dev/net"), names("/proc")), (vec!["tun".to_owned()], vec!["meminfo".to_owned()]));
    assert!(fs::metadata("/dev/kvm").unwrap().file_type().is_char_device());
    File::open("/dev/urandom").unwrap();
    assert!(fs::read_to_string("/proc/meminfo").unwrap().contains("MemAvailable"));
    fs::write("/run/own", "own").unwrap();

    for file in targets["files"].as_array().unwrap() {
        let file = file.as_str().unwrap();
        reached(file, File::open(file).is_ok());
        reached("up from the root", File::open(format!("/../../../../../..{file}")).is_ok());
    }
    symlink("/proc/1/root", "/tmp/link").unwrap();
    reached("a link out", fs::read_dir("/tmp/link").is_ok());
    // SAFETY: takes numbers only.
    reached("an inherited descriptor", unsafe { libc::fcntl(INHERITED, libc::F_GETFD) } >= 0);
    for (name, file) in [
        (
            "the program",
            std::env::current_exe()
                .unwrap_or(format!("/{}", root.iter().find(|name| name.starts_with("jail-")).unwrap()).into()),
        ),
        ("memory", "/proc/meminfo".into()),
    ] {
        reached(&format!("write to {name}"), File::options().write(true).open(&file).is_ok());
    }
    reached("a device of one's own", mknod("/tmp/mem", SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 1)).is_ok());
    reached("a file in /dev", File::create("/dev/own").is_ok());

    let host = Pid::from_raw(targets["pid"].as_i64().unwrap().try_into().unwrap());
    reached("ptrace", ptrace::attach(host).is_ok());
    reached("kill", kill(host, None).is_ok());
    reached("a socket", UnixStream::connect(string("socket")).is_ok());
    let address = SocketAddr::from_abstract_name(string("abstract")).unwrap();
    reached("an abstract socket", UnixStream::connect_addr(&address).is_ok());
    let port: u16 = targets["port"].as_u64().unwrap().try_into().unwrap();
    reached("TCP", TcpStream::connect(("127.0.0.1", port)).is_ok());

    let none = None::<&str>;
    reached("mount", mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), none).is_ok());
    reached("remount", mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, none).is_ok());
    reached("umount", nix::mount::umount("/dev").is_ok());
    reached("chroot", chroot("/tmp").is_ok());
    reached("a mount namespace", unshare(CloneFlags::CLONE_NEWNS).is_ok());
    reached(
        "another network",
        File::open("/proc/1/ns/net").is_ok_and(|network| setns(network, CloneFlags::CLONE_NEWNET).is_ok()),
    );
    for program in ["/bin/sh", "/usr/bin/env", "/sbin/init"] {
        reached(program, Command::new(program).arg("-c").spawn().is_ok());
    }
    reached("setuid", setuid(0.into()).is_ok());
    reached("setgid", setgid(0.into()).is_ok());
    reached("setgroups", setgroups(&[0.into()]).is_ok());
    println!("tried everything");
}

/// Everything that is below `base`, with what links point to.
fn all(base: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![base.to_owned()];
    while let Some(path) = left.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn a_failure_leaves_nothing() {
    if !may_jail() {
        return;
    }
    let (base, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = all(base.path());
    // A program without a segment: the kernel refuses it only when all else is done.
    let empty = elsewhere.path().join("empty");
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(64, 0);
    (header[16], header[18], header[20], header[52], header[54]) = (2, 62, 1, 64, 56);
    fs::write(&empty, header).unwrap();
    fs::set_permissions(&empty, PermissionsExt::from_mode(0o755)).unwrap();
    let cases: [(&Path, &[&str], &str); 4] = [
        (&this_program(), &["--netns", "/nowhere"], "/nowhere"),
        (&this_program(), &["--netns", "/dev/null"], "join the network namespace"),
        (&this_program(), &["--cgroup-version", "2", "--cgroup", "nonsense.max=1"], "nonsense"),
        (&empty, &["--new-pid-ns"], "cannot become `/empty`"),
    ];
    for (program, options, part) in cases {
        let output = jail(base.path(), program).args(options).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(part), "{options:?}: {}", text(&output));
        assert_eq!(all(base.path()), before, "{options:?}");
    }
}

#[test]
fn links_in_the_way_are_not_followed() {
    if !may_jail() {
        return;
    }
    let (base, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = this_program();
    let root = root_of(base.path(), &program);
    for place in [
        root.parent().unwrap().parent().unwrap(),
        root.parent().unwrap(),
        &root,
        &root.join("dev"),
        &root.join("run"),
        &root.join("lib64"),
    ] {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(elsewhere.path(), place).unwrap();
        let before = all(base.path());
        let output = jail(base.path(), &program).output().unwrap();
        assert!(!output.status.success() && text(&output).contains("cannot open the directory"), "{}", text(&output));
        assert_eq!(all(base.path()), before, "{}", place.display());
        fs::remove_file(place).unwrap();
    }
    assert_eq!(all(elsewhere.path()).len(), 1, "nothing was made elsewhere");
    // Somebody else could exchange the root behind such a directory.
    fs::remove_dir_all(root.parent().unwrap()).unwrap();
    fs::set_permissions(root.parent().unwrap().parent().unwrap(), PermissionsExt::from_mode(0o777)).unwrap();
    let output = jail(base.path(), &program).output().unwrap();
    assert!(text(&output).contains("nobody else to write"), "{}", text(&output));
}

/// With the jailer's command line, and in the background.
#[test]
fn a_jailer_leaves_its_monitor_in_the_background() {
    if !may_jail() {
        return;
    }
    let (base, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [jailer, monitor] = ["jailer", "firecracker"].map(|name| programs.path().join(name));
    symlink(env!("CARGO_BIN_EXE_bellows"), &jailer).unwrap();
    symlink(env!("CARGO_BIN_EXE_bellows"), &monitor).unwrap();
    let mut command = Command::new(&jailer);
    command
        .args(["--id", "vm-1", "--uid", "1234", "--gid", "100", "--daemonize", "--chroot-base-dir"])
        .arg(base.path());
    command.arg("--exec-file").arg(&monitor).args([
        "--resource-limit",
        "no-file=500",
        "--",
        "--api-sock",
        "/run/api.sock",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let root = root_of(base.path(), &monitor);
    let begun = Instant::now();
    let mut stream = loop {
        if let Ok(stream) = UnixStream::connect(root.join("run/api.sock")) {
            break stream;
        }
        assert!(begun.elapsed() < PATIENCE, "no socket: {:?}", all(base.path()));
        thread::sleep(Duration::from_millis(5));
    };
    stream.write_all(b"GET / HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""id":"vm-1""#), "{answer}");

    let pid: i32 = fs::read_to_string(root.join("firecracker.pid")).unwrap().parse().unwrap();
    let pid = Pid::from_raw(pid);
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let status = read("status");
    let has = |line: &str| status.lines().any(|found| found.split_whitespace().collect::<Vec<_>>().join(" ") == line);
    for line in [
        "Uid: 1234 1234 1234 1234",
        "Gid: 100 100 100 100",
        "NoNewPrivs: 1",
        "Umask: 0077",
        "CapEff: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapInh: 0000000000000000",
        "CapAmb: 0000000000000000",
    ] {
        assert!(has(line), "{line}: {status}");
    }
    assert!(!has(&format!("NSsid: {pid}")), "no leader of a session, so that no terminal comes: {status}");
    assert!(read("limits").lines().any(|line| line.starts_with("Max open files") && line.contains("500")));
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    for descriptor in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap(), Path::new("/dev/null"));
    }
    kill(pid, Signal::SIGTERM).unwrap();
    while root.join("run/api.sock").exists() {
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
}
