//! The instances of the VM: which there are, and which partition each has. Requests for one instance find one entry, whoever comes
//! first, and no partition is given out twice.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bellows_vmm::{ByteSize, Instance, InstanceId, PartitionId, PlugReport};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::bodies::{Ended, NewInstance};
use super::images::Held;
use super::log::OutputLog;
use crate::rest::fault::Fault;

/// Most instances at once.
const MAX_INSTANCES: usize = 1024;

/// All instances.
#[derive(Default)]
pub(crate) struct Table {
    entries: Mutex<BTreeMap<InstanceId, Arc<Entry>>>,
    /// Instances that have ever started.
    pub(crate) started: AtomicU64,
    /// Those of which the guest's kernel killed a process.
    pub(crate) oom_killed: AtomicU64,
}

/// An instance, from when it is asked for until it is removed.
pub(crate) struct Entry {
    pub(crate) id: InstanceId,
    pub(crate) wanted: NewInstance,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) log: Arc<OutputLog>,
    /// The instance, once it has started.
    pub(crate) handle: OnceLock<Started>,
    /// Its image, until it is removed.
    pub(crate) image: OnceLock<Held>,
    /// Those of its volumes, in their order.
    pub(crate) volumes: OnceLock<Vec<Held>>,
    /// One thread at a time changes it.
    pub(crate) turn: Mutex<()>,
}

/// An instance that has started.
pub(crate) struct Started {
    pub(crate) instance: Arc<Instance>,
    /// How its partition was plugged.
    pub(crate) plug: Option<PlugReport>,
}

/// Where an instance stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    pub(crate) frozen: bool,
    pub(crate) removing: bool,
    /// What its start has taken.
    pub(crate) started: Value,
}

/// The steps of an instance's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Phase {
    #[default]
    Starting,
    Running,
    Exited(Ended),
    /// It is not known how it ended.
    Lost(String),
    /// It did not start, and is in the table no more.
    Failed(Fault),
    /// It is in the table no more.
    Removed(Value),
}

/// A partition that may be given out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Room {
    pub(crate) id: PartitionId,
    pub(crate) window: ByteSize,
    /// What a plug finds prepared.
    pub(crate) ready: ByteSize,
    /// Something is plugged there.
    pub(crate) plugged: bool,
}

/// What has come of a request for an instance.
pub(crate) enum Begun {
    /// It is the caller's to start.
    New(Arc<Entry>),
    /// The same request was made before.
    Known(Arc<Entry>),
}

impl Table {
    /// Enters an instance, with a partition if it needs one, or finds the one that the same request has entered.
    ///
    /// # Errors
    /// Another instance has the name, there are too many, or no partition is free for it.
    pub(crate) fn begin(&self, id: &InstanceId, wanted: &NewInstance, rooms: &[Room]) -> Result<Begun, Fault> {
        let mut table = self.table();
        if let Some(entry) = table.get(id) {
            if entry.status.borrow().removing {
                return Err(Fault::conflict(format!("instance `{id}` is being removed")));
            }
            if entry.wanted != *wanted {
                return Err(Fault::conflict(format!(
                    "another instance is called `{id}`: expected the same request, or a free name"
                )));
            }
            return Ok(Begun::Known(entry.clone()));
        }
        if table.len() >= MAX_INSTANCES {
            return Err(Fault::conflict(format!("there are {MAX_INSTANCES} instances: expected fewer")));
        }
        let used = |partition| table.values().find(|entry| entry.partition == Some(partition)).map(|entry| &entry.id);
        let partition = choose(wanted, rooms, used)?;
        let entry = Arc::new(Entry::new(id.clone(), wanted.clone(), partition));
        table.insert(id.clone(), entry.clone());
        Ok(Begun::New(entry))
    }

    /// Takes an instance out, and makes its name and its partition free.
    pub(crate) fn forget(&self, entry: &Entry) {
        self.table().remove(&entry.id);
    }

