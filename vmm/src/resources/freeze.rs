//! Freezing instances: an idle one gives back what it does not need until it is thawed.
//!
//! 1. The guest stops its processes.
//! 2. What is free of its partition is unplugged. With the guest memory extension nothing moves for it; with a stock kernel it
//!    would, so it stays.
//! 3. The host pushes out to swap what is still plugged.
//!
//! A thaw plugs what step 2 has unplugged, then the guest lets the processes go on. Pages come back from swap as they are touched.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bellows_devices::virtio::UnplugError;
use bellows_memory::partition::WaitError;
use bellows_memory::{BLOCK, ByteSize, MapError, Swap, SystemMemory};
use bellows_protocol::values::InstanceId;
use serde::Serialize;

use super::error::{InstanceError, PartitionError};
use super::partitions::{Entry, Home};
use crate::config::{PartitionMode, text};
use crate::deadline::Deadline;
use crate::guest::agent::{AgentClient, AgentError};
use crate::milliseconds;

/// What a freeze has given back.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct FreezeReport {
    /// Free memory that was unplugged from the partition.
    #[serde(rename = "unplugged_bytes")]
    pub unplugged: ByteSize,
    /// Of that, what had pages of the host, which has them again.
    #[serde(rename = "discarded_bytes")]
    pub discarded: ByteSize,
    /// What was pushed out to the host's swap.
    #[serde(rename = "pushed_out_bytes")]
    pub pushed_out: ByteSize,
    /// What is left of the partition in the host's memory. A slow swap may still be taking some of it.
    #[serde(rename = "resident_bytes")]
    pub resident: ByteSize,
    /// Why free memory was not unplugged; `None` if it was.
    #[serde(serialize_with = "text::serialize_option")]
    pub free_kept: Option<FreeKept>,
    /// Why nothing, or not all, was pushed out; `None` if the host was asked to push out all of it.
    #[serde(serialize_with = "text::serialize_option")]
    pub not_pushed_out: Option<NotPushedOut>,
    /// The whole call.
    #[serde(rename = "freeze_ms", with = "milliseconds")]
    pub time: Duration,
}

/// What a thaw has plugged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct ThawReport {
    /// Memory that the freeze had unplugged.
    #[serde(rename = "plugged_bytes")]
    pub plugged: ByteSize,
    /// Until the instance's processes went on.
    #[serde(rename = "thaw_ms", with = "milliseconds")]
    pub time: Duration,
}

/// Why free memory was not unplugged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FreeKept {
    /// The instance has no partition.
    NoPartition,
    /// With a stock kernel the guest would have to move memory, perhaps a neighbour's.
    StockKernel,
}

/// Why nothing, or not all, was pushed out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotPushedOut {
    /// The instance has no partition. Base memory belongs to the whole VM.
    NoPartition,
    /// Other instances have memory in the partition, and may be running: how many.
    Neighbours(u32),
    /// The host has no swap.
    NoSwap,
    /// All of the host's swap, so much, is in use.
    SwapFull(ByteSize),
    /// A control group of the monitor allows no more swap.
    SwapLimit {
        /// Its directory.
        group: PathBuf,
        /// Its `memory.swap.max`.
        limit: ByteSize,
    },
    /// Guest memory is made of huge pages of the host's pool.
    HugePages,
    /// Time was up.
    TimeUp,
    /// The host cannot tell whether it has swap, or refused.
    Host(String),
}

impl fmt::Display for FreeKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPartition => "the instance has no partition, and base memory belongs to the whole VM",
            Self::StockKernel => "a stock kernel would have to move memory",
        })
    }
}

impl fmt::Display for NotPushedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPartition => f.write_str("the instance has no partition, and base memory belongs to the whole VM"),
            Self::Neighbours(count) => write!(f, "other instances have memory in its partition: {count}"),
            Self::NoSwap => f.write_str("the host has no swap"),
            Self::SwapFull(all) => write!(f, "the host's {all} of swap are full"),
            Self::SwapLimit { group, limit } => {
                write!(f, "the control group {} allows no more swap than {limit}", group.display())
            }
            Self::HugePages => f.write_str("memory with the backing `hugetlbfs` cannot be pushed out"),
            Self::TimeUp => f.write_str("time was up"),
            Self::Host(error) => f.write_str(error),
        }
    }
}

/// How long the guest has to give back what it says it can give back at once.
const UNPLUG_LIMIT: Duration = Duration::from_secs(1);

/// Freezes an instance. `swap` says whether the host can push anything out.
pub(super) fn freeze(
    agent: &AgentClient,
    id: &InstanceId,
    home: Option<&Home>,
    timeout: Duration,
    swap: impl FnOnce() -> io::Result<Swap>,
) -> Result<FreezeReport, InstanceError> {
    let entry = home.map(Home::entry).transpose()?;
    let report = freeze_in(agent, id, entry.as_ref(), Deadline::after(timeout), swap)?;
    tracing::debug!(instance = %id, ?report, "frozen");
    Ok(report)
}

