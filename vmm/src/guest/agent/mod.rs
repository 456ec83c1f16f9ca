//! The monitor's side of the agent protocol: typed calls with time-outs.
//!
//! The guest is not trusted: its answers are checked, its error texts are shortened and escaped, and every call ends, at
//! the latest with the VM.

mod base;
mod clock;
mod connection;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod exercise;
#[cfg(test)]
pub(crate) mod fixture;
mod freeze;
mod measure;
mod partition;
mod reclaim;
mod stream;
mod writer;

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use base::BaseUse;
use bellows_devices::pci::PciAddress;
use bellows_memory::ByteSize;
use bellows_protocol::agent;
use bellows_protocol::network::InterfaceSetup;
use bellows_protocol::stream::read_line;
use bellows_protocol::values::{InstanceId, ProcessId, TerminalSize};
use bellows_protocol::{AGENT_PORT, DISK_LIMIT, KILL_LIMIT, PROTOCOL_VERSION, READY_LIMIT, START_LIMIT};
use connection::{CallError, Connection};
pub use error::{AgentError, StartFailure};
pub use measure::InstanceMemory;
use protobuf::{EnumOrUnknown, Message};
pub(crate) use reclaim::ReclaimCost;
use stream::OpenStreams;
pub use stream::Stream;
use ttrpc::Code;

use crate::config::PartitionMode;
use crate::deadline::{Deadline, NothingToRead, await_readable};
use crate::end::EndSignal;
use crate::model::{ExitStatus, GuestDriver, GuestInfo, GuestStatistics, OomLimit, PartitionUse};

/// Time limit of calls that only look something up.
pub(crate) const SHORT: Duration = Duration::from_secs(30);
/// Time limit of a start, for a zygote beside the time that it takes to be ready: the agent cleans up after a failed start.
const START: Duration = START_LIMIT.saturating_add(KILL_LIMIT).saturating_add(SHORT);
/// Time for the answer to arrive, on top of the agent's own limit.
const GRACE: Duration = Duration::from_secs(5);
/// How long the guest may take to read a request.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// The service's name on the wire.
const SERVICE: &str = "bellows.agent.v1.Agent";
/// Longest answer to `CONNECT`.
const MAX_OK_LINE: usize = 32;
/// Longest excerpt of a text from the guest.
const MAX_TEXT: usize = 300;
/// Most reasons for migrations that are kept.
const MAX_REASONS: usize = 32;

/// A connection to the guest's agent, and the connections to streams of processes. Any number of threads may call at once.
pub(crate) struct AgentClient {
    connection: Connection,
    uds_path: PathBuf,
    streams: Arc<OpenStreams>,
    vm: Arc<EndSignal>,
}

