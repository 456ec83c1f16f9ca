//! The bodies of requests, with Firecracker's names. Unknown properties are errors; what Bellows lacks has only its neutral value.

mod boot;
mod cpu;
mod devices;
mod drive;
mod hotplug;
mod limiter;
mod machine;
pub(super) mod mmds;
mod network;
mod output;
mod partition;
mod pmem;

pub(crate) use boot::BootSource;
pub(crate) use cpu::CpuConfig;
pub(crate) use devices::{Balloon, BalloonStatisticsUpdate, BalloonUpdate, Entropy, StartHinting, Vsock};
pub(crate) use drive::{Drive, DriveUpdate};
pub(crate) use hotplug::{MemoryHotplug, MemoryHotplugUpdate};
pub(crate) use machine::{Machine, MachineUpdate};
pub(crate) use mmds::{Metadata, Mmds};
pub(crate) use network::{Network, NetworkUpdate};
pub(crate) use output::{Level, Logger, Metrics, Serial};
pub(crate) use partition::Partition;
pub(crate) use pmem::Pmem;

use schemars::JsonSchema;
use serde::Deserialize;

/// `PUT /actions`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Action {
    pub(crate) action_type: ActionType,
}

/// What to do.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(crate) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmUpdate {
    pub(crate) state: VmState,
}

/// The state that the VM is to have.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}
