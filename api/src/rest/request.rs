//! From a method, a path and a body to what is to be done: parsing alone, without a socket or a VM.

use bellows_vmm::PartitionId;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::bodies::{
    Action as ActionBody, ActionType, Balloon, BalloonStatisticsUpdate, BalloonUpdate, BootSource, CpuConfig, Drive,
    DriveUpdate, Entropy, Logger, Machine, MachineUpdate, MemoryHotplug, MemoryHotplugUpdate, Metrics, Mmds, Network,
    NetworkUpdate, Partition, Pmem, Serial, StartHinting, VmState, VmUpdate, Vsock,
};
use super::fault::Fault;
use super::strict;

/// Longest name of a resource.
const MAX_ID: usize = 64;

/// A request that makes sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Request {
    /// Changes nothing, and waits for nothing.
    Read(Read),
    /// One at a time.
    Change(Change),
    /// The document of the API.
    Document,
}

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Read {
    Instance,
    Version,
    Machine,
    VmConfig,
    Balloon,
    BalloonStatistics,
    Hinting,
    Metadata,
    MemoryHotplug,
}

/// What is to change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    BootSource(BootSource),
    Machine(Machine),
    UpdateMachine(MachineUpdate),
    Cpu(CpuConfig),
    Drive(Drive),
    UpdateDrive(DriveUpdate),
    RemoveDrive(String),
    Pmem(Pmem),
    RemovePmem(String),
    Network(Box<Network>),
    RemoveNetwork(String),
    UpdateNetwork(NetworkUpdate),
    Vsock(Vsock),
    MemoryHotplug(MemoryHotplug),
    ResizeMemory(MemoryHotplugUpdate),
    Mmds(Mmds),
    PutMetadata(Value),
    PatchMetadata(Value),
    Entropy(Entropy),
    Balloon(Balloon),
    ResizeBalloon(u32),
    BalloonInterval(u16),
    StartHinting(bool),
    StopHinting,
    Serial(Serial),
    Logger(Logger),
    Metrics(Metrics),
    Start,
    /// A partition's number, and its window.
    Partition(u16, Partition),
    FlushMetrics,
    SendCtrlAltDel,
    Pause,
    Resume,
}

/// Parts of the API that Bellows does not have yet, by the first part of their paths.
const MISSING: [(&str, &str); 1] = [("snapshot", "snapshots")];

/// Reads a request. The method is in capitals; the path may have a query, which means nothing.
///
/// # Errors
/// The request does not exist, is not supported yet, or its body is wrong.
pub(crate) fn parse(method: &str, path: &str, body: &[u8]) -> Result<Request, Fault> {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let parts: Vec<&str> = path.trim_start_matches('/').split_terminator('/').collect();
    if let Some((_, what)) = MISSING.iter().find(|(first, _)| parts.first() == Some(first))
        && matches!(method, "GET" | "PUT" | "PATCH" | "DELETE")
    {
        return Err(Fault::new(format!("`{method} {path}` is not supported yet: Bellows does not have {what}")));
    }
    match (method, parts.as_slice()) {
        ("GET" | "DELETE", _) if !body.is_empty() => {
            Err(Fault::new(format!("`{method} {path}` has a body: expected none")))
        }
        ("GET", []) => Ok(Request::Read(Read::Instance)),
        ("GET", ["openapi.json"]) => Ok(Request::Document),
        ("GET", ["version"]) => Ok(Request::Read(Read::Version)),
        ("GET", ["machine-config"]) => Ok(Request::Read(Read::Machine)),
        ("GET", ["vm", "config"]) => Ok(Request::Read(Read::VmConfig)),
        ("GET", ["balloon"]) => Ok(Request::Read(Read::Balloon)),
        ("GET", ["balloon", "statistics"]) => Ok(Request::Read(Read::BalloonStatistics)),
        ("GET", ["balloon", "hinting", "status"]) => Ok(Request::Read(Read::Hinting)),
        ("GET", ["hotplug", "memory"]) => Ok(Request::Read(Read::MemoryHotplug)),
        ("GET", ["mmds"]) => Ok(Request::Read(Read::Metadata)),
        ("PATCH", ["balloon", "hinting", "stop"]) => Ok(Request::Change(Change::StopHinting)),
        ("PATCH", ["balloon", "hinting", "start"]) => {
            let start = if body.is_empty() { StartHinting::default() } else { json(body)? };
            Ok(Request::Change(Change::StartHinting(start.acknowledge_on_stop)))
        }
        ("PUT" | "PATCH", _) => change(method, path, &parts, body).map(Request::Change),
        ("DELETE", ["drives", id]) => Ok(Request::Change(Change::RemoveDrive(checked_id("drive_id", id)?.to_owned()))),
        ("DELETE", ["pmem", id]) => Ok(Request::Change(Change::RemovePmem(checked_id("id", id)?.to_owned()))),
        ("DELETE", ["network-interfaces", id]) => {
            Ok(Request::Change(Change::RemoveNetwork(checked_id("iface_id", id)?.to_owned())))
        }
        _ => Err(unknown(method, path)),
    }
}

