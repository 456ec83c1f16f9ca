//! A partition's memory as the guest's kernel sees it: its size, its node, its zone, and the processes that use it.

mod driver;
mod free_blocks;
mod meminfo;
mod mountinfo;
mod numa_maps;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bellows_protocol::values::{InstanceId, Node};

use crate::error::{AgentError, Result};
use crate::placement::Placement;
use crate::uevent::Uevents;
use crate::{cgroup, files};

use driver::{Device, Devices};
pub use driver::{Driver, State, Times};
pub use meminfo::NodeMemory;

/// Most holders in a report, and most mounts.
const MAX_HOLDERS: usize = 64;
/// Most processes that are looked at for a report.
const MAX_PROCESSES: usize = 4096;

/// A process with pages on a partition's node.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number in the guest's first PID namespace.
    pub pid: u32,
    /// Its name, at most 15 characters.
    pub command: String,
    /// The instance that it belongs to.
    pub instance: Option<InstanceId>,
    /// Bytes of the node that it maps; memory that several processes share counts for each.
    pub bytes: u64,
}

/// sysfs and procfs, where the kernel reports on memory.
#[derive(Debug, Clone)]
pub struct MemoryInfo {
    sys: PathBuf,
    proc: PathBuf,
    devices: Arc<Devices>,
}

impl Default for MemoryInfo {
    fn default() -> Self {
        Self::new("/sys", "/proc")
    }
}

impl MemoryInfo {
    /// sysfs mounted at `sys`, procfs at `proc`.
    pub fn new(sys: impl Into<PathBuf>, proc: impl Into<PathBuf>) -> Self {
        Self { sys: sys.into(), proc: proc.into(), devices: Arc::default() }
    }

    fn node_folder(&self, node: Node) -> PathBuf {
        self.sys.join(format!("devices/system/node/node{node}"))
    }

