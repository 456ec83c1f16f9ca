//! States of all devices.

use serde::{Deserialize, Serialize};

pub use super::blk::BlockState;
pub use super::mem::MemState;
pub use super::pmem::PmemState;
pub use super::vsock::VsockState;

/// What a device knows beside its queues.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "device", rename_all = "snake_case")]
pub enum DeviceState {
    /// A device that knows nothing but its queues, as [`Rng`](super::Rng).
    Stateless,
    /// State of a [`Block`](super::Block).
    Block(BlockState),
    /// State of a [`Mem`](super::Mem).
    Mem(MemState),
    /// State of a [`Pmem`](super::Pmem).
    Pmem(PmemState),
    /// State of a [`Vsock`](super::Vsock).
    Vsock(VsockState),
}
