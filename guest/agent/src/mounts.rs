//! The guest's own mounts.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{AgentError, Result};
use crate::files;

/// One mount of the guest's own.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// Whether the agent can do without it.
    optional: bool,
}

const NO_SPECIALS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

const fn required(kind: &'static str, target: &'static str, flags: MsFlags, options: &'static str) -> Mount {
    Mount { kind, target, flags, options, optional: false }
}

const MOUNTS: &[Mount] = &[
    required("proc", "/proc", NO_SPECIALS, ""),
    required("sysfs", "/sys", NO_SPECIALS, ""),
    required("devtmpfs", "/dev", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0755"),
    required("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "newinstance,ptmxmode=0666,mode=0620"),
    required("tmpfs", "/dev/shm", NO_SPECIALS, "mode=1777"),
    required("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
    required("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    Mount { kind: "tracefs", target: "/sys/kernel/tracing", flags: NO_SPECIALS, options: "", optional: true },
];

/// Moves off the initial root: `pivot_root(2)`, which every container does, refuses to leave a root without a parent
/// mount. A bind mount of the root over itself has a parent, and copies nothing.
///
/// # Errors
/// [`AgentError::Path`].
pub fn leave_initial_root() -> Result<()> {
    const NEXT: &str = "/next-root";
    const NOTHING: Option<&str> = None;
    files::make_directory(NEXT)?;
    mount(Some("/"), NEXT, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(AgentError::path("bind / to", NEXT))?;
    std::env::set_current_dir(NEXT).map_err(AgentError::path("change to", NEXT))?;
    mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING).map_err(AgentError::path("move to / from", NEXT))?;
    std::os::unix::fs::chroot(".").map_err(AgentError::path("change root to", NEXT))?;
    std::env::set_current_dir("/").map_err(AgentError::path("change to", "/"))
}

/// Makes the mounts of every Linux system.
///
/// # Errors
/// [`AgentError::Path`] for the first mount that the agent cannot do without.
pub fn mount_all() -> Result<()> {
    for entry in MOUNTS {
        match mount_at(Some(entry.kind), entry.target, entry.kind, entry.flags, entry.options) {
            Err(error) if entry.optional => tracing::info!(%error, "an optional mount is missing"),
            result => result?,
        }
    }
    expedited(|| mount_cgroup2("/sys/fs/cgroup"))
}

/// Runs `step`, and has the kernel's grace periods, which it waits for, end as soon as all CPUs have been asked instead of some ticks
/// later. The kernel does that for itself until the first process starts.
fn expedited<T>(step: impl FnOnce() -> T) -> T {
    const SWITCH: &str = "/sys/kernel/rcu_expedited";
    // Whoever boots the kernel may want it for good.
    let was = files::read(SWITCH).unwrap_or_default();
    let set = |value| {
        if let Err(error) = files::write(SWITCH, value) {
            tracing::debug!(%error, "grace periods take their time");
        }
    };
    if was != "0" {
        return step();
    }
    set("1");
    let result = step();
    set("0");
    result
}

/// Mounts the unified cgroup hierarchy, with cheap moves between cgroups (`favordynmods`, Linux 6.0) if the kernel has them.
fn mount_cgroup2(target: &str) -> Result<()> {
    mount_at(Some("cgroup2"), target, "cgroup2", NO_SPECIALS, "favordynmods,nsdelegate")
        .or_else(|_| mount_at(Some("cgroup2"), target, "cgroup2", NO_SPECIALS, "nsdelegate"))
}

/// Creates `target` and mounts on it.
///
/// # Errors
/// [`AgentError::Path`] that names `target`.
pub fn mount_at(
    source: Option<&str>,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<()> {
    let target = target.as_ref();
    files::make_directory(target)?;
    mount(source, target, Some(kind), flags, Some(options)).map_err(AgentError::path("mount", target))
}

/// Unmounts `target`; succeeds if nothing is mounted there.
///
/// # Errors
/// [`AgentError::Path`], for example if it is still in use.
pub fn unmount(target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(AgentError::path("unmount", target)(error)),
    }
}
