//! A container as its first process makes it: root file system, mounts, devices, what is hidden.
//!
//! It runs in the container's new namespaces. Once the root has changed, all paths are the image's own: no link of an image leads out
//! of it, and nobody else is in there yet.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use nix::unistd::{chdir, pivot_root, sethostname};

use super::plan::ContainerPlan;
use super::{Report, failed};
use crate::sys;

/// Where a container's root file system is mounted in the helper's own.
pub(super) const ROOT: &str = "/root";

const NOTHING: Option<&str> = None;
const NO_SPECIALS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Character devices of `/dev`, which everybody can read and write.
const DEVICES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Files and folders of the kernel that reveal, or do, too much.
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

/// Rights of users other than root in a network of their own: bind any port, and send echo requests.
const SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"), ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")];

/// Makes the container of this process, which has namespaces of its own, over the mount `root`.
pub(super) fn make(container: &ContainerPlan, root: BorrowedFd<'_>, volumes: &[BorrowedFd<'_>]) -> Result<(), Report> {
    sethostname(&container.hostname).map_err(failed("host name"))?;
    enter(root).map_err(failed("root file system"))?;
    mount_all(container)?;
    add_devices().map_err(failed("devices"))?;
    for (path, value) in SETTINGS {
        fs::write(path, value).map_err(failed(path))?;
    }
    for path in READ_ONLY {
        make_read_only(path).map_err(failed(path))?;
    }
    for path in MASKED {
        mask(path).map_err(failed(path))?;
    }
    if volumes.len() != container.volumes.len() {
        return Err(Report::Failed(format!("{} volumes came for {} places", volumes.len(), container.volumes.len())));
    }
    mount_volumes(container, volumes)
}

/// Mounts volumes, each where its path leads *within* the image. The image's links count, as in other container runtimes, but for one
/// that leads to the root, or to what was mounted above: over a part of `/proc` or `/sys` a volume could pass for the kernel.
fn mount_volumes(container: &ContainerPlan, volumes: &[BorrowedFd<'_>]) -> Result<(), Report> {
    // File systems of the image and of volumes.
    let mut allowed = vec![fs::metadata("/").map_err(failed("root file system"))?.dev()];
    let root = fs::metadata("/").map_err(failed("root file system"))?.ino();
    for (place, volume) in container.volumes.iter().zip(volumes) {
        let path = Path::new(&place.path);
        let failed = |error: io::Error| Report::Failed(format!("volume at {}: {error}", place.path));
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
        let found = fs::metadata(path).map_err(failed)?;
        let is_root = found.dev() == allowed[0] && found.ino() == root;
        if !allowed.contains(&found.dev()) || is_root {
            return Err(failed(io::Error::other(
                "a link of the image leads from there to the root, or to the kernel's files",
            )));
        }
        sys::attach_mount(*volume, path).map_err(failed)?;
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        if !place.writable {
            flags |= MsFlags::MS_RDONLY;
        }
        for flags in [flags | MsFlags::MS_NOATIME, MsFlags::MS_PRIVATE] {
            mount(NOTHING, path, NOTHING, flags, NOTHING).map_err(|error| failed(error.into()))?;
        }
        allowed.push(fs::metadata(path).map_err(failed)?.dev());
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace, and leaves nothing else in it.
fn enter(root: BorrowedFd<'_>) -> io::Result<()> {
    sys::attach_mount(root, Path::new(ROOT))?;
    // What is mounted below it from here on stays in this namespace.
    mount(NOTHING, ROOT, NOTHING, MsFlags::MS_PRIVATE, NOTHING)?;
    chdir(ROOT)?;
    // The old root is then mounted over the new one, and the current directory is in it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}

fn mount_all(container: &ContainerPlan) -> Result<(), Report> {
    let devices = format!("mode=755,{}", container.devices);
    let shared = format!("mode=1777,{}", container.shared);
    let terminals = "newinstance,ptmxmode=0666,mode=0620,max=1024";
    let mounts = [
        ("/proc", "proc", "proc", NO_SPECIALS, ""),
        ("/dev", "tmpfs", "tmpfs", NO_PROGRAMS | MsFlags::MS_STRICTATIME, &devices),
        ("/dev/pts", "devpts", "devpts", NO_PROGRAMS, terminals),
        ("/dev/shm", "tmpfs", "shm", NO_SPECIALS, &shared),
        ("/dev/mqueue", "mqueue", "mqueue", NO_SPECIALS, ""),
        ("/sys", "sysfs", "sysfs", NO_SPECIALS | MsFlags::MS_RDONLY, ""),
        ("/sys/fs/cgroup", "cgroup2", "cgroup", NO_SPECIALS | MsFlags::MS_RDONLY, ""),
    ];
    for (target, kind, source, flags, options) in mounts {
        make_mount_point(Path::new(target)).map_err(failed(target))?;
        mount(Some(source), target, Some(kind), flags, Some(options)).map_err(failed(target))?;
    }
    Ok(())
}

/// A folder of the image's, or a new one. A link would put the kernel's files where nobody looks for them.
fn make_mount_point(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::NotADirectory, "the image has a file or a link there: expected a folder"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new().mode(0o755).create(path),
        Err(error) => Err(error),
    }
}

fn add_devices() -> io::Result<()> {
    let before = umask(Mode::empty());
    let everybody = Mode::from_bits_truncate(0o666);
    for (path, major, minor) in DEVICES {
        mknod(path, SFlag::S_IFCHR, everybody, makedev(major, minor))?;
    }
    umask(before);
    for (target, path) in LINKS {
        symlink(target, path)?;
    }
    if Path::new("/proc/kcore").exists() {
        symlink("/proc/kcore", "/dev/kcore")?;
    }
    Ok(())
}

/// Where it exists.
fn make_read_only(path: &str) -> nix::Result<()> {
    match mount(Some(path), path, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result?,
    }
    let flags = NO_SPECIALS | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(NOTHING, path, NOTHING, flags, NOTHING)
}

/// Puts an empty folder over a folder, and `/dev/null` over a file, where it exists.
fn mask(path: &str) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, NOTHING)?,
        Ok(_) => mount(Some("/dev/null"), path, NOTHING, MsFlags::MS_BIND, NOTHING)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