    /// Memory of a node; all zero while it has none.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn node(&self, node: Node) -> Result<NodeMemory> {
        match files::read(self.node_folder(node).join("meminfo")) {
            Ok(text) => Ok(meminfo::parse(&text)),
            Err(AgentError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(NodeMemory::default())
            }
            Err(error) => Err(error),
        }
    }

    /// What the driver can give back of a private node at once, in bytes.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn spare(&self, node: Node) -> Result<u64> {
        let (lists, zones) = (files::read(self.proc.join("buddyinfo"))?, files::read(self.proc.join("zoneinfo"))?);
        Ok(free_blocks::spare(&lists, &zones, node.number()))
    }

    /// Whether the kernel has the guest memory extension and it is on.
    pub fn has_private_nodes(&self) -> bool {
        files::read(self.sys.join("module/virtio_mem/parameters/private_nodes"))
            .is_ok_and(|text| matches!(text.as_str(), "Y" | "1"))
    }

    /// What the driver says of the device whose memory is on `node`; `None` with a stock kernel.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn driver(&self, node: Node) -> Result<Option<Driver>> {
        self.device(node).map(|device| device.read()).transpose()
    }

    /// The placement of memory in the partition on `node`.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn placement(&self, node: Node) -> Result<Placement> {
        match self.device(node) {
            Some(device) if device.is_private()? => Ok(Placement::Private(node)),
            _ => Ok(Placement::Policy(node)),
        }
    }

    /// Waits until the driver of the device on `node` has reached the host's target, or `limit` is over; what it says then, or `None` with a
    /// stock kernel.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn await_driver(&self, node: Node, limit: Duration) -> Result<Option<Driver>> {
        let Some(device) = self.device(node) else { return Ok(None) };
        device.await_idle(limit)?;
        device.read().map(Some)
    }

    fn device(&self, node: Node) -> Option<Device> {
        self.devices.find(&self.sys, node)
    }

    /// Waits until `node` has `bytes` of memory, and checks that the memory at `address`, where the partition's window
    /// starts, is the node's and that all of the node's memory is movable. If the driver has a report, that is used, and returned.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`]; [`AgentError::Broken`], [`AgentError::WrongNode`] and [`AgentError::WrongZone`], at
    /// once.
    pub fn await_memory(
        &self,
        uevents: &Uevents,
        node: Node,
        address: u64,
        bytes: u64,
        limit: Duration,
    ) -> Result<Option<Driver>> {
        let Some(device) = self.device(node) else {
            self.await_blocks(uevents, node, address, bytes, limit)?;
            return Ok(None);
        };
        if !device.is_private()? {
            self.await_blocks(uevents, node, address, bytes, limit)?;
            return device.read().map(Some);
        }
        device.await_plugged(bytes, limit)?;
        let driver = device.read()?;
        // Memory that was parked is where it was.
        if driver.unparks == 0 {
            let block_bytes = self.block_bytes()?;
            let first = address / block_bytes;
            self.check_node(first, first.saturating_mul(block_bytes), node)?;
            self.check_zones(node)?;
        }
        Ok(Some(driver))
    }

    /// For a stock kernel, which announces memory block by block.
    fn await_blocks(&self, uevents: &Uevents, node: Node, address: u64, bytes: u64, limit: Duration) -> Result<()> {
        let block_bytes = self.block_bytes()?;
        let first = address / block_bytes;
        let start = first.saturating_mul(block_bytes);
        let what = || format!("{bytes} bytes of memory on node {node}");
        // A memory block that is online already can grow without an announcement.
        uevents.watch_until(limit, what, || {
            if !self.is_online(first) {
                return Ok(None);
            }
            self.check_node(first, start, node)?;
            Ok((self.node(node)?.total_bytes >= bytes).then_some(()))
        })?;
        self.check_zones(node)
    }

    fn block_bytes(&self) -> Result<u64> {
        let path = self.sys.join("devices/system/memory/block_size_bytes");
        let text = files::read(&path)?;
        match u64::from_str_radix(&text, 16) {
            Ok(bytes) if bytes > 0 => Ok(bytes),
            _ => Err(AgentError::Malformed { what: path.display().to_string(), text }),
        }
    }

    fn block(&self, number: u64) -> PathBuf {
        self.sys.join(format!("devices/system/memory/memory{number}"))
    }

    fn is_online(&self, block: u64) -> bool {
        files::read(self.block(block).join("state")).is_ok_and(|state| state == "online")
    }

    fn check_node(&self, block: u64, address: u64, wanted: Node) -> Result<()> {
        match numbered(&self.block(block), "node").first() {
            Some(&found) if found != u64::from(wanted.number()) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                Err(AgentError::WrongNode { address, wanted, found })
            }
            _ => Ok(()),
        }
    }

    fn check_zones(&self, node: Node) -> Result<()> {
        for block in numbered(&self.node_folder(node), "memory") {
            if !self.is_online(block) {
                continue;
            }
            let zone = files::read(self.block(block).join("valid_zones"))?;
            if zone != "Movable" {
                return Err(AgentError::WrongZone { block, node, zone });
            }
        }
        Ok(())
    }

    /// The processes that hold most of a node's memory, largest first. The figure is too low for a process with very
    /// many mappings.
    pub fn holders(&self, node: Node) -> Vec<Holder> {
        let mut holders: Vec<Holder> = numbered(&self.proc, "")
            .into_iter()
            .take(MAX_PROCESSES)
            .filter_map(|pid| {
                // A process may end at any moment, and then holds nothing.
                let folder = self.proc.join(pid.to_string());
                let bytes = numa_maps::bytes_on(File::open(folder.join("numa_maps")).ok()?, node.number());
                (bytes > 0).then(|| {
                    let name = fs::read(folder.join("comm")).unwrap_or_default();
                    let command = String::from_utf8_lossy(&name).trim_end().to_owned();
                    let instance = files::read(folder.join("cgroup")).ok().and_then(|text| cgroup::instance_of(&text));
                    Holder { pid: u32::try_from(pid).unwrap_or(u32::MAX), command, instance, bytes }
                })
            })
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders.truncate(MAX_HOLDERS);
        holders
    }

    /// Mount points of the tmpfs of a private node, each once, in the mount namespace of the first process that sees it.
    pub fn tmpfs_mounts(&self, node: Node) -> Vec<String> {
        let mut mounts = BTreeMap::new();
        for pid in numbered(&self.proc, "").into_iter().take(MAX_PROCESSES) {
            let Ok(text) = files::read(self.proc.join(format!("{pid}/mountinfo"))) else { continue };
            for (device, point) in mountinfo::tmpfs_of(&text, node.number()) {
                mounts.entry(device.to_owned()).or_insert_with(|| point.to_owned());
            }
        }
        mounts.into_values().take(MAX_HOLDERS).collect()
    }
}

/// The numbers of a folder's entries that are named `prefix` and a number, in order.
fn numbered(folder: &Path, prefix: &str) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut numbers: Vec<u64> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
#[path = "partition_test.rs"]
mod tests;
