//! What a VM reports, as plain data: the same types for the library, for `--json` and for servers.
//!
//! In JSON, sizes are numbers of bytes; durations are [`milliseconds`], and their names end in
//! `_ms`; addresses and names are text.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::limits::RateLimit;
use bellows_memory::partition::Report;
use bellows_memory::{ByteSize, PartitionId};
use bellows_protocol::ready::BootTimes;
use bellows_protocol::values::{ImageId, InstanceId, MIN_BASE_LIMIT};
use serde::{Deserialize, Serialize};

use crate::config::{PartitionMode, Shape, Transport, text};
use crate::kvm::ExitCounts;
use crate::milliseconds;

/// How much of a partition's memory is used for each purpose, as the guest counts it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct PartitionUse {
    /// Memory of the node; 0 while it is parked.
    pub total_bytes: u64,
    /// Free memory of the node.
    pub free_bytes: u64,
    /// Anonymous memory and shared memory.
    pub anonymous_bytes: u64,
    /// Page cache.
    pub file_bytes: u64,
    /// Processes with memory there.
    pub holders: Vec<Holder>,
    /// Where tmpfs are mounted that belong to the partition, with the extension.
    pub tmpfs_mounts: Vec<String>,
    /// The state of the guest's driver; `None` with a stock kernel.
    pub driver: Option<GuestDriver>,
}

/// A process that has memory in a partition.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Holder {
    /// Its number in the guest.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// The instance that it belongs to, if to any.
    #[serde(serialize_with = "text::serialize_option")]
    pub instance: Option<InstanceId>,
    /// How much.
    pub bytes: u64,
}

/// The state of a partition's device as the guest kernel's driver reports it. Nothing on the host depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct GuestDriver {
    /// Its current work.
    pub state: GuestState,
    /// How the partition's memory is kept apart.
    pub mode: PartitionMode,
    /// 4 KiB pages in use, with the extension.
    pub allocated_pages: u64,
    /// How often it was parked.
    pub parks: u64,
    /// How often it was plugged from there.
    pub unparks: u64,
    /// How often a park found pages in use.
    pub park_misses: u64,
    /// The last plug request that was complete.
    pub last_plug: GuestTimes,
    /// The last unplug request that was complete.
    pub last_unplug: GuestTimes,
}

/// The work of a driver.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// Taking memory.
    Plugging,
    /// Nothing: all that it is to have is there.
    Online,
    /// Giving memory back.
    Draining,
    /// Nothing: all memory is back, and it kept its memory map.
    Parked,
    /// Nothing: all memory is back.
    Empty,
    /// Nothing any more.
    Broken,
}

/// How long the steps of a request took, by the guest's clock.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct GuestTimes {
    /// From when the driver started to work to when the host had acknowledged all of it.
    #[serde(rename = "total_ms", with = "milliseconds")]
    pub total: Duration,
    /// Of that, waiting for the host.
    #[serde(rename = "host_ms", with = "milliseconds")]
    pub host: Duration,
}

impl GuestTimes {
    /// The guest's own part.
    #[must_use]
    pub fn guest(&self) -> Duration {
        self.total.saturating_sub(self.host)
    }
}

/// A guest's report of itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct GuestInfo {
    /// Version of the agent.
    pub agent_version: String,
    /// Release of the kernel, as `uname -r` shows it.
    pub kernel_release: String,
    /// How partitions are kept apart in the guest: `Extension` where its kernel has the extension and it is on.
    pub partition_mode: PartitionMode,
    /// The limit of base memory for all instances together.
    pub instances_base: ByteSize,
}

/// A VM whose guest can be called.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReadyReport {
    /// Release of the guest's kernel, as `uname -r` shows it.
    pub guest_kernel: String,
    /// How partitions are kept apart: what this guest can do.
    pub partition_mode: PartitionMode,
    /// From the first step of making the VM until it was ready.
    #[serde(rename = "boot_ms", with = "milliseconds")]
    pub boot: Duration,
    /// By the guest's clock, when its kernel was done.
    #[serde(rename = "init_ms", with = "milliseconds")]
    pub init: Duration,
    /// By the guest's clock, when its agent was ready.
    #[serde(rename = "ready_ms", with = "milliseconds")]
    pub ready: Duration,
    /// Exits that reached the monitor until then.
    pub exits: ExitCounts,
}

