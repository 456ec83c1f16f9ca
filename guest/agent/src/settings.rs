//! The agent's settings of the kernel, each with its reason.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::AgentError;
use crate::{files, sys};

/// A kernel file, the value for it, and whether the guest needs it.
struct Setting {
    path: &'static str,
    value: &'static str,
    required: bool,
}

const fn optional(path: &'static str, value: &'static str) -> Setting {
    Setting { path, value, required: false }
}

const SETTINGS: &[Setting] = &[
    // A partition's memory must stay unpluggable: no unmovable page may ever get there.
    Setting { path: "/sys/devices/system/memory/auto_online_blocks", value: "online_movable", required: true },
    // The agent's messages are few; without this the kernel drops some of them.
    // (It takes the word only as a line.)
    optional("/proc/sys/kernel/printk_devkmsg", "on\n"),
    // Tasks have limits of their own; process numbers should not be another limit, nor be used again soon.
    optional("/proc/sys/kernel/pid_max", "4194304"),
    // Functions reserve much and touch little; their cgroup bounds the touched memory.
    optional("/proc/sys/vm/overcommit_memory", "1"),
    // Percentages would refer to all memory, partitions included, and change with every plug.
    optional("/proc/sys/vm/dirty_bytes", "33554432"),
    optional("/proc/sys/vm/dirty_background_bytes", "16777216"),
    // Limits for each user, or for the whole guest: instances would share them, and one could leave its neighbours nothing. The
    // resources behind them count for the memory of the instance's cgroup.
    optional("/proc/sys/fs/file-max", "9223372036854775807"),
    optional("/proc/sys/fs/aio-max-nr", "1048576"),
    optional("/proc/sys/fs/pipe-user-pages-soft", "0"),
    optional("/proc/sys/fs/inotify/max_user_instances", "2147483647"),
    optional("/proc/sys/fs/inotify/max_user_watches", "2147483647"),
    optional("/proc/sys/fs/epoll/max_user_watches", "2147483647"),
    // In pages: low, pressure, high.
    optional("/proc/sys/net/ipv4/tcp_mem", "1073741824 1073741824 1073741824"),
    optional("/proc/sys/net/ipv4/udp_mem", "1073741824 1073741824 1073741824"),
    optional("/proc/sys/net/ipv4/tcp_max_orphans", "2147483647"),
    // These move or merge pages across partitions.
    optional("/sys/kernel/mm/ksm/run", "0"),
    optional("/proc/sys/kernel/numa_balancing", "0"),
    optional("/proc/sys/vm/compaction_proactiveness", "0"),
    optional("/sys/module/zswap/parameters/enabled", "N"),
    optional("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0"),
    // Allocations must not reclaim on a node because it is near.
    optional("/proc/sys/vm/zone_reclaim_mode", "0"),
];

/// Writes all settings; those that the kernel lacks are skipped, those that it refuses are logged.
pub fn apply_all() {
    for setting in SETTINGS {
        match files::write(setting.path, setting.value) {
            Ok(()) => {}
            Err(AgentError::Path { source, .. }) if !setting.required && source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, value = setting.value, "cannot set a kernel parameter"),
        }
    }
}

/// Huge pages as the kernel has them in a guest of 512 MiB or more.
const HUGE_PAGES: [(&str, &str); 3] = [
    ("/sys/kernel/mm/transparent_hugepage/defrag", "madvise"),
    ("/sys/kernel/mm/transparent_hugepage/use_zero_page", "1"),
    (HUGE_PAGES_ENABLED, "always"),
];
const HUGE_PAGES_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Has instances in partitions get huge pages. The kernel leaves them off if the guest boots with less than 512 MiB, because what they
/// take more would hurt there; partitions come later. So base memory stays without: this process and its children have none, until a
/// child decides otherwise for itself (`PR_SET_THP_DISABLE`). If the command line says something of huge pages, nothing changes.
pub fn allow_huge_pages() {
    let read = |path| files::read(path).unwrap_or_default();
    if !are_left_off(&read(HUGE_PAGES_ENABLED), &read("/proc/cmdline")) {
        return;
    }
    if let Err(error) = prctl::set_thp_disable(true) {
        tracing::warn!(%error, "partitions are without huge pages");
        return;
    }
    for (path, value) in HUGE_PAGES {
        if let Err(error) = files::write(path, value) {
            tracing::warn!(%error, value, "cannot set a kernel parameter");
        }
    }
}

/// Whether huge pages are off, as `enabled` says, though nobody has asked for that on the `command_line`.
fn are_left_off(enabled: &str, command_line: &str) -> bool {
    let says = |word: &str| word.starts_with("transparent_hugepage=");
    enabled.contains("[never]") && !command_line.split_whitespace().any(says)
}

/// Soft and hard limit on open files; the hard one is the kernel's `fs.nr_open`. Some programs loop over all numbers up to the
/// soft limit.
const OPEN_FILES: (u64, u64) = (1 << 16, 1 << 20);

/// Limits of this process and all its children. The kernel's own on open files are 1,024 and 4,096. The kernel counts the
/// others per user over all instances; these resources also count for the memory of the instance's cgroup, or for its
/// `pids.max`.
const LIMITS: [(Resource, u64, u64); 4] = [
    (Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1),
    (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
    (Resource::RLIMIT_SIGPENDING, RLIM_INFINITY, RLIM_INFINITY),
    (Resource::RLIMIT_MSGQUEUE, RLIM_INFINITY, RLIM_INFINITY),
];

/// Raises limits; refusals of the kernel are logged.
pub fn raise_limits() {
    for (resource, soft, hard) in LIMITS {
        if let Err(error) = setrlimit(resource, soft, hard) {
            tracing::warn!(?resource, soft, hard, %error, "cannot raise a limit");
        }
    }
}

/// Brings up `lo` in this thread's network namespace; returns a socket of that.
///
/// # Errors
/// Those of `socket(2)` and `ioctl(2)`.
pub fn bring_up_loopback() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::bring_up(&socket, "lo")?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_somebody_has_switched_off_stay_off() {
        assert!(are_left_off("always madvise [never]", "console=ttyS0 quiet"));
        assert!(!are_left_off("always madvise [never]", "quiet transparent_hugepage=never panic=-1"));
        assert!(!are_left_off("[always] madvise never", ""));
        assert!(!are_left_off("always [madvise] never", ""));
        assert!(!are_left_off("", ""), "a kernel without them");
    }
}
