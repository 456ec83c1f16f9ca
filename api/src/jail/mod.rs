//! `bellows jail`: a monitor in a root directory of its own, with its own user and with nothing of the host but what it needs.
//!
//! Arguments become a `plan::Plan`, which is plain data. Then the directories are made (`tree`), the program is copied with its
//! libraries (`program`), and the process changes itself step by step (`cgroup`, `mounts`, `start`) until it executes the monitor.
//! All that is made on the way is remembered in `undo::Made`, and goes again if a later step fails.

mod cgroup;
mod error;
mod mounts;
mod options;
mod plan;
mod program;
mod start;
mod sys;
mod tree;
mod undo;

use std::fs::File;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getegid, geteuid};

pub use self::error::JailError;
use self::error::system;
pub use self::options::JailArgs;
pub(crate) use self::options::{Jailer, is_jailer};
use self::plan::Plan;
use self::program::Program;
use self::tree::Directory;
use self::undo::Made;

/// Directories of the jail that are the monitor's own, beside the root: for its sockets, and for its temporary files.
const OWN: [&str; 2] = ["run", "tmp"];
/// Directories that something is mounted on.
const MOUNT_POINTS: [&str; 2] = ["dev", "proc"];
const PUBLIC: u32 = 0o755;
const PRIVATE: u32 = 0o700;

/// Makes the jail and becomes the monitor in it. Returns only where the monitor is another process.
///
/// # Errors
/// See [`JailError`]. Then nothing of the jail is left.
pub(crate) fn run(args: &JailArgs) -> Result<u8, JailError> {
    let plan = Plan::new(args)?;
    if !geteuid().is_root() {
        return Err(JailError::NotRoot(geteuid().as_raw()));
    }
    // What is made here is nobody else's until it is given away.
    umask(Mode::from_bits_truncate(0o077));
    let program = Program::open(&plan.exec_file)?;
    let network = plan.network.as_ref().map(|path| File::open(path).map_err(system("open", path))).transpose()?;
    let null = plan.daemonize.then(start::open_null).transpose()?;

    let mut made = Made::default();
    let root = root(&plan, &mut made)?;
    let (uid, gid) = (plan.uid, plan.gid);
    for name in OWN {
        root.child(name, PRIVATE, &mut made)?.give(uid, gid, PRIVATE)?;
    }
    for name in MOUNT_POINTS {
        root.child(name, PUBLIC, &mut made)?.give(geteuid(), getegid(), PUBLIC)?;
    }
    program.copy_to(&root, &plan.name, &mut made)?;
    if let Some(group) = &plan.cgroup {
        cgroup::enter(group, &mut made)?;
    }
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET).map_err(system("join the network namespace", plan.network()))?;
    }
    mounts::enter(&root, (uid, gid), plan.vhost_net, &mut made)?;
    root.give(uid, gid, PRIVATE)?;
    start::start(&plan, &root, null, made)
}

/// The jail's root, `BASE/NAME/ID/root`. What is above it is the superuser's, so that nobody else can exchange it.
fn root(plan: &Plan, made: &mut Made) -> Result<Directory, JailError> {
    let mut directory = Directory::open(&plan.base)?;
    for name in [&*plan.name, &*plan.id] {
        directory = directory.child(name, PUBLIC, made)?;
        directory.expect_owner(&[geteuid()])?;
    }
    let root = directory.child("root", PRIVATE, made)?;
    // Whoever prepares files for the monitor may have made it, also as the monitor's user.
    root.expect_owner(&[geteuid(), plan.uid])?;
    Ok(root)
}
