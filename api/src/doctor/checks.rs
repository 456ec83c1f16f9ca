//! One function for each thing that VMs use. `root` is `/`, but for tests.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bellows_block::store::can_seal;

use super::finding::Finding;
use crate::error::CliError;

/// KVM is there, and runs our machine.
pub(super) fn kvm(root: &Path, vcpus: u16, address_bits: u8) -> Finding {
    if root.join("sys/module/kvm_pvm").exists() {
        let found = "the host is a VM whose KVM (kvm_pvm) runs only kernels that were written for it";
        return Finding::stopping("KVM", found, "a host with virtualisation by hardware, or nested virtualisation");
    }
    let kind = [("kvm_intel", "Intel"), ("kvm_amd", "AMD")];
    let kind = kind.iter().find(|(module, _)| root.join("sys/module").join(module).exists());
    let kind = kind.map_or("other", |(_, kind)| kind);
    Finding::ok("KVM", format!("{kind}, up to {vcpus} vCPUs, guest addresses of {address_bits} bits"))
}

/// KVM is not usable, for a reason that was found.
pub(super) fn no_kvm(root: &Path, reason: &str) -> Finding {
    let remedy = if root.join("dev/kvm").exists() {
        "join the group of /dev/kvm (`sudo usermod -aG kvm $USER`, then log in anew); a host that is a VM itself needs nested virtualisation"
    } else {
        "turn virtualisation on in the firmware, and load `kvm_intel` or `kvm_amd`; in a VM, have its host allow nested virtualisation"
    };
    Finding::stopping("KVM", reason, remedy)
}

/// Whether a memory slot goes without the page tables of the others (`KVM_X86_QUIRK_SLOT_ZAP_ALL`).
pub(super) fn slots(alone: bool) -> Finding {
    const NAME: &str = "KVM slots";
    if alone {
        Finding::ok(NAME, "an unplug leaves page tables of other memory alone")
    } else {
        Finding::lacks(
            NAME,
            "an unplug drops the page tables of the whole VM, which are built anew",
            "Linux 6.12 or later on the host",
        )
    }
}

/// What guests boot from.
pub(super) fn guest(files: Result<(PathBuf, PathBuf), CliError>) -> Finding {
    match files {
        Ok((kernel, initramfs)) => Finding::ok("guest", format!("{} and {}", kernel.display(), initramfs.display())),
        Err(error) => {
            Finding::lacks("guest", error.chain(), "the Debian package, or `cargo xtask guest` in a checkout")
        }
    }
}

/// Transparent huge pages: plug and discard take a fraction of the time with them.
pub(super) fn huge_pages(root: &Path) -> Finding {
    const NAME: &str = "huge pages";
    const REMEDY: &str = "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`";
    let text = fs::read_to_string(root.join("sys/kernel/mm/transparent_hugepage/enabled"));
    match text.as_deref().map(chosen) {
        Ok(Some("never")) => Finding::lacks(NAME, "transparent huge pages are off", REMEDY),
        Ok(Some(value)) => Finding::ok(NAME, format!("transparent huge pages: {value}")),
        _ => Finding::lacks(
            NAME,
            "the kernel has no transparent huge pages",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// Where the memory of frozen instances goes.
pub(super) fn swap(root: &Path) -> Finding {
    const NAME: &str = "swap";
    let text = fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    let areas: Vec<_> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    match areas.first() {
        Some(_) => Finding::ok(NAME, areas.join(", ")),
        None => Finding::lacks(
            NAME,
            "none: a frozen instance gives back what is free in it, and keeps the rest",
            "zram (`sudo apt install zram-tools`), or a swap disk that is encrypted",
        ),
    }
}

/// Control groups of version 2, in which this user may make some.
pub(super) fn control_groups(root: &Path) -> Finding {
    const NAME: &str = "control groups";
    let text = fs::read_to_string(root.join("proc/self/mounts")).unwrap_or_default();
    let point = text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| root.join(point.trim_start_matches('/')))
    });
    let Some(point) = point else {
        return Finding::lacks(
            NAME,
            "version 2 is not mounted: nothing bounds a monitor",
            "`systemd.unified_cgroup_hierarchy=1` on the kernel's command line",
        );
    };
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let group = point.join(own);
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        return Finding::lacks(
            NAME,
            format!("`{}` has no memory controller", group.display()),
            "a service or scope with `Delegate=yes` (systemd-run --user --scope -p Delegate=yes)",
        );
    }
    let writable = nix::unistd::access(&group, nix::unistd::AccessFlags::W_OK).is_ok();
    if writable {
        Finding::ok(NAME, format!("version 2, delegated at `{}`", group.display()))
    } else {
        Finding::lacks(
            NAME,
            format!("version 2; this user may make none in `{}`", group.display()),
            "a service or scope with `Delegate=yes` (systemd-run --user --scope -p Delegate=yes)",
        )
    }
}