fn freeze_in(
    agent: &AgentClient,
    id: &InstanceId,
    entry: Option<&Entry>,
    deadline: Deadline,
    swap: impl FnOnce() -> io::Result<Swap>,
) -> Result<FreezeReport, InstanceError> {
    let start = Instant::now();
    let none = ByteSize::bytes(0);
    let mut report = FreezeReport {
        unplugged: none,
        discarded: none,
        pushed_out: none,
        resident: none,
        free_kept: Some(FreeKept::NoPartition),
        not_pushed_out: Some(NotPushedOut::NoPartition),
        time: Duration::ZERO,
    };
    // Noted before: it may be removed as soon as it is frozen, and is forgotten then.
    let is_new = entry.is_some_and(|entry| entry.note_frozen(id));
    let node = entry.map_or(0, |entry| entry.handle.memory().window().id().get().into());
    let frozen = match agent.freeze_instance(id, node, deadline.left()) {
        Ok(frozen) => frozen,
        Err(source) => {
            if let (true, Some(entry)) = (is_new, entry) {
                entry.forget_frozen(id);
            }
            return Err(failed("freeze", id, source));
        }
    };
    if let Some(entry) = entry {
        (report.unplugged, report.discarded) = give_back(entry, frozen.spare, deadline)?;
        report.free_kept = (frozen.mode == PartitionMode::Stock).then_some(FreeKept::StockKernel);
        (report.pushed_out, report.not_pushed_out) = push_out(entry, frozen.neighbours, deadline, swap);
        report.resident = entry.handle.memory().resident().unwrap_or_else(|error| {
            tracing::warn!(instance = %id, %error, "cannot tell what is resident");
            none
        });
    }
    report.time = start.elapsed();
    Ok(report)
}

/// Lets a frozen instance go on.
pub(super) fn thaw(
    agent: &AgentClient,
    id: &InstanceId,
    home: Option<&Home>,
    timeout: Duration,
) -> Result<ThawReport, InstanceError> {
    let entry = home.map(Home::entry).transpose()?;
    thaw_in(agent, id, entry.as_ref(), Deadline::after(timeout))
}

fn thaw_in(
    agent: &AgentClient,
    id: &InstanceId,
    entry: Option<&Entry>,
    deadline: Deadline,
) -> Result<ThawReport, InstanceError> {
    let start = Instant::now();
    let mut plugged = ByteSize::bytes(0);
    if let Some(entry) = entry
        && let Some(size) = entry.before_freeze(id)
    {
        let now = entry.handle.memory().report();
        if now.plugged < size {
            entry.plug(agent, size.max(now.target), deadline.left() / 4 * 3)?;
            plugged = ByteSize::bytes(size.get() - now.plugged.get());
        }
    }
    agent.thaw_instance(id, deadline.left()).map_err(|source| failed("thaw", id, source))?;
    if let Some(entry) = entry {
        entry.forget_frozen(id);
    }
    let report = ThawReport { plugged, time: start.elapsed() };
    tracing::debug!(instance = %id, ?report, "thawed");
    Ok(report)
}

/// Has the guest give back `spare` bytes; returns what it gave, and what the host has again of it.
fn give_back(entry: &Entry, spare: ByteSize, deadline: Deadline) -> Result<(ByteSize, ByteSize), PartitionError> {
    let memory = entry.handle.memory();
    let id = memory.window().id();
    let before = memory.report();
    let kept = before.plugged.get().saturating_sub(spare.get()).next_multiple_of(BLOCK.get());
    // A target that the guest is still on its way to stands.
    let size = ByteSize::bytes(kept).max(BLOCK).min(before.target);
    if size >= before.plugged.min(before.target) {
        return Ok((ByteSize::bytes(0), ByteSize::bytes(0)));
    }
    let unplug = |source| PartitionError::Unplug { id, source };
    let after = match entry.handle.shrink(size, UNPLUG_LIMIT.min(deadline.left() / 2)) {
        Ok(report) => report,
        Err(UnplugError::Incomplete(WaitError::Timeout { report, .. })) => *report,
        Err(source) => return Err(unplug(source)),
    };
    let discarded = match memory.wait_discarded(deadline.left() / 2) {
        Ok(report) => report.phases.discarded,
        Err(error) => {
            tracing::debug!(partition = %id, %error, "what a freeze has unplugged goes back later");
            memory.report().phases.discarded
        }
    };
    if after.plugged > size {
        // Or the guest would look for more again and again.
        let settled = entry.handle.plug(after.plugged, deadline.left() / 2);
        settled.map_err(|source| PartitionError::Plug { id, size: after.plugged, source })?;
    }
    Ok((ByteSize::bytes(before.plugged.get().saturating_sub(after.plugged.get())), discarded))
}

/// Pushes out what is plugged, as far as the host can; returns how much, and why not all.
fn push_out(
    entry: &Entry,
    neighbours: u32,
    deadline: Deadline,
    swap: impl FnOnce() -> io::Result<Swap>,
) -> (ByteSize, Option<NotPushedOut>) {
    let nothing = |reason| (ByteSize::bytes(0), Some(reason));
    if neighbours != 0 {
        return nothing(NotPushedOut::Neighbours(neighbours));
    }
    match swap() {
        Ok(Swap::Free(_)) => {}
        Ok(Swap::Absent) => return nothing(NotPushedOut::NoSwap),
        Ok(Swap::Full(all)) => return nothing(NotPushedOut::SwapFull(all)),
        Ok(Swap::Limited { group, limit }) => return nothing(NotPushedOut::SwapLimit { group, limit }),
        Err(error) => return nothing(NotPushedOut::Host(error.to_string())),
    }
    match entry.handle.memory().page_out(deadline.left()) {
        Ok(paged_out) => (paged_out.bytes, (!paged_out.complete).then_some(NotPushedOut::TimeUp)),
        Err(MapError::PagesStay) => nothing(NotPushedOut::HugePages),
        Err(error) => nothing(NotPushedOut::Host(with_cause(&error))),
    }
}

/// Whether this process's memory can be pushed out.
pub(super) fn host_swap() -> io::Result<Swap> {
    SystemMemory::open()?.swap()
}

fn with_cause(error: &MapError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn failed(action: &'static str, id: &InstanceId, source: AgentError) -> InstanceError {
    InstanceError::Agent { action, id: id.clone(), source }
}

#[cfg(test)]
#[path = "freeze_test.rs"]
mod tests;