    /// The instance of that name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get(&self, id: &InstanceId) -> Result<Arc<Entry>, Fault> {
        self.table().get(id).cloned().ok_or_else(|| Fault::missing(format!("there is no instance `{id}`")))
    }

    /// All instances, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.table().values().cloned().collect()
    }

    /// The instance that has a partition.
    pub(crate) fn holder(&self, partition: PartitionId) -> Option<InstanceId> {
        self.table().values().find(|entry| entry.partition == Some(partition)).map(|entry| entry.id.clone())
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partition for an instance: the one that it names; else, of those that are free and large enough, the smallest, and of equal
/// ones one that needs least adding.
fn choose<'a>(
    wanted: &NewInstance,
    rooms: &[Room],
    used: impl Fn(PartitionId) -> Option<&'a InstanceId>,
) -> Result<Option<PartitionId>, Fault> {
    let memory = wanted.memory();
    if memory.get() == 0 {
        return match wanted.partition {
            None => Ok(None),
            Some(_) => Err(Fault::value("memory_mib", 0, "the memory to plug in the partition")),
        };
    }
    if let Some(number) = wanted.partition {
        let room = rooms.iter().find(|room| room.id.get() == number);
        let room = room.ok_or_else(|| Fault::missing(format!("there is no partition {number}")))?;
        if let Some(holder) = used(room.id) {
            return Err(Fault::conflict(format!("partition {number} belongs to instance `{holder}`")));
        }
        return Ok(Some(room.id));
    }
    let free = rooms.iter().filter(|room| room.window >= memory && !room.plugged && used(room.id).is_none());
    let best = free.min_by_key(|room| (room.window, memory.get().saturating_sub(room.ready.get()), room.id.get()));
    let none = || Fault::conflict(format!("no partition with a window of {memory} or more is free"));
    best.map(|room| Some(room.id)).ok_or_else(none)
}

impl Entry {
    pub(crate) fn new(id: InstanceId, wanted: NewInstance, partition: Option<PartitionId>) -> Self {
        Self {
            id,
            wanted,
            partition,
            status: watch::Sender::new(Status::default()),
            log: Arc::default(),
            handle: OnceLock::new(),
            image: OnceLock::new(),
            volumes: OnceLock::new(),
            turn: Mutex::default(),
        }
    }

    /// The instance itself.
    ///
    /// # Errors
    /// It has not started.
    pub(crate) fn started(&self) -> Result<&Started, Fault> {
        self.handle.get().ok_or_else(|| Fault::conflict(format!("instance `{}` has not started", self.id)))
    }

    /// Waits for a step of its life.
    pub(crate) async fn until(&self, mut reached: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.status.subscribe();
        // The sender is this entry's.
        let found = status.wait_for(|status| reached(status)).await.map(|found| found.clone());
        found.unwrap_or_default()
    }

    /// What is said of it.
    pub(crate) fn json(&self) -> Value {
        let status = self.status.borrow().clone();
        let mut said = json!({
            "id": self.id.as_str(),
            "image": self.wanted.image,
            "argv": self.wanted.argv,
            "labels": self.wanted.labels,
            "memory_mib": self.wanted.memory_mib,
            "partition": self.partition.map(PartitionId::get),
            "state": status.name(),
            "pid": self.handle.get().map(|started| started.instance.init().pid()),
            "started": status.started,
        });
        match status.phase {
            Phase::Exited(ended) => said["ended"] = json!(ended),
            Phase::Lost(why) => said["lost"] = json!(why),
            _ => {}
        }
        said
    }
}

impl Status {
    pub(crate) fn is_starting(&self) -> bool {
        self.phase == Phase::Starting
    }

    /// Its first process is gone, or it never had one.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.phase, Phase::Starting | Phase::Running)
    }

    /// One word for it.
    pub(crate) fn name(&self) -> &'static str {
        match self.phase {
            _ if self.removing => "Removing",
            Phase::Starting => "Starting",
            Phase::Running if self.frozen => "Frozen",
            Phase::Running => "Running",
            Phase::Exited(_) => "Exited",
            Phase::Lost(_) => "Lost",
            Phase::Failed(_) => "Failed",
            Phase::Removed(_) => "Removed",
        }
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
