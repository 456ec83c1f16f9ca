//! Instances: each a container with its own cgroup, root file system and partition.
//!
//! | stage | what it does |
//! |---|---|
//! | `start` | claims base memory, makes cgroup and root file system, launches the first process |
//! | `exec` | starts, signals and removes further processes |
//! | `wait` | waits for a process, destroys sockets after the last |
//! | `remove` | takes an instance apart |
//! | `freeze` | stops its processes, and has them go on |
//! | `zygote` | makes an instance one that others are forked from |
//!
//! The order of removal makes the partition cheap to give back: kill the cgroup, wait for its last process (which frees
//! anonymous memory), destroy the sockets that outlive it with their unsent data, unmount overlay and tmpfs (which frees
//! tmpfs memory) and its scratch disk, drop the page cache it brought in (which lies elsewhere if the node is private), remove the cgroup. Then
//! the partition holds no page that must be migrated.

mod exec;
mod freeze;
mod remove;
mod request;
mod start;
mod table;
mod wait;
mod zygote;

pub use exec::Program;
pub use freeze::Frozen;
pub use request::{InstanceNetwork, Request, Role};
pub use table::{FOLDER, Instances};

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bellows_protocol::values::{ImageId, InstanceId, ProcessId};

use self::freeze::Freezer;
use crate::base_memory::Claim;
use crate::cgroup::{Cgroup, Limits, OomLimit};
use crate::container::Process;
use crate::error::Result;
use crate::network::OwnNetwork;
use crate::processes::Others;
use crate::rootfs::RootFs;
use crate::scratch;
use crate::sockets::Sockets;
use crate::zygote::Zygote;

/// An instance that has been started.
#[derive(Debug)]
pub struct Instance {
    parts: Parts,
    init: Arc<Process>,
    others: Others,
    sockets: Sockets,
    freezer: Freezer,
    /// Other instances can be forked from it.
    zygote: Option<Zygote>,
    oom_killed: OnceLock<Option<OomLimit>>,
}

impl Instance {
    /// A process of it.
    ///
    /// # Errors
    /// [`AgentError::Unknown`](crate::error::AgentError::Unknown), [`AgentError::InUse`](crate::error::AgentError::InUse).
    pub fn process(&self, id: &ProcessId) -> Result<Arc<Process>> {
        if *id == ProcessId::init() { Ok(Arc::clone(&self.init)) } else { self.others.get(id) }
    }
}

/// The parts to remove.
#[derive(Debug)]
struct Parts {
    id: InstanceId,
    image: ImageId,
    /// The images of its volumes.
    volumes: Vec<ImageId>,
    limits: Limits,
    folder: PathBuf,
    cgroup: Option<Cgroup>,
    rootfs: RootFs,
    scratch: Option<scratch::Mount>,
    /// It shares the VM's network.
    shares_network: bool,
    own_network: Option<OwnNetwork>,
    /// Its part of base memory, until all of this is gone.
    claim: Claim,
}

#[cfg(test)]
mod instance_test;