impl ReadyReport {
    /// Of a guest that took `boot` to be ready.
    #[must_use]
    pub fn new(guest: GuestInfo, boot: Duration, times: BootTimes, exits: ExitCounts) -> Self {
        Self {
            guest_kernel: guest.kernel_release,
            partition_mode: guest.partition_mode,
            boot,
            init: times.init,
            ready: times.ready,
            exits,
        }
    }
}

/// The result of a run: one instance in a VM of its own.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RunReport {
    /// How the instance ended.
    #[serde(flatten)]
    pub status: ExitStatus,
    /// Release of the guest's kernel, as `uname -r` shows it.
    pub guest_kernel: String,
    /// How partitions are kept apart: what this guest can do.
    pub partition_mode: PartitionMode,
    /// How the layers of the image were put together.
    pub shape: Shape,
    /// How they reached the guest.
    pub transport: Transport,
    /// Bytes of the image's files that the host was told to read ahead.
    pub prefetched_bytes: u64,
    /// Bytes of them that the guest read, where that was recorded for the image's profile.
    pub recorded_bytes: Option<u64>,
    /// From the first step of making the VM until it was ready.
    #[serde(rename = "boot_ms", with = "milliseconds")]
    pub boot: Duration,
    /// From the start of the instance until it was removed.
    #[serde(rename = "run_ms", with = "milliseconds")]
    pub run: Duration,
    /// The partition's memory, from plug to discard; `None` where the instance ran in base memory.
    pub partition: Option<PartitionReport>,
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct ExitStatus {
    /// As a shell gives it: the exit code, or 128 + the signal's number.
    #[serde(rename = "exit_code")]
    pub code: u8,
    /// The kernel killed the instance, or a process of it, for lack of memory.
    pub oom_killed: bool,
    /// Which limit it had met then.
    pub oom_limit: Option<OomLimit>,
}

/// Which limit an instance had met when the guest's kernel killed it for lack of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OomLimit {
    /// The size of its partition.
    Partition,
    /// Its limit on base memory.
    Base,
    /// Its `memory_max`, or with a stock kernel what bounds memory in the partition and base memory together.
    MemoryMax,
    /// None of its own: the guest had no memory left.
    Guest,
}

impl fmt::Display for OomLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Partition => "its partition was full",
            Self::Base => "it had reached its limit on base memory",
            Self::MemoryMax => "it had reached its memory.max",
            Self::Guest => "the guest had none left",
        })
    }
}

/// Counters of the guest's kernel since boot.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct GuestStatistics {
    /// Pages migrated because memory was unplugged or had to be contiguous.
    pub migrated_pages: u64,
    /// Pages migrated for any reason, by reason, where the kernel counts so: ours does.
    pub migrated_by_reason: Vec<(String, u64)>,
    /// Pages zeroed because memory was unplugged, where the kernel counts so: ours does.
    pub zeroed_pages: Option<u64>,
    /// Time that the guest's CPUs were not idle.
    #[serde(rename = "cpu_ms", with = "milliseconds")]
    pub cpu: Duration,
}

/// The cost of plugging a partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct PlugReport {
    /// The plugged memory.
    pub bytes: ByteSize,
    /// From when the guest was told until it had accepted all of it.
    #[serde(rename = "accepted_ms", with = "milliseconds")]
    pub accepted: Duration,
    /// From the request until the agent had found it online, on the partition's node and in the movable zone; with
    /// [`Vm::plug_and_start`](crate::Vm::plug_and_start), until the instance had started there.
    #[serde(rename = "usable_ms", with = "milliseconds")]
    pub usable: Duration,
    /// How the guest keeps the partition apart.
    pub mode: PartitionMode,
    /// The state of the guest's driver; `None` with a stock kernel.
    pub driver: Option<GuestDriver>,
}