impl AgentClient {
    /// Connects through the vsock device's socket at `uds_path`. The connection ends with the VM.
    pub(crate) fn connect(uds_path: &Path, deadline: Deadline, end: &Arc<EndSignal>) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Connect { path: uds_path.to_owned(), source };
        let asked = ask(uds_path, AGENT_PORT, deadline.left().min(SHORT)).map_err(failed)?;
        let waited = await_readable(&asked, deadline, end).map_err(|nothing| match nothing {
            NothingToRead::Timeout => {
                io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", deadline.limit()))
            }
            NothingToRead::Ended(end) => {
                io::Error::new(io::ErrorKind::ConnectionAborted, format!("the VM has ended: {end}"))
            }
            NothingToRead::System(error) => error,
        });
        let socket = waited.and_then(|()| answered(asked, deadline.left().min(SHORT))).map_err(failed)?;
        let hook = socket.try_clone().map_err(failed)?;
        let connection = Connection::new(socket, SERVICE, WRITE_LIMIT).map_err(failed)?;
        let streams = Arc::<OpenStreams>::default();
        let open = streams.clone();
        end.on_end(move || {
            // It may be closed already.
            let _ = hook.shutdown(Shutdown::Both);
            open.end();
        });
        Ok(Self { connection, uds_path: uds_path.to_owned(), streams, vm: end.clone() })
    }

    /// Calls without a limit end with the connection, which ends with the VM.
    fn call<Answer: Message>(
        &self,
        call: &'static str,
        limit: Option<Duration>,
        request: &impl Message,
    ) -> Result<Answer, AgentError> {
        self.connection(call)?.call(call, request, limit).map_err(|error| call_error(call, error))
    }

    /// The way to the agent. While the VM is paused no call begins, since the guest could not answer. A call that has begun
    /// goes on with the VM; its time runs on meanwhile.
    fn connection(&self, call: &'static str) -> Result<&Connection, AgentError> {
        if self.vm.is_paused() { Err(AgentError::Paused { call }) } else { Ok(&self.connection) }
    }

    /// Makes a call that removes something. An earlier call, whose answer came too late, may already have removed it.
    fn remove(&self, call: &'static str, limit: Duration, request: &impl Message) -> Result<(), AgentError> {
        match self.connection(call)?.call::<agent::Empty>(call, request, Some(limit)) {
            Err(CallError::Refused { code, .. }) if code == Code::NOT_FOUND.into() => Ok(()),
            Err(error) => Err(call_error(call, error)),
            Ok(_) => Ok(()),
        }
    }

    /// Starts to keep the guest's clock with the host's, with a first look at once.
    pub(crate) fn keep_clock(&self) {
        self.connection.keep_clock();
    }

    /// Tells the agent of the partitions and of all windows of memory, for it to divide base memory.
    pub(crate) fn hello(&self, partitions: usize, windows: ByteSize, limit: Duration) -> Result<GuestInfo, AgentError> {
        const CALL: &str = "Hello";
        let request = agent::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
            partition_bytes: windows.get(),
            ..Default::default()
        };
        let answer: agent::HelloResponse = self.call(CALL, Some(limit), &request)?;
        expect(CALL, "protocol version", answer.protocol_version, PROTOCOL_VERSION)?;
        Ok(GuestInfo {
            agent_version: shown(&answer.agent_version),
            kernel_release: shown(&answer.kernel_release),
            partition_mode: if answer.private_nodes { PartitionMode::Extension } else { PartitionMode::Stock },
            instances_base: ByteSize::bytes(answer.base_bytes),
        })
    }

    /// Returns once the guest's network interfaces are set up. Their gateways and name servers may not answer.
    pub(crate) fn configure_network(&self, setups: &[InterfaceSetup], limit: Duration) -> Result<(), AgentError> {
        let interfaces = setups.iter().map(InterfaceSetup::message).collect();
        let request = agent::ConfigureNetworkRequest { interfaces, ..Default::default() };
        self.call::<agent::Empty>("ConfigureNetwork", Some(limit), &request)?;
        Ok(())
    }

    /// Returns once a driver has bound all of `functions`.
    pub(crate) fn attach(&self, functions: &[PciAddress], limit: Duration) -> Result<(), AgentError> {
        let request = devices(functions, limit);
        self.call::<agent::Empty>("AttachDevices", Some(limit), &request)?;
        Ok(())
    }

    /// Returns once `functions` are gone from the guest's buses.
    pub(crate) fn detach(&self, functions: &[PciAddress], limit: Duration) -> Result<(), AgentError> {
        let request = devices(functions, limit);
        self.call::<agent::Empty>("DetachDevices", Some(limit), &request)?;
        Ok(())
    }

    /// Mounts the layers on `disks`, given by serial number and address, lowest first, as image `id`.
    pub(crate) fn mount_image(&self, id: &str, disks: &[(&str, PciAddress)]) -> Result<(), AgentError> {
        let layer = |&(serial, address): &(&str, PciAddress)| agent::Layer {
            serial: serial.to_owned(),
            pci_address: address.to_string(),
            ..Default::default()
        };
        let layers = disks.iter().map(layer).collect();
        let request = agent::MountImageRequest { image_id: id.into(), layers, ..Default::default() };
        self.call::<agent::Empty>("MountImage", Some(image_limit(disks.len())), &request)?;
        Ok(())
    }

    /// Returns once image `id`, of `layers` layers, is gone. It may have to wait for an attempt to mount it.
    pub(crate) fn unmount_image(&self, id: &str, layers: usize) -> Result<(), AgentError> {
        let request = agent::UnmountImageRequest { image_id: id.into(), ..Default::default() };
        self.remove("UnmountImage", image_limit(layers), &request)
    }

    /// Returns once `bytes` of the window at `address` are online on their `node`, with what the driver says then: nothing with a stock
    /// kernel.
    pub(crate) fn await_partition(
        &self,
        node: u32,
        bytes: u64,
        address: u64,
        limit: Duration,
    ) -> Result<Option<GuestDriver>, AgentError> {
        const CALL: &str = "AwaitPartition";
        let request = await_partition(node, bytes, address, limit);
        let answer = self.call(CALL, Some(limit), &request)?;
        GuestDriver::reported(CALL, node, &answer)
    }

    /// The state of the guest's driver for the device of `node`: with `wait`, once the driver is done or time is nearly up. `None` with
    /// a stock kernel. And what it has cost the guest to give memory back since boot, if it counts that.
    pub(crate) fn await_driver(
        &self,
        node: u32,
        wait: bool,
        limit: Duration,
    ) -> Result<(Option<GuestDriver>, Option<ReclaimCost>), AgentError> {
        const CALL: &str = "AwaitDriver";
        let timeout_ms = if wait { agents_share(limit) } else { 1 };
        let request = agent::AwaitDriverRequest { node, timeout_ms, ..Default::default() };
        let answer: agent::DriverReport = self.call(CALL, Some(limit), &request)?;
        Ok((GuestDriver::reported(CALL, node, &answer)?, answer.reclaim.as_ref().map(ReclaimCost::from)))
    }

    pub(crate) fn inspect_partition(&self, node: u32) -> Result<PartitionUse, AgentError> {
        const CALL: &str = "InspectPartition";
        let request = agent::InspectPartitionRequest { node, ..Default::default() };
        let answer = self.call(CALL, Some(SHORT), &request)?;
        PartitionUse::parse(CALL, node, answer)
    }

    /// Starts an instance; returns the number of its first process in the guest.
    pub(crate) fn start_instance(&self, request: &agent::StartInstanceRequest) -> Result<u32, AgentError> {
        Ok(self.start("StartInstance", request, start_limit(request))?.pid)
    }

    /// The same once `bytes` of the window at `address` are online on the instance's node, for which it waits for `limit` at most. Returns
    /// what the driver says, too.
    pub(crate) fn start_instance_plugged(
        &self,
        mut request: agent::StartInstanceRequest,
        bytes: u64,
        address: u64,
        limit: Duration,
    ) -> Result<(u32, Option<GuestDriver>), AgentError> {
        const CALL: &str = "StartInstance";
        request.partition = Some(await_partition(request.node, bytes, address, limit)).into();
        let answer = self.start(CALL, &request, start_limit(&request).saturating_add(limit))?;
        let driver = answer.driver.as_ref().map(|driver| GuestDriver::parse(CALL, driver)).transpose()?;
        Ok((answer.pid, driver))
    }

    /// Starts another process in an instance; returns its number in the guest.
    pub(crate) fn start_process(&self, request: &agent::StartProcessRequest) -> Result<u32, AgentError> {
        Ok(self.start("StartProcess", request, START)?.pid)
    }

    fn start(
        &self,
        call: &'static str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<agent::StartResponse, AgentError> {
        let answer = self.connection(call)?.call::<agent::StartResponse>(call, request, Some(limit));
        let answer = answer.map_err(|error| match error {
            CallError::Refused { code, message } => {
                AgentError::NotStarted { reason: start_failure(code), message: shown(&message) }
            }
            error => call_error(call, error),
        })?;
        if answer.pid == 0 {
            return Err(answer_error(call, "process number", 0, "a process".into()));
        }
        Ok(answer)
    }

    /// Waits for the end of a process.
    pub(crate) fn wait_process(&self, instance: &InstanceId, id: &ProcessId) -> Result<ExitStatus, AgentError> {
        const CALL: &str = "WaitProcess";
        let answer: agent::ExitStatus = self.call(CALL, None, &process(instance, id))?;
        let code = u8::try_from(answer.exit_code)
            .map_err(|_| answer_error(CALL, "exit code", answer.exit_code, "0 to 255".into()))?;
        let oom_limit = oom_limit(CALL, &answer)?;
        Ok(ExitStatus { code, oom_killed: oom_limit.is_some(), oom_limit })
    }

    pub(crate) fn signal_process(&self, instance: &InstanceId, id: &ProcessId, signal: u32) -> Result<(), AgentError> {
        let request = agent::SignalProcessRequest {
            instance_id: instance.to_string(),
            process_id: id.to_string(),
            signal,
            ..Default::default()
        };
        self.call::<agent::Empty>("SignalProcess", Some(SHORT), &request)?;
        Ok(())
    }

    pub(crate) fn resize_terminal(
        &self,
        instance: &InstanceId,
        id: &ProcessId,
        size: TerminalSize,
    ) -> Result<(), AgentError> {
        let request = agent::ResizeTerminalRequest {
            instance_id: instance.to_string(),
            process_id: id.to_string(),
            size: Some(terminal_size(size)).into(),
            ..Default::default()
        };
        self.call::<agent::Empty>("ResizeTerminal", Some(SHORT), &request)?;
        Ok(())
    }

    /// Returns once the process is gone; the instance's first stays.
    pub(crate) fn remove_process(
        &self,
        instance: &InstanceId,
        id: &ProcessId,
        limit: Duration,
    ) -> Result<(), AgentError> {
        self.remove("RemoveProcess", limit, &process(instance, id))
    }

    /// Returns once the instance is gone.
    pub(crate) fn remove_instance(&self, id: &InstanceId, limit: Duration) -> Result<(), AgentError> {
        let request = agent::InstanceRequest { instance_id: id.to_string(), ..Default::default() };
        self.remove("RemoveInstance", limit, &request)
    }

    pub(crate) fn statistics(&self, limit: Duration) -> Result<GuestStatistics, AgentError> {
        let answer = self.call::<agent::StatisticsResponse>("Statistics", Some(limit), &agent::Empty::new())?;
        let reasons = answer.migrated_by_reason.into_iter().take(MAX_REASONS);
        Ok(GuestStatistics {
            migrated_pages: answer.migrated_pages,
            migrated_by_reason: reasons.map(|count| (shown(&count.reason), count.pages)).collect(),
            zeroed_pages: answer.zeroed_pages,
            cpu: Duration::from_nanos(answer.cpu_ns),
        })
    }

    /// What it has cost the guest to give memory back, since boot.
    pub(crate) fn count_reclaim(&self, limit: Duration) -> Result<ReclaimCost, AgentError> {
        let answer = self.call::<agent::ReclaimCounters>("CountReclaim", Some(limit), &agent::Empty::new())?;
        Ok(ReclaimCost::from(&answer))
    }

    /// Has the guest shut down in good order. It starts when this connection ends, so the call closes the connection.
    pub(crate) fn shutdown(&self, limit: Duration) -> Result<(), AgentError> {
        self.call::<agent::Empty>("Shutdown", Some(limit), &agent::Empty::new())?;
        self.connection.close();
        Ok(())
    }
}

