//! PID 1 of the lab. It makes the lab look like an ordinary host and runs the jobs that come over the virtio-serial port.
//!
//! PID 1 itself only reaps; a child of it serves, so that reaping orphans never takes a job's exit status away.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bellows_lab::mount::{mount, mount_root};
use bellows_lab::wire::{Frame, Job, Kind, MAX_PAYLOAD, PORT};
use bellows_lab::{COUNTED, KVM_GROUP, USER_HOME, USER_ID, USER_RUNTIME};

fn main() {
    let serving = std::env::args().nth(1).is_some_and(|argument| argument == "serve");
    let result = if serving { serve() } else { boot() };
    if let Err(error) = result {
        eprintln!("bellows-lab-init: {error}");
    }
    if !serving {
        // SAFETY: the call takes no pointers; unwritten data need not outlive the lab.
        unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    }
}

/// Sets the host up, starts the server and reaps until the server ends.
fn boot() -> io::Result<()> {
    mount_root()?;
    mount("proc", "/proc", "proc", "")?;
    mount("sysfs", "/sys", "sysfs", "")?;
    mount("devtmpfs", "/dev", "devtmpfs", "mode=0755")?;
    mount("devpts", "/dev/pts", "devpts", "ptmxmode=0666")?;
    mount("tmpfs", "/dev/shm", "tmpfs", "mode=1777")?;
    mount("tmpfs", "/tmp", "tmpfs", "mode=1777")?;
    mount("tmpfs", "/run", "tmpfs", "mode=0755")?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", "")?;
    mount("debugfs", "/sys/kernel/debug", "debugfs", "")?;
    mount("tracefs", "/sys/kernel/tracing", "tracefs", "")?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(link))?;
    }
    load_modules()?;
    match std::env::var_os(COUNTED) {
        // A waiting vCPU must not spend instructions: by default KVM polls for a while before it lets a processor wait.
        Some(_) => std::fs::write("/sys/module/kvm/parameters/halt_poll_ns", "0")?,
        None => mount_disk()?,
    }
    make_room_for_user()?;
    std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset +cpu +io +memory +pids")?;
    std::fs::write("/proc/sys/kernel/hostname", "lab")?;
    Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    raise_limits();

    let server = Command::new("/init").arg("serve").spawn()?;
    let server = server.id() as libc::pid_t;
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        if pid == server {
            return Ok(());
        }
        if pid < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return Err(io::Error::last_os_error());
        }
    }
}

fn load_modules() -> io::Result<()> {
    for path in std::fs::read_to_string("/modules/load")?.lines() {
        let file = File::open(path)?;
        // SAFETY: the descriptor is open and the parameter string is a literal with NUL.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        let error = io::Error::last_os_error();
        if result != 0 && error.raw_os_error() != Some(libc::EEXIST) {
            eprintln!("bellows-lab-init: {path}: {error}");
        }
    }
    Ok(())
}

fn mount_disk() -> io::Result<()> {
    let disk = Path::new("/dev/vda");
    let start = Instant::now();
    while !disk.exists() {
        if start.elapsed() > Duration::from_secs(30) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no disk after 30 s"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    mount("/dev/vda", bellows_lab::DISK, "ext4", "")
}

/// Gives the ordinary user what one has on a host with udev and systemd: devices, a home, a place for a session; and the disk.
fn make_room_for_user() -> io::Result<()> {
    for (device, mode) in [("kvm", 0o660), ("vhost-net", 0o660), ("vhost-vsock", 0o660), ("net/tun", 0o666)] {
        let device = Path::new("/dev").join(device);
        if device.exists() {
            chown(&device, None, Some(KVM_GROUP))?;
            std::fs::set_permissions(&device, PermissionsExt::from_mode(mode))?;
        }
    }
    for folder in [USER_HOME, USER_RUNTIME] {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700))?;
        chown(folder, Some(USER_ID), Some(USER_ID))?;
    }
    // Files in memory that are part of the root file system stay the superuser's.
    if std::env::var_os(COUNTED).is_none() {
        Command::new("chown").args(["-R", &format!("{USER_ID}:{USER_ID}"), bellows_lab::DISK]).status()?;
    }
    Ok(())
}

