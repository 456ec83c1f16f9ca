//! What was made for a jail, so that a failure leaves nothing.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What was made, in order. Dropping it removes all, the last first, unless it is [kept](Made::keep).
#[derive(Debug, Default)]
pub(super) struct Made(Vec<Thing>);

#[derive(Debug)]
enum Thing {
    Directory(OwnedFd, String),
    File(OwnedFd, String),
    /// The process has left this mount namespace.
    Mounts(File),
    /// The process has left the control group whose `cgroup.procs` this is.
    Left(File),
}

impl Made {
    /// A directory of this name, in the one that is given.
    pub(super) fn directory(&mut self, parent: OwnedFd, name: &str) {
        self.0.push(Thing::Directory(parent, name.to_owned()));
    }

    /// A file of this name, in the directory that is given.
    pub(super) fn file(&mut self, parent: OwnedFd, name: &str) {
        self.0.push(Thing::File(parent, name.to_owned()));
    }

    /// The process has left a control group, and goes back there: a group with a process cannot be removed.
    pub(super) fn left(&mut self, processes: File) {
        self.0.push(Thing::Left(processes));
    }

    /// The process has left a mount namespace, and goes back there: in its own one, what it has mounted on cannot be removed.
    pub(super) fn left_mounts(&mut self, namespace: File) {
        self.0.push(Thing::Mounts(namespace));
    }

    /// All stays.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        while let Some(thing) = self.0.pop() {
            // What is not ours any more, or not empty, stays.
            let _ = match thing {
                Thing::Directory(parent, name) => {
                    unlinkat(parent, name.as_str(), UnlinkatFlags::RemoveDir).map_err(Into::into)
                }
                Thing::File(parent, name) => {
                    unlinkat(parent, name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(Into::into)
                }
                Thing::Mounts(namespace) => setns(namespace, CloneFlags::CLONE_NEWNS).map_err(Into::into),
                Thing::Left(mut processes) => processes.write_all(b"0"),
            };
        }
    }
}
