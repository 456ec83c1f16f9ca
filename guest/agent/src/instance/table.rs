//! The table of all instances.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bellows_protocol::KILL_LIMIT;
use bellows_protocol::values::InstanceId;

use super::{Instance, Parts};
use crate::base_memory::BaseMemory;
use crate::cgroup::{Allocated, Hierarchy};
use crate::container::Launcher;
use crate::error::{AgentError, Result};
use crate::image::Images;
use crate::network::Network;
use crate::partition::MemoryInfo;
use crate::reaper::Reaper;
use crate::scratch::Users;
use crate::sync::Mutex;

/// Folder of the instances' mounts.
pub const FOLDER: &str = "/run/i";
/// All instances.
#[derive(Debug)]
pub struct Instances {
    table: Mutex<HashMap<InstanceId, Slot>>,
    pub(super) images: Arc<Images>,
    pub(super) hierarchy: Hierarchy,
    pub(super) launcher: Launcher,
    pub(super) network: Arc<Network>,
    pub(super) memory: MemoryInfo,
    pub(super) base: Arc<BaseMemory>,
    pub(super) reaper: Arc<Reaper>,
    /// The disks that instances have.
    pub scratch_users: Users,
    pub(super) folder: PathBuf,
    pub(super) kill_limit: Duration,
}

#[derive(Debug)]
pub(super) enum Slot {
    /// Being started or removed.
    Busy,
    Started(Arc<Instance>),
    /// The remains of a start that failed.
    Remains(Box<Parts>),
}

impl Instances {
    /// No instances yet.
    pub fn new(
        images: Arc<Images>,
        hierarchy: Hierarchy,
        launcher: Launcher,
        network: Arc<Network>,
        memory: MemoryInfo,
        base: Arc<BaseMemory>,
        reaper: Arc<Reaper>,
    ) -> Self {
        let (folder, kill_limit) = (FOLDER.into(), KILL_LIMIT);
        let (table, scratch_users) = (Mutex::default(), Users::default());
        Self { table, images, hierarchy, launcher, network, memory, base, reaper, scratch_users, folder, kill_limit }
    }

    /// Does ahead of time what the first start would have to do. If it fails, so does that start.
    pub fn prepare(&self) {
        if let Err(error) = self.launcher.prepare() {
            tracing::warn!(%error, "the helper does not start");
        }
    }

    /// Divides base memory, given the number of partitions and the sum of their windows; returns the bytes for all
    /// instances.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn divide_base(&self, partitions: u32, partition_bytes: u64) -> Result<u64> {
        let all = self.base.divide(partitions, partition_bytes);
        // With a stock kernel the memory of partitions counts, too.
        let only_base = partitions == 0 || self.memory.has_private_nodes();
        self.hierarchy.limit_memory(only_base.then(|| self.base.limit()))?;
        Ok(all)
    }

    /// An instance that has been started.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`].
    pub fn get(&self, id: &InstanceId) -> Result<Arc<Instance>> {
        match self.table.lock().get(id) {
            Some(Slot::Started(instance)) => Ok(Arc::clone(instance)),
            Some(Slot::Busy) => Err(busy(id)),
            Some(Slot::Remains(_)) | None => Err(unknown(id)),
        }
    }

    /// Reserves the place of an instance to start.
    pub(super) fn begin_start(&self, id: &InstanceId) -> Result<()> {
        let mut table = self.table.lock();
        if table.contains_key(id) {
            return Err(AgentError::Exists { kind: "instance", name: id.to_string() });
        }
        table.insert(id.clone(), Slot::Busy);
        Ok(())
    }

    /// Takes an instance to remove out of its place, which stays busy.
    pub(super) fn begin_removal(&self, id: &InstanceId) -> Result<Slot> {
        match self.table.lock().get_mut(id) {
            Some(Slot::Busy) => Err(busy(id)),
            Some(slot) => Ok(std::mem::replace(slot, Slot::Busy)),
            None => Err(AgentError::Gone { kind: "instance", name: id.to_string() }),
        }
    }

    /// Ends a start or removal: `slot` is the new state of the instance.
    pub(super) fn finish(&self, id: &InstanceId, slot: Option<Slot>) {
        let mut table = self.table.lock();
        match slot {
            Some(slot) => table.insert(id.clone(), slot),
            None => table.remove(id),
        };
    }

    /// What each instance has allocated. One whose start or removal has only half of its cgroups has nothing.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn measure(&self) -> Result<Vec<(InstanceId, Allocated)>> {
        let measured = |id: InstanceId| {
            let allocated = self.hierarchy.cgroup(&id).allocated();
            allocated.map(|allocated| allocated.map(|allocated| (id, allocated))).transpose()
        };
        self.ids().into_iter().filter_map(measured).collect()
    }

    /// The names of all instances.
    pub(super) fn ids(&self) -> Vec<InstanceId> {
        self.table.lock().keys().cloned().collect()
    }
}

fn busy(id: &InstanceId) -> AgentError {
    AgentError::InUse { what: format!("instance {id}"), by: "its start or removal".into() }
}

fn unknown(id: &InstanceId) -> AgentError {
    AgentError::Unknown { kind: "instance", name: id.to_string() }
}