/// The cost of unplugging a partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct UnplugReport {
    /// From when the guest was told until it had given back what it does give back, and could not reach it.
    #[serde(rename = "unplug_ms", with = "milliseconds")]
    pub unplug: Duration,
    /// Of that, changing memory slots.
    #[serde(rename = "slots_ms", with = "milliseconds")]
    pub slots: Duration,
    /// Of that, waiting for device requests in flight.
    #[serde(rename = "drain_ms", with = "milliseconds")]
    pub drain: Duration,
    /// The memory that the guest kept.
    pub left: ByteSize,
}

/// What a guest says that it has done to give memory back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct UnplugAccount {
    /// Pages that the whole guest migrated meanwhile because memory was unplugged; `None` where its kernel cannot tell.
    pub migrated_pages: Option<u64>,
    /// Pages that the guest zeroed meanwhile because memory was unplugged; `None` where its kernel cannot tell.
    pub zeroed_pages: Option<u64>,
    /// How the guest's driver stands, and by its own account took part; `None` with a stock kernel. With memory left it says
    /// how many pages are in use.
    pub driver: Option<GuestDriver>,
}

/// The cost of freeing a partition's memory on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct DiscardReport {
    /// Time in which memory was freed, on a thread of its own.
    #[serde(rename = "discard_ms", with = "milliseconds")]
    pub discard: Duration,
    /// Bytes that had pages and went back to the host.
    pub discarded: ByteSize,
}

/// A partition's memory, from the plug until the host had it back.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct PartitionReport {
    /// The plugged memory.
    pub bytes: ByteSize,
    /// How the guest kept it apart.
    pub mode: PartitionMode,
    /// Until an instance could use it.
    #[serde(rename = "plug_ms", with = "milliseconds")]
    pub plug: Duration,
    /// Until the guest had given back what it does give back.
    #[serde(rename = "unplug_ms", with = "milliseconds")]
    pub unplug: Duration,
    /// Of that, what the guest's driver worked by its own account; `None` with a stock kernel.
    #[serde(rename = "guest_ms", serialize_with = "milliseconds::serialize_option")]
    pub guest: Option<Duration>,
    /// Of `unplug`, changing memory slots.
    #[serde(rename = "slot_ms", with = "milliseconds")]
    pub slots: Duration,
    /// Time in which memory was freed, on a thread of its own.
    #[serde(rename = "discard_ms", with = "milliseconds")]
    pub discard: Duration,
    /// As in [`UnplugAccount`].
    pub migrated_pages: Option<u64>,
    /// As in [`UnplugAccount`].
    pub zeroed_pages: Option<u64>,
    /// Bytes that had pages and went back to the host.
    #[serde(rename = "discarded_bytes")]
    pub discarded: ByteSize,
    /// The memory that the guest kept.
    #[serde(rename = "left_bytes")]
    pub left: ByteSize,
}

impl PartitionReport {
    /// Sums up what three steps have reported.
    #[must_use]
    pub fn new(plug: &PlugReport, unplug: &UnplugReport, account: &UnplugAccount, discard: &DiscardReport) -> Self {
        Self {
            bytes: plug.bytes,
            mode: plug.mode,
            plug: plug.usable,
            unplug: unplug.unplug,
            guest: account.driver.map(|driver| driver.last_unplug.guest()),
            slots: unplug.slots,
            discard: discard.discard,
            migrated_pages: account.migrated_pages,
            zeroed_pages: account.zeroed_pages,
            discarded: discard.discarded,
            left: unplug.left,
        }
    }
}

/// An instance that is frozen.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct FrozenInstance {
    /// Its name.
    #[serde(serialize_with = "text::serialize")]
    pub instance: InstanceId,
    /// What was plugged in its partition before, and will be again when it is thawed.
    #[serde(rename = "bytes")]
    pub size: ByteSize,
}