/// Asks the vsock device for a connection to the agent's `port`, and waits for it.
fn handshake(uds_path: &Path, port: u32, limit: Duration) -> io::Result<UnixStream> {
    answered(ask(uds_path, port, limit)?, limit)
}

/// Asks the vsock device for a connection to the agent's `port`; writing may take `limit` here and later.
fn ask(uds_path: &Path, port: u32, limit: Duration) -> io::Result<UnixStream> {
    let mut socket = UnixStream::connect(uds_path)?;
    socket.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    Ok(socket)
}

/// Reads the vsock device's answer.
fn answered(socket: UnixStream, limit: Duration) -> io::Result<UnixStream> {
    let line = read_line(&socket, MAX_OK_LINE, limit)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no program listens in the guest"));
    }
    let port = line.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    if !port.is_some_and(|port| !port.is_empty() && port.iter().all(u8::is_ascii_digit)) {
        let message = format!("`{}` instead of `OK <port>`", shown(&String::from_utf8_lossy(&line)));
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(socket)
}

fn devices(functions: &[PciAddress], limit: Duration) -> agent::DevicesRequest {
    agent::DevicesRequest {
        pci_addresses: functions.iter().map(PciAddress::to_string).collect(),
        timeout_ms: agents_share(limit),
        ..Default::default()
    }
}