/// TAPs.
pub(super) fn tun(root: &Path) -> Finding {
    const NAME: &str = "TAPs";
    match File::options().read(true).write(true).open(root.join("dev/net/tun")) {
        Ok(_) => Finding::ok(NAME, "/dev/net/tun can be opened"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::lacks(
            NAME,
            "no rights to /dev/net/tun",
            "`sudo chmod 666 /dev/net/tun`, as distributions have it; a TAP still needs an owner",
        ),
        Err(error) => Finding::lacks(NAME, format!("/dev/net/tun: {error}"), "`sudo modprobe tun`"),
    }
}

/// Network interfaces that the host's kernel serves.
pub(super) fn vhost_net(root: &Path) -> Finding {
    const NAME: &str = "vhost-net";
    match File::options().read(true).write(true).open(root.join("dev/vhost-net")) {
        Ok(_) => Finding::ok(NAME, "/dev/vhost-net can be opened"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::lacks(
            NAME,
            "no rights to /dev/vhost-net",
            "rights for the user or group of the monitor, where interfaces have `vhost`",
        ),
        Err(error) => Finding::lacks(NAME, format!("/dev/vhost-net: {error}"), "`sudo modprobe vhost_net`"),
    }
}

/// The network of VMs whose user has no rights.
pub(super) fn passt(path: Option<&OsStr>) -> Finding {
    let found =
        std::env::split_paths(path.unwrap_or_default()).map(|folder| folder.join("passt")).find(|file| file.is_file());
    match found {
        Some(file) => Finding::ok("passt", file.display().to_string()),
        None => Finding::lacks("passt", "not in $PATH: a network needs a TAP then", "`sudo apt install passt`"),
    }
}

/// Whether the file system of the store seals layers.
pub(super) fn verity(store: Option<&Path>) -> Finding {
    const NAME: &str = "fs-verity";
    const REMEDY: &str = "ext4 (`sudo tune2fs -O verity DEVICE`), btrfs or f2fs, and a kernel with CONFIG_FS_VERITY";
    let existing = store.and_then(|path| path.ancestors().find(|folder| folder.is_dir()));
    let Some(folder) = existing else {
        return Finding::lacks(NAME, "there is no place for a layer store", "--store, or set HOME");
    };
    match can_seal(folder) {
        Ok(true) => Finding::ok(NAME, format!("layers in `{}` are sealed", folder.display())),
        Ok(false) => Finding::lacks(
            NAME,
            format!(
                "the file system of `{}` does not seal layers: who may write there can change them",
                folder.display()
            ),
            REMEDY,
        ),
        Err(error) => {
            Finding::lacks(NAME, format!("`{}` cannot be tried: {error}", folder.display()), "rights to write there")
        }
    }
}

/// Filters of system calls.
pub(super) fn seccomp(root: &Path) -> Finding {
    let actions = fs::read_to_string(root.join("proc/sys/kernel/seccomp/actions_avail")).unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "trap") {
        Finding::ok("seccomp", "the monitor's system calls are filtered")
    } else {
        Finding::lacks(
            "seccomp",
            "the kernel has no filters: monitors need --no-seccomp",
            "a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

/// A security module with which a process restricts itself.
pub(super) fn landlock(is_available: bool, root: &Path) -> Finding {
    const NAME: &str = "Landlock";
    if is_available {
        return Finding::ok(NAME, "`bellows run` leaves itself the files of its VM alone");
    }
    let found =
        "the kernel does not have it, or does not use it: outside jails, monitors can open all that their user can";
    // Whether it is there and off, the kernel does not always show.
    let remedy = match fs::read_to_string(root.join("sys/kernel/security/lsm")) {
        Ok(modules) if !modules.contains("landlock") => "`landlock` in `lsm=` on the kernel's command line",
        _ => "Linux 5.19 or later with CONFIG_SECURITY_LANDLOCK, and `landlock` in `lsm=` on its command line",
    };
    Finding::lacks(NAME, found, remedy)
}

/// Who may make jails.
pub(super) fn jail(superuser: bool) -> Finding {
    if superuser {
        Finding::ok("jails", "`bellows jail` can be used")
    } else {
        Finding::lacks("jails", "this user makes none", "start `bellows jail` as the superuser")
    }
}

#[cfg(test)]
#[path = "checks_test.rs"]
mod tests;