fn raise_limits() {
    const FILES: libc::rlim_t = 1 << 20;
    for (resource, value) in [(libc::RLIMIT_NOFILE, FILES), (libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY)] {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `limit` lives through the call. A limit that cannot be raised stays as it was.
        unsafe { libc::setrlimit(resource, &limit) };
    }
}

type Out = Arc<Mutex<File>>;
type Inputs = HashMap<u32, (Sender<Vec<u8>>, libc::pid_t)>;

/// Runs jobs until power-off.
fn serve() -> io::Result<()> {
    let path = find_port()?;
    let mut port = OpenOptions::new().read(true).write(true).open(&path)?;
    let out: Out = Arc::new(Mutex::new(port.try_clone()?));
    send(&out, &Frame::new(0, Kind::Ready, []))?;
    let mut inputs = Inputs::new();
    while let Some(frame) = Frame::read(&mut port)? {
        match frame.kind {
            Kind::Start => match start(&frame, &out) {
                Ok(input) => {
                    inputs.insert(frame.job, input);
                }
                Err(error) => {
                    send(&out, &Frame::new(frame.job, Kind::Stderr, format!("{error}\n")))?;
                    send(&out, &Frame::new(frame.job, Kind::Exit, 127_i32.to_le_bytes()))?;
                }
            },
            Kind::Stdin if frame.payload.is_empty() => {
                // Dropping the sender ends the thread that writes, and with it the pipe; the group is still needed.
                if let Some((input, _)) = inputs.get_mut(&frame.job) {
                    *input = mpsc::channel().0;
                }
            }
            Kind::Stdin => {
                if let Some((input, _)) = inputs.get(&frame.job) {
                    // The job may have closed its input.
                    let _ = input.send(frame.payload);
                }
            }
            Kind::Signal => {
                if let Some((_, group)) = inputs.get(&frame.job) {
                    // SAFETY: takes numbers only. The job leads its own process group.
                    unsafe { libc::kill(-group, frame.number()?) };
                }
            }
            Kind::PowerOff => return Ok(()),
            Kind::Ready | Kind::Stdout | Kind::Stderr | Kind::Exit => {}
        }
    }
    Ok(())
}

fn find_port() -> io::Result<PathBuf> {
    let class = Path::new("/sys/class/virtio-ports");
    let start = Instant::now();
    loop {
        for entry in std::fs::read_dir(class).into_iter().flatten() {
            let entry = entry?;
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port {PORT}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn send(out: &Out, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *out.lock().unwrap_or_else(PoisonError::into_inner))
}

fn start(frame: &Frame, out: &Out) -> io::Result<(Sender<Vec<u8>>, libc::pid_t)> {
    let job: Job = serde_json::from_slice(&frame.payload)?;
    let (program, arguments) =
        job.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("BELLOWS_IN_LAB", "1")
        .envs(&job.env)
        .current_dir(job.cwd.as_deref().unwrap_or("/"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let group = child.id() as libc::pid_t;

    let (input, chunks) = mpsc::channel::<Vec<u8>>();
    if let Some(mut stdin) = child.stdin.take() {
        thread::spawn(move || chunks.iter().try_for_each(|chunk| stdin.write_all(&chunk)));
    }
    let (drained, drain) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        copy(stdout, frame.job, Kind::Stdout, out, drained.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        copy(stderr, frame.job, Kind::Stderr, out, drained);
    }
    let (id, out) = (frame.job, Arc::clone(out));
    thread::spawn(move || {
        let code = exit_code(child);
        // A process that the job left behind may hold the pipes open for ever.
        let _ = drain.recv_timeout(Duration::from_secs(1));
        send(&out, &Frame::new(id, Kind::Exit, code.to_le_bytes()))
    });
    Ok((input, group))
}

/// Sends all output of `from`. Nothing is ever sent on `drained`; it closes when both pipes of the job have ended.
fn copy(mut from: impl Read + Send + 'static, job: u32, kind: Kind, out: &Out, drained: Sender<()>) {
    let out = Arc::clone(out);
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send(&out, &Frame::new(job, kind, &buffer[..length])).is_err() {
                break;
            }
        }
        drop(drained);
    });
}

fn exit_code(mut child: Child) -> i32 {
    match child.wait() {
        Ok(status) => status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
        Err(_) => -1,
    }
}