fn await_partition(node: u32, bytes: u64, address: u64, limit: Duration) -> agent::AwaitPartitionRequest {
    agent::AwaitPartitionRequest { node, bytes, address, timeout_ms: agents_share(limit), ..Default::default() }
}

fn start_limit(request: &agent::StartInstanceRequest) -> Duration {
    if request.zygote.is_some() { START.saturating_add(READY_LIMIT) } else { START }
}

fn image_limit(layers: usize) -> Duration {
    SHORT.saturating_add(DISK_LIMIT.saturating_mul(u32::try_from(layers).unwrap_or(u32::MAX)))
}

fn process(instance: &InstanceId, id: &ProcessId) -> agent::ProcessRequest {
    agent::ProcessRequest { instance_id: instance.to_string(), process_id: id.to_string(), ..Default::default() }
}

pub(crate) fn terminal_size(size: TerminalSize) -> agent::TerminalSize {
    agent::TerminalSize { columns: size.columns.into(), rows: size.rows.into(), ..Default::default() }
}

fn oom_limit(call: &'static str, answer: &agent::ExitStatus) -> Result<Option<OomLimit>, AgentError> {
    let wrong = |limit: &str| {
        answer_error(call, "limit of memory", limit, "a limit if the kernel killed for lack of memory".into())
    };
    match (answer.oom_killed, answer.oom_limit.enum_value()) {
        (false, Ok(agent::OomLimit::NONE)) => Ok(None),
        (true, Ok(agent::OomLimit::PARTITION)) => Ok(Some(OomLimit::Partition)),
        (true, Ok(agent::OomLimit::BASE)) => Ok(Some(OomLimit::Base)),
        (true, Ok(agent::OomLimit::MEMORY)) => Ok(Some(OomLimit::MemoryMax)),
        (true, Ok(agent::OomLimit::GUEST)) => Ok(Some(OomLimit::Guest)),
        (_, Ok(limit)) => Err(wrong(&format!("{limit:?}"))),
        (_, Err(number)) => Err(wrong(&number.to_string())),
    }
}

