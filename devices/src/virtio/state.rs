//! States of all devices: what a driver relies on beside the queues, and what a device has yet to do.

use serde::{Deserialize, Serialize};

use crate::state::Version;

/// State of a device, beside its queues.
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

/// State of a [`Block`](super::Block): what a driver knows of its disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BlockState {
    /// Version of this type.
    pub version: Version<1>,
    /// Capacity in sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What the disk says it is.
    pub id: String,
}

/// State of a [`Mem`](super::Mem): what a driver knows of its region. What is plugged is the partition's state.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemState {
    /// Version of this type.
    pub version: Version<1>,
    /// The proximity domain.
    pub node_id: u16,
    /// First guest-physical address of the region.
    pub addr: u64,
    /// Bytes of the region.
    pub region_size: u64,
}

/// State of a [`Pmem`](super::Pmem): where its memory is, which a driver has mapped.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PmemState {
    /// Version of this type.
    pub version: Version<1>,
    /// First guest-physical address.
    pub start: u64,
    /// Bytes from there on.
    pub bytes: u64,
}

/// State of a [`Vsock`](super::Vsock). Streams are not part of it: their other ends are sockets of the host. The guest of a restored device
/// is told that they are gone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VsockState {
    /// Version of this type.
    pub version: Version<1>,
    /// The guest's context identifier.
    pub guest_cid: u32,
}