/// A partition of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PartitionInfo {
    /// Its memory.
    pub memory: Report,
    /// First guest-physical address of its window.
    pub address: u64,
    /// Its device.
    #[serde(serialize_with = "text::serialize")]
    pub device: PciAddress,
    /// Whether a driver has bound, as far as is known.
    pub attached: bool,
    /// How the guest kept it apart when it was plugged last; `None` before it was.
    pub mode: Option<PartitionMode>,
    /// How much of it the guest has added, in whole memory blocks, and keeps while it is parked: a plug up to that adds nothing.
    pub added: ByteSize,
    /// What the memory map of that takes of base memory.
    pub memory_map: ByteSize,
    /// The instances there that are frozen, by name; more than one only with a stock kernel.
    pub frozen: Vec<FrozenInstance>,
}

/// What has come of the preparation of partitions ([`VmConfig::prepare`](crate::VmConfig::prepare)).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct PreparationReport {
    /// Those that were to be prepared, in order; none where the configuration prepares nothing.
    pub partitions: Vec<PreparedPartition>,
    /// Base memory for the memory map of all that is prepared.
    pub memory_map: ByteSize,
}

impl fmt::Display for PreparationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.partitions.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} of {} of partition {}", part.prepared, part.wanted, part.id)?;
        }
        Ok(())
    }
}

/// A partition that was to be prepared.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PreparedPartition {
    /// Which one.
    pub id: PartitionId,
    /// How much of it was to be prepared.
    pub wanted: ByteSize,
    /// How much is: the guest has added and parked it.
    pub prepared: ByteSize,
    /// Base memory for the memory map of that.
    pub memory_map: ByteSize,
    /// Why it is not more; `None` where it is all, or may come to be.
    #[serde(serialize_with = "text::serialize_option")]
    pub reason: Option<NotPrepared>,
}

/// Why a partition is not prepared, or not all of it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotPrepared {
    /// The guest would remove the memory map with the memory.
    #[error(
        "the guest does not park partitions: expected a kernel with the guest memory extension, and the extension on"
    )]
    Stock,
    /// Memory maps leave base memory too small for instances.
    #[error("base memory leaves {0} for instances: expected at least {least}", least = ByteSize::bytes(MIN_BASE_LIMIT))]
    BaseMemory(ByteSize),
    /// A call set a target of its own, and that one stands.
    #[error("it was plugged or unplugged before")]
    Used,
    /// It has no device.
    #[error("its device was removed")]
    NoDevice,
    /// Its memory was not admitted.
    #[error("it was not admitted: {0}")]
    NotAdmitted(String),
    /// The guest or the host did not do its part.
    #[error("{0}")]
    Failed(String),
    /// The VM has ended.
    #[error("the VM has ended")]
    Ended,
}

/// Where a disk stands with the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// It was there when the guest booted, or a driver has bound.
    Attached,
    /// It is on the bus, but the guest did not say that a driver has bound.
    Unbound,
}

/// A disk of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct DiskInfo {
    /// Its serial number.
    pub serial: String,
    /// Its file; of a scratch disk, whose file has no name, the folder.
    pub path: PathBuf,
    /// Whether the guest cannot write.
    pub read_only: bool,
    /// How it reaches the guest.
    pub transport: Transport,
    /// Where it is on the bus.
    #[serde(serialize_with = "text::serialize")]
    pub address: PciAddress,
    /// Where it stands with the guest.
    pub state: DiskState,
    /// Its rate limits; disks that are no drives have none.
    pub limits: RateLimit,
}

/// An image of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ImageInfo {
    /// The name that instances use.
    #[serde(serialize_with = "text::serialize")]
    pub id: ImageId,
    /// How its layers are put together.
    pub shape: Shape,
    /// How its disks reach the guest.
    pub transport: Transport,
    /// Serial numbers of its disks, the lowest layer's first.
    pub disks: Vec<String>,
    /// Whether instances can run it.
    pub mounted: bool,
    /// Bytes of its files that the host was told to read ahead.
    pub prefetched: u64,
}

#[cfg(test)]
#[path = "model_test.rs"]
mod tests;