fn change(method: &str, path: &str, parts: &[&str], body: &[u8]) -> Result<Change, Fault> {
    let change = match (method, parts) {
        ("PUT", ["actions"]) => json::<ActionBody>(body).map(|body| match body.action_type {
            ActionType::FlushMetrics => Change::FlushMetrics,
            ActionType::InstanceStart => Change::Start,
            ActionType::SendCtrlAltDel => Change::SendCtrlAltDel,
        }),
        ("PUT", ["boot-source"]) => json(body).map(Change::BootSource),
        ("PUT", ["machine-config"]) => json(body).map(Change::Machine),
        ("PUT", ["cpu-config"]) => json(body).map(Change::Cpu),
        ("PATCH", ["machine-config"]) => json(body).map(Change::UpdateMachine),
        ("PUT", ["drives", id]) => {
            let drive: Drive = json_of("drive_id", id, body)?;
            same_id("drive_id", id, &drive.drive_id)?;
            Ok(Change::Drive(drive))
        }
        ("PATCH", ["drives", id]) => {
            let update: DriveUpdate = json_of("drive_id", id, body)?;
            same_id("drive_id", id, &update.drive_id)?;
            Ok(Change::UpdateDrive(update))
        }
        ("PUT", ["pmem", id]) => {
            let pmem: Pmem = json_of("id", id, body)?;
            same_id("id", id, &pmem.id)?;
            Ok(Change::Pmem(pmem))
        }
        ("PATCH", ["pmem", _]) => {
            return Err(Fault::new("a pmem device has no rate limits to change: reads of it are no requests"));
        }
        ("PUT", ["network-interfaces", id]) => {
            let network: Network = json_of("iface_id", id, body)?;
            same_id("iface_id", id, &network.iface_id)?;
            Ok(Change::Network(Box::new(network)))
        }
        ("PATCH", ["network-interfaces", id]) => {
            let update: NetworkUpdate = json_of("iface_id", id, body)?;
            same_id("iface_id", id, &update.iface_id)?;
            Ok(Change::UpdateNetwork(update))
        }
        ("PUT", ["partitions", id]) => {
            let number = partition(id)?.get();
            json(body).map(|partition| Change::Partition(number, partition))
        }
        ("PUT", ["vsock"]) => json(body).map(Change::Vsock),
        ("PUT", ["hotplug", "memory"]) => json(body).map(Change::MemoryHotplug),
        ("PATCH", ["hotplug", "memory"]) => json(body).map(Change::ResizeMemory),
        ("PUT", ["mmds", "config"]) => json(body).map(Change::Mmds),
        ("PUT", ["mmds"]) => json(body).map(Change::PutMetadata),
        ("PATCH", ["mmds"]) => json(body).map(Change::PatchMetadata),
        ("PUT", ["entropy"]) => json(body).map(Change::Entropy),
        ("PUT", ["balloon"]) => json(body).map(Change::Balloon),
        ("PATCH", ["balloon"]) => json::<BalloonUpdate>(body).map(|update| Change::ResizeBalloon(update.amount_mib)),
        ("PATCH", ["balloon", "statistics"]) => {
            json::<BalloonStatisticsUpdate>(body).map(|update| Change::BalloonInterval(update.stats_polling_interval_s))
        }
        ("PUT", ["serial"]) => json(body).map(Change::Serial),
        ("PUT", ["logger"]) => json(body).map(Change::Logger),
        ("PUT", ["metrics"]) => json(body).map(Change::Metrics),
        ("PATCH", ["vm"]) => json::<VmUpdate>(body).map(|update| match update.state {
            VmState::Paused => Change::Pause,
            VmState::Resumed => Change::Resume,
        }),
        _ => return Err(unknown(method, path)),
    };
    if body.is_empty() {
        return Err(Fault::new(format!("`{method} {path}` has no body: expected JSON")));
    }
    change
}

pub(super) fn unknown(method: &str, path: &str) -> Fault {
    Fault::new(format!("`{method} {path}` is not a request of this API"))
}

pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    strict::from_slice(body).map_err(|error| Fault::new(format!("cannot understand the body: {error}")))
}

fn json_of<T: DeserializeOwned>(field: &str, id: &str, body: &[u8]) -> Result<T, Fault> {
    checked_id(field, id)?;
    json(body)
}

/// Reads a partition's number.
pub(super) fn partition(text: &str) -> Result<PartitionId, Fault> {
    let number = text.parse().ok().filter(|number: &u16| number.to_string() == text).and_then(PartitionId::new);
    number.ok_or_else(|| Fault::value("partition", format!("`{}`", text.escape_debug()), "a number from 1"))
}

/// The name of a resource: letters, digits and underscores.
fn checked_id<'a>(field: &str, id: &'a str) -> Result<&'a str, Fault> {
    let is_word = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if id.is_empty() || id.len() > MAX_ID || !is_word {
        let expected = format!("1 to {MAX_ID} letters, digits and underscores");
        return Err(Fault::value(field, format!("`{}`", id.escape_debug()), expected));
    }
    Ok(id)
}

fn same_id(field: &str, path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    Err(Fault::value(field, format!("`{}`", body.escape_debug()), format!("`{path}`, as in the path")))
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
