//! The request to start an instance, and the limits that follow from it.

use bellows_protocol::network::OwnNetworkSetup;
use bellows_protocol::values::{ImageId, InstanceId, Node};
use bellows_protocol::volume::Volume;

use crate::cgroup::Limits;
use crate::container::plan::ProcessSpec;
use crate::error::{AgentError, Result};
use crate::placement::Placement;
use crate::scratch::ScratchDisk;

/// What an instance is to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Nothing.
    Plain,
    /// Others can be forked from it.
    Zygote,
    /// It is forked from this one.
    ForkOf(InstanceId),
}

/// What an instance is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceNetwork {
    /// Nothing: it has a network namespace with a loopback only.
    Unconnected,
    /// It shares the VM's network namespace.
    Shared,
    /// It has a network namespace with an interface, which the VM passes packets on for.
    Own(OwnNetworkSetup),
}

/// The request.
#[derive(Debug)]
pub struct Request {
    /// Its name.
    pub id: InstanceId,
    /// Its image.
    pub image: ImageId,
    /// What it is to others.
    pub role: Role,
    /// Its first process; what a zygote runs.
    pub process: ProcessSpec,
    /// Node of its partition.
    pub node: Node,
    /// Limit in bytes; with a partition, on the memory from there.
    pub memory_max: Option<u64>,
    /// Its base limit in bytes.
    pub base_limit: Option<u64>,
    /// Limit on processes and threads.
    pub pids_max: Option<u32>,
    /// What it is connected to.
    pub network: InstanceNetwork,
    /// What it finds beside its image.
    pub volumes: Vec<Volume>,
    /// Its scratch disk.
    pub scratch: Option<ScratchDisk>,
}

impl Request {
    /// The limits of the instance, which may have `base` bytes of base memory; and the node and size of its partition.
    pub(crate) fn limits(&self, base: u64, partition: Option<(Placement, u64)>) -> Result<Limits> {
        let (placement, memory_max, outer_max) = match (partition, self.memory_max) {
            (None | Some((Placement::Base, _)), wanted) => {
                (Placement::Base, wanted.map_or(base, |wanted| wanted.min(base)), base)
            }
            (Some((Placement::Private(node), total)), Some(wanted)) if wanted < total => {
                return Err(AgentError::LimitInPartition { wanted, node, total });
            }
            (Some((placement @ Placement::Private(_), total)), _) => (placement, total, base),
            (Some((placement @ Placement::Policy(_), total)), wanted) => {
                let most = below_partition(total, wanted);
                (placement, most, most)
            }
        };
        Ok(Limits { placement, memory_max, outer_max, pids_max: self.pids_max })
    }
}

/// With a stock kernel an instance's `memory.max` is at least this fraction below its partition's size, and at least this many
/// bytes: its own limit must be met first, as the kernel's answer to a full node may hit a neighbour.
const MARGIN_FRACTION: u64 = 64;
const MARGIN_BYTES: u64 = 8 << 20;

/// `memory.max` of an instance in a partition of `total` bytes.
pub(super) fn below_partition(total: u64, wanted: Option<u64>) -> u64 {
    let most = total.saturating_sub((total / MARGIN_FRACTION).max(MARGIN_BYTES)).max(1);
    wanted.map_or(most, |wanted| wanted.min(most))
}
