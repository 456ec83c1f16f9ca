//! The jail's view of files: its root directory, the devices that a monitor opens, and how much memory the host has.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, chdir, fchdir, fchownat, pivot_root};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use super::error::{JailError, system};
use super::tree::Directory;
use super::undo::Made;

/// The devices of every jail, with their numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u64, u64); 3] = [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)];
/// The device of a jail that is asked for.
const VHOST_NET: (&str, u64, u64) = ("vhost-net", 10, 238);
/// A device that has a number only while it is there.
const USERFAULTFD: &str = "/dev/userfaultfd";
/// What a monitor asks before it takes memory. It says nothing of processes.
const MEMORY: &str = "/proc/meminfo";
/// The namespace that is left.
const NAMESPACE: &str = "/proc/self/ns/mnt";
const HERE: &str = ".";

/// Makes `root` the root of this process, and leaves all else behind. The process gets namespaces of its own for mounts and for
/// System V's objects. Whether the host's kernel may serve its network interfaces is `vhost_net`.
///
/// # Errors
/// The system refused.
pub(super) fn enter(
    root: &Directory,
    (uid, gid): (Uid, Gid),
    vhost_net: bool,
    made: &mut Made,
) -> Result<(), JailError> {
    let path = root.path();
    // A descriptor stays with the former namespace's mounts; the working directory comes along.
    fchdir(root).map_err(system("enter", path))?;
    made.left_mounts(fs::File::open(NAMESPACE).map_err(system("open", NAMESPACE))?);
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC).map_err(system("make namespaces for", path))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(system("keep mounts apart of", path))?;

    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let memory = open_tree(AT_FDCWD, MEMORY, clone);
    let tree = open_tree(AT_FDCWD, HERE, clone).map_err(system("mount", path))?;
    attach(&tree, AT_FDCWD, HERE).map_err(system("mount", path))?;
    fchdir(&tree).map_err(system("enter", path))?;

    let devices = small(0o755, |at| make_devices(at, uid, gid, vhost_net)).map_err(system("make devices in", path))?;
    attach(&devices, &open(&tree, "dev").map_err(system("find dev in", path))?, "")
        .map_err(system("mount dev in", path))?;
    if let Ok(memory) = memory {
        let files = small(0o555, |at| mknodat(at, "meminfo", SFlag::S_IFREG, Mode::from_bits_truncate(0o444), 0));
        let files = files.map_err(system("make proc in", path))?;
        attach(&files, &open(&tree, "proc").map_err(system("find proc in", path))?, "")
            .map_err(system("mount proc in", path))?;
        attach(&memory, &files, "meminfo").map_err(system("mount meminfo in", path))?;
    }

    // The former root lies on the new one then (pivot_root(2)).
    pivot_root(HERE, HERE).map_err(system("make a root of", path))?;
    umount2(HERE, MntFlags::MNT_DETACH).map_err(system("leave the former root for", path))?;
    chdir("/").map_err(system("enter", path))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, "/", none, flags, none).map_err(system("restrict", path))
}

/// A small file system of its own, which is nowhere yet, and whose directories are the superuser's.
fn small(mode: u32, furnish: impl FnOnce(&OwnedFd) -> nix::Result<()>) -> std::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in [("mode", format!("{mode:o}")), ("size", "64k".into()), ("nr_inodes", "32".into())] {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_create(&context)?;
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let made = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, restricted)?;
    furnish(&made)?;
    Ok(made)
}

fn make_devices(at: &OwnedFd, uid: Uid, gid: Gid, vhost_net: bool) -> nix::Result<()> {
    mkdirat(at, "net", Mode::from_bits_truncate(0o755))?;
    set_mode(at, "net", 0o755)?;
    for (name, major, minor) in DEVICES.into_iter().chain(vhost_net.then_some(VHOST_NET)) {
        make_device(at, name, makedev(major, minor), uid, gid)?;
    }
    match fs::metadata(USERFAULTFD) {
        Ok(found) if found.file_type().is_char_device() => make_device(at, "userfaultfd", found.rdev(), uid, gid),
        _ => Ok(()),
    }
}

fn make_device(at: &OwnedFd, name: &str, number: u64, uid: Uid, gid: Gid) -> nix::Result<()> {
    mknodat(at, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), number)?;
    fchownat(at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn set_mode(at: &OwnedFd, name: &str, mode: u32) -> nix::Result<()> {
    fchmodat(at, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

/// The directory `name`, which is no link.
fn open(at: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(at, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Mounts `tree` at `name` in `at`, or at `at` itself.
fn attach(tree: &OwnedFd, at: impl AsFd, name: &str) -> rustix::io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    flags.set(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH, name.is_empty());
    move_mount(tree, "", at, name, flags)
}