/// The agent's share of a call's limit, in milliseconds: its answer must arrive within the limit, even the answer that time is
/// up. At least 1, since 0 means the agent's own limit.
fn agents_share(limit: Duration) -> u32 {
    let share = limit.saturating_sub(GRACE.min(limit / 4));
    u32::try_from(share.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn start_failure(code: EnumOrUnknown<Code>) -> StartFailure {
    match code.enum_value() {
        Ok(Code::NOT_FOUND) => StartFailure::CommandNotFound,
        Ok(Code::PERMISSION_DENIED) => StartFailure::CommandNotExecutable,
        _ => StartFailure::Other(error::reason(code)),
    }
}

fn call_error(call: &'static str, error: CallError) -> AgentError {
    match error {
        CallError::Timeout(limit) => AgentError::Timeout { call, limit },
        CallError::Refused { code, message } => {
            AgentError::Refused { call, message: shown(&message), reason: error::reason(code) }
        }
        CallError::Lost(message) => AgentError::Lost { call, message: shown(&message) },
    }
}

fn expect(call: &'static str, what: &'static str, found: u32, expected: u32) -> Result<(), AgentError> {
    if found == expected { Ok(()) } else { Err(answer_error(call, what, found, expected.to_string())) }
}

fn answer_error(call: &'static str, what: &'static str, value: impl ToString, expected: String) -> AgentError {
    AgentError::Answer { call, what, value: value.to_string(), expected }
}

/// A text of the guest, shortened and escaped for printing.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_TEXT).flat_map(printable).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push_str("...");
    }
    shown
}

fn printable(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = (!character.is_control()).then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
