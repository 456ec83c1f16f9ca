//! Instances: each a container with its own cgroup, root file system and partition.
//!
//! | stage | what it does |
//! |---|---|
//! | `start` | claims base memory, makes cgroup and root file system, launches the first process |
//! | `exec` | starts, signals and removes further processes |
//! | `wait` | waits for a process, destroys sockets after the last |
//! | `remove` | takes an instance apart |
//!
//! What an instance consists of is taken apart in the order that makes its partition cheap to give back: kill the cgroup,
//! wait for its last process (anonymous memory is free then), destroy the sockets that outlive it with what they have to
//! send, unmount overlay and tmpfs (so is tmpfs memory), drop the page cache it brought in (it lies elsewhere where the node
//! is private), remove the cgroup. Nothing is left in the partition that would have to be migrated.

mod exec;
mod remove;
mod request;
mod start;
mod table;
mod wait;

pub use request::Request;
pub use table::{FOLDER, Instances};

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bellows_protocol::values::{ImageId, InstanceId, ProcessId};

use crate::base_memory::Claim;
use crate::cgroup::{Cgroup, Limits, OomLimit};
use crate::container::Process;
use crate::error::Result;
use crate::processes::Others;
use crate::rootfs::RootFs;
use crate::sockets::Sockets;

/// An instance that has been started.
#[derive(Debug)]
pub struct Instance {
    parts: Parts,
    init: Arc<Process>,
    others: Others,
    sockets: Sockets,
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

/// What there is to take apart.
#[derive(Debug)]
struct Parts {
    id: InstanceId,
    image: ImageId,
    limits: Limits,
    folder: PathBuf,
    cgroup: Option<Cgroup>,
    rootfs: RootFs,
    /// Its part of base memory, until all this is gone.
    claim: Claim,
}

#[cfg(test)]
mod instance_test;
