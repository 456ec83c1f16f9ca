//! What containers are made of, and what processes are started in.

use std::os::fd::BorrowedFd;
use std::path::Path;

use bellows_protocol::values::VolumePath;

use super::Process;
use crate::placement::Placement;
use crate::tmpfs::Capacities;

/// The network namespace of a container.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    /// A new one, with nothing but a loopback.
    Unconnected,
    /// This one, which others have as well.
    Shared(BorrowedFd<'a>),
    /// This one, which has been made for it.
    Own(BorrowedFd<'a>),
}

impl<'a> Network<'a> {
    /// One that exists.
    pub(super) fn existing(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Unconnected => None,
            Self::Shared(namespace) | Self::Own(namespace) => Some(namespace),
        }
    }
}

/// A file system that is mounted in a container's root file system.
#[derive(Debug, Clone, Copy)]
pub struct Mounted<'a> {
    /// Where the agent has it mounted.
    pub source: &'a Path,
    /// Its place in the container.
    pub place: &'a VolumePath,
    /// The container can write to it.
    pub writable: bool,
}

/// What a container is made of.
#[derive(Debug)]
pub struct Site<'a> {
    /// Its host name.
    pub hostname: &'a str,
    /// Its root file system.
    pub root: &'a Path,
    /// The cgroup that it sees as the root, with its limits set.
    pub cgroup: &'a Path,
    /// The source of its memory.
    pub placement: Placement,
    /// Capacities of its file systems.
    pub capacities: Capacities,
    /// Its network namespace.
    pub network: Network<'a>,
    /// What is mounted in its root file system, in this order.
    pub volumes: Vec<Mounted<'a>>,
}

/// The container that another process is started in.
#[derive(Debug)]
pub struct Joining<'a> {
    /// Its host name.
    pub hostname: &'a str,
    /// Its cgroup.
    pub cgroup: &'a Path,
    /// The source of its memory.
    pub placement: Placement,
    /// Its first process.
    pub init: &'a Process,
    /// Its network namespace is not its own.
    pub shares_network: bool,
}
