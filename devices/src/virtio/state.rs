//! States of all devices: what a driver relies on beside the queues, and what a device has yet to do.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::limits::{LimiterState, LimitersState};
use crate::state::Version;

/// State of a device, beside its queues.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "device", rename_all = "snake_case")]
pub enum DeviceState {
    /// A device that knows nothing but its queues, as [`Rng`](super::Rng).
    Stateless,
    /// State of a [`Balloon`](super::Balloon).
    Balloon(BalloonState),
    /// State of a [`Block`](super::Block).
    Block(BlockState),
    /// State of a [`Mem`](super::Mem).
    Mem(MemState),
    /// State of a [`Net`](super::Net).
    Net(NetState),
    /// State of a [`Pmem`](super::Pmem).
    Pmem(PmemState),
    /// State of a [`Vsock`](super::Vsock).
    Vsock(VsockState),
}

/// State of a [`Balloon`](super::Balloon): what the two sides know of each other.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BalloonState {
    /// Version of this type.
    pub version: Version<1>,
    /// Feature bits offered.
    pub features: u64,
    /// The target in pages of 4 KiB.
    pub num_pages: u32,
    /// Pages in the balloon, by the driver's account.
    pub actual: u32,
    /// The last run of free page hinting.
    pub hinting: HintingState,
}

/// Where host and guest stand with free page hinting.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HintingState {
    /// The host's command, which the configuration shows.
    pub host_cmd: u32,
    /// The guest's last command, if it has taken up the last run.
    pub guest_cmd: Option<u32>,
    /// The number of the last run.
    pub last_run: u32,
    /// Whether the guest may use its pages again as soon as it has named all.
    pub acknowledge_on_stop: bool,
}

/// State of a [`Block`](super::Block): what a driver knows of its disk, and what its rate limit has left.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BlockState {
    /// Version of this type.
    pub version: Version<1>,
    /// Capacity in sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Discards are offered.
    pub discards: bool,
    /// What the disk says it is.
    pub id: String,
    /// The rate limit, and what it has left.
    pub limiter: LimiterState,
    /// Whether the driver has yet to be told that the disk was exchanged.
    pub news: bool,
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

/// State of a [`Net`](super::Net): what a driver knows of its interface, and what its rate limits have left. A packet that waits for
/// room in the guest's buffers is not part of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetState {
    /// Version of this type.
    pub version: Version<1>,
    /// Feature bits offered.
    pub features: u64,
    /// The hardware address.
    pub mac: [u8; 6],
    /// The largest packet without its link header, where the driver is told.
    pub mtu: Option<u16>,
    /// The address of the metadata service, where the interface has it. Its connections and tokens are no part of the state.
    #[serde(default)]
    pub metadata: Option<Ipv4Addr>,
    /// The pairs of queues.
    #[serde(default)]
    pub queue_pairs: QueuePairsState,
    /// The rate limits, and what they have left.
    pub limiters: LimitersState,
}

/// Pairs of queues of a [`Net`](super::Net).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueuePairsState {
    /// How many there are.
    pub most: u16,
    /// How many of them the driver uses.
    pub used: u16,
}

impl Default for QueuePairsState {
    fn default() -> Self {
        Self { most: 1, used: 1 }
    }
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
