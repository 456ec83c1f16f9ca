//! What the agent's parts have found, as the protocol says it.

use bellows_protocol::agent::{
    BaseMemoryUse, DriverState, FrozenInstance, Holder, InstanceMemory, OomLimit, PartitionDriver,
};
use bellows_protocol::values::InstanceId;

use crate::cgroup;
use crate::elastic::Use;
use crate::instance::Frozen;
use crate::partition::{self, Driver, State};
use crate::placement::Placement;

pub(super) fn holder(holder: partition::Holder) -> Holder {
    Holder {
        pid: holder.pid,
        command: holder.command,
        bytes: holder.bytes,
        instance_id: holder.instance.map(|id| id.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

pub(super) fn base_memory_use(found: Use) -> BaseMemoryUse {
    BaseMemoryUse {
        grown_bytes: found.grown,
        pressure: found.pressure,
        used_bytes: found.used,
        limit_bytes: found.limit,
        total_bytes: found.node.total_bytes,
        free_bytes: found.node.free_bytes.min(found.node.total_bytes),
        file_bytes: found.node.file_bytes,
        ..Default::default()
    }
}

pub(super) fn frozen_instance(frozen: Frozen) -> FrozenInstance {
    let node = match frozen.placement {
        Placement::Base => 0,
        Placement::Policy(node) | Placement::Private(node) => node.number(),
    };
    FrozenInstance {
        node,
        private: matches!(frozen.placement, Placement::Private(_)),
        neighbours: frozen.neighbours,
        spare_bytes: frozen.spare,
        ..Default::default()
    }
}

pub(super) fn oom_limit(limit: Option<cgroup::OomLimit>) -> OomLimit {
    match limit {
        None => OomLimit::NONE,
        Some(cgroup::OomLimit::Partition) => OomLimit::PARTITION,
        Some(cgroup::OomLimit::Base) => OomLimit::BASE,
        Some(cgroup::OomLimit::Memory) => OomLimit::MEMORY,
        Some(cgroup::OomLimit::Guest) => OomLimit::GUEST,
    }
}

pub(super) fn partition_driver(driver: &Driver) -> PartitionDriver {
    let state = match driver.state {
        State::Plugging => DriverState::PLUGGING,
        State::Online => DriverState::ONLINE,
        State::Draining => DriverState::DRAINING,
        State::Parked => DriverState::PARKED,
        State::Empty => DriverState::EMPTY,
        State::Broken => DriverState::BROKEN,
    };
    PartitionDriver {
        state: state.into(),
        private: driver.private,
        requested_bytes: driver.requested_bytes,
        plugged_bytes: driver.plugged_bytes,
        allocated_pages: driver.allocated_pages,
        parks: driver.parks,
        unparks: driver.unparks,
        park_misses: driver.park_misses,
        last_plug_ns: driver.last_plug.total_ns,
        last_plug_host_ns: driver.last_plug.host_ns,
        last_unplug_ns: driver.last_unplug.total_ns,
        last_unplug_host_ns: driver.last_unplug.host_ns,
        ..Default::default()
    }
}

pub(super) fn instance_memory((id, allocated): (InstanceId, cgroup::Allocated)) -> InstanceMemory {
    let cgroup::Allocated { bytes, limited } = allocated;
    InstanceMemory { instance_id: id.to_string(), bytes, limited_bytes: limited, ..Default::default() }
}
