//! Answers the monitor's requests. Values are checked here, once; the calls take types that carry the rules.

mod answers;
#[cfg(any(test, feature = "testing"))]
pub mod exercise;

use std::os::fd::RawFd;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bellows_protocol::agent::{
    self, AwaitBasePressureRequest, AwaitDriverRequest, AwaitPartitionRequest, BaseMemoryUse, ClockRequest,
    ClockResponse, ConfigureNetworkRequest, Copy, CopyDirection, DevicesRequest, DriverReport, Empty, ExitStatus,
    FreezeInstanceRequest, FrozenInstance, HelloRequest, HelloResponse, InspectPartitionRequest, InstanceRequest,
    InstancesMemory, Layer, MountImageRequest, PartitionDriver, PartitionMemory, Process, ProcessRequest, ReasonCount,
    ReclaimCounters, ResizeBaseRequest, ResizeTerminalRequest, SignalProcessRequest, StartInstanceRequest,
    StartProcessRequest, StartResponse, StatisticsResponse, UnmountImageRequest, Zygote,
};
use bellows_protocol::agent_ttrpc::{Agent, create_agent};
use bellows_protocol::network::{OwnNetworkSetup, parse_interfaces};
use bellows_protocol::values::{
    InstanceId, MAX_DEVICES, MAX_LAYERS, Node, PciAddress, ProcessId, TerminalSize, ValueError, check_command,
    check_working_directory, parse_all,
};
use bellows_protocol::volume::Volume;
use bellows_protocol::{AGENT_PORT, DISK_LIMIT, PROTOCOL_VERSION};
use nix::sys::signal::Signal;
use ttrpc::{AcceptHook, ConnectionData, HookError, HookOutput, TtrpcContext};

use self::answers::{base_memory_use, frozen_instance, holder, instance_memory, oom_limit, partition_driver};
use crate::clock::{self, Correction};
use crate::container::copy::{Copying, Direction};
use crate::container::plan::ProcessSpec;
use crate::elastic::ElasticBase;
use crate::error::{AgentError, Result};
use crate::image::{self, Images};
use crate::instance::{InstanceNetwork, Instances, Program, Request, Role};
use crate::network::Network;
use crate::partition::MemoryInfo;
use crate::pci::Sysfs;
use crate::scratch::ScratchDisk;
use crate::shutdown;
use crate::statistics::{self, Migrations, VmStat};
use crate::streams::StdioSpec;
use crate::sys;
use crate::uevent::Uevents;
use crate::vsock;
use crate::zygote::{CONTROL, CONTROL_VARIABLE, PYTHON_LAUNCHER};

/// The parts that requests act on.
pub struct Service {
    /// Announcements of devices.
    pub uevents: Arc<Uevents>,
    /// Devices.
    pub sysfs: Sysfs,
    /// Memory.
    pub memory: MemoryInfo,
    /// Base memory as it grows and shrinks.
    pub elastic: ElasticBase,
    /// Images.
    pub images: Arc<Images>,
    /// The VM's network.
    pub network: Arc<Network>,
    /// Instances.
    pub instances: Arc<Instances>,
    /// Counter of migrations, started by the first request for it.
    pub migrations: LazyLock<Result<Arc<Migrations>>>,
}

/// Starts to answer requests.
///
/// The library keeps between `min` and `max` *idle* threads per connection and starts more whenever fewer than `min` are
/// left, so requests that block for long (`WaitProcess`) never delay others.
///
/// # Errors
/// The guest has no vsock.
pub fn start(service: Arc<Service>) -> ttrpc::Result<ttrpc::Server> {
    let mut server = ttrpc::Server::new()
        .bind(&format!("vsock://-1:{AGENT_PORT}"))?
        .set_accept_hook(HostOnly)
        .register_service(create_agent(service))
        .set_thread_count_min(2)
        .set_thread_count_default(4)
        .set_thread_count_max(16);
    server.start()?;
    Ok(server)
}

/// Admits the host only.
#[derive(Debug)]
struct HostOnly;

impl AcceptHook for HostOnly {
    fn on_accept(&self, connection: RawFd) -> std::result::Result<HookOutput, HookError> {
        // The library keeps the connection open while it asks about it.
        match sys::duplicate(connection).and_then(|connection| vsock::check_host(&connection)) {
            Ok(()) => Ok(HookOutput { data: ConnectionData::default(), payload_transform: None }),
            Err(error) => {
                tracing::warn!(%error, "refused a connection that is not from the host");
                Err(HookError::Io(error))
            }
        }
    }
}

impl Agent for Service {
    fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        if request.protocol_version != PROTOCOL_VERSION {
            // The monitor decides: it is the one that can tell its user.
            tracing::warn!(theirs = request.protocol_version, ours = PROTOCOL_VERSION, "protocol versions differ");
        }
        let base_bytes = self.instances.divide_base(request.partitions, request.partition_bytes)?;
        let name = nix::sys::utsname::uname().map_err(AgentError::system("uname"))?;
        Ok(HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: name.release().to_string_lossy().into_owned(),
            private_nodes: self.memory.has_private_nodes(),
            base_bytes,
            ..Default::default()
        })
    }

    fn configure_network(&self, _: &TtrpcContext, request: ConfigureNetworkRequest) -> ttrpc::Result<Empty> {
        self.network.configure(&parse_interfaces(&request.interfaces).map_err(AgentError::Value)?)?;
        Ok(Empty::new())
    }

    fn attach_devices(&self, _: &TtrpcContext, request: DevicesRequest) -> ttrpc::Result<Empty> {
        let addresses = Self::addresses(&request)?;
        self.sysfs.attach(&self.uevents, &addresses, limit(request.timeout_ms))?;
        Ok(Empty::new())
    }

    fn detach_devices(&self, _: &TtrpcContext, request: DevicesRequest) -> ttrpc::Result<Empty> {
        let addresses = Self::addresses(&request)?;
        self.images.check_unused(&addresses)?;
        self.instances.scratch_users.check_unused(&addresses)?;
        self.sysfs.detach(&addresses)?;
        Ok(Empty::new())
    }

    fn mount_image(&self, _: &TtrpcContext, request: MountImageRequest) -> ttrpc::Result<Empty> {
        self.do_mount_image(&request)?;
        Ok(Empty::new())
    }

    fn unmount_image(&self, _: &TtrpcContext, request: UnmountImageRequest) -> ttrpc::Result<Empty> {
        self.images.unmount(&request.image_id.parse().map_err(AgentError::Value)?)?;
        Ok(Empty::new())
    }

    fn await_partition(&self, _: &TtrpcContext, request: AwaitPartitionRequest) -> ttrpc::Result<DriverReport> {
        let driver = self.await_memory(&request)?;
        Ok(DriverReport { node: request.node, driver: driver.into(), ..Default::default() })
    }

    fn await_driver(&self, _: &TtrpcContext, request: AwaitDriverRequest) -> ttrpc::Result<DriverReport> {
        let node = Node::try_from(request.node).map_err(AgentError::Value)?;
        let driver = self.memory.await_driver(node, limit(request.timeout_ms))?;
        let reclaim = self.reclaim_counters().inspect_err(|error| tracing::debug!(%error, "reclaim is not counted"));
        let driver = driver.as_ref().map(partition_driver);
        let reclaim = reclaim.ok();
        Ok(DriverReport { node: node.number(), driver: driver.into(), reclaim: reclaim.into(), ..Default::default() })
    }

    fn inspect_partition(&self, _: &TtrpcContext, request: InspectPartitionRequest) -> ttrpc::Result<PartitionMemory> {
        let node = Node::try_from(request.node).map_err(AgentError::Value)?;
        Ok(PartitionMemory {
            holders: self.memory.holders(node).into_iter().map(holder).collect(),
            tmpfs_mounts: self.memory.tmpfs_mounts(node),
            ..self.partition_memory(node)?
        })
    }

    fn resize_base(&self, _: &TtrpcContext, request: ResizeBaseRequest) -> ttrpc::Result<BaseMemoryUse> {
        Ok(base_memory_use(self.elastic.resize(request.grown_bytes, limit(request.timeout_ms))?))
    }

    fn await_base_pressure(&self, _: &TtrpcContext, request: AwaitBasePressureRequest) -> ttrpc::Result<BaseMemoryUse> {
        Ok(base_memory_use(self.elastic.await_pressure(limit(request.timeout_ms))?))
    }

    fn start_instance(&self, _: &TtrpcContext, request: StartInstanceRequest) -> ttrpc::Result<StartResponse> {
        Ok(self.do_start_instance(request)?)
    }

    fn start_process(&self, _: &TtrpcContext, request: StartProcessRequest) -> ttrpc::Result<StartResponse> {
        Ok(StartResponse { pid: self.do_start_process(request)?, ..Default::default() })
    }

    fn wait_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<ExitStatus> {
        Ok(self.do_wait(&request)?)
    }

    fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.do_signal(&request)?;
        Ok(Empty::new())
    }

    fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        self.do_resize(&request)?;
        Ok(Empty::new())
    }

    fn remove_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        self.do_remove_process(&request)?;
        Ok(Empty::new())
    }

    fn remove_instance(&self, _: &TtrpcContext, request: InstanceRequest) -> ttrpc::Result<Empty> {
        let id = instance_id(&request.instance_id).map_err(AgentError::Value)?;
        self.instances.remove(&id)?;
        Ok(Empty::new())
    }

    fn freeze_instance(&self, _: &TtrpcContext, request: FreezeInstanceRequest) -> ttrpc::Result<FrozenInstance> {
        let id = instance_id(&request.instance_id).map_err(AgentError::Value)?;
        Ok(frozen_instance(self.instances.freeze(&id, limit(request.timeout_ms))?))
    }

    fn thaw_instance(&self, _: &TtrpcContext, request: InstanceRequest) -> ttrpc::Result<Empty> {
        let id = instance_id(&request.instance_id).map_err(AgentError::Value)?;
        self.instances.thaw(&id)?;
        Ok(Empty::new())
    }

    fn clock(&self, _: &TtrpcContext, request: ClockRequest) -> ttrpc::Result<ClockResponse> {
        clock::correct(Correction::new(request.correction_ns, request.step))?;
        Ok(ClockResponse { realtime_ns: clock::now()?, ..Default::default() })
    }

    fn statistics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<StatisticsResponse> {
        Ok(self.do_statistics()?)
    }

    fn measure_instances(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<InstancesMemory> {
        let instances = self.instances.measure()?.into_iter().map(instance_memory).collect();
        Ok(InstancesMemory { instances, ..Default::default() })
    }

    fn count_reclaim(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ReclaimCounters> {
        Ok(self.reclaim_counters()?)
    }

    fn shutdown(&self, context: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        shutdown::begin(context.fd, Arc::clone(&self.instances), Arc::clone(&self.images))
            .map_err(AgentError::system("clone"))?;
        Ok(Empty::new())
    }
}

impl Service {
    fn addresses(request: &DevicesRequest) -> Result<Vec<PciAddress>> {
        Ok(parse_all(&request.pci_addresses, "PCI addresses", MAX_DEVICES)?)
    }

    fn do_mount_image(&self, request: &MountImageRequest) -> Result<()> {
        let id = request.image_id.parse().map_err(AgentError::Value)?;
        self.images.mount(&self.sysfs, &self.uevents, &id, &layers(&request.layers)?)
    }

    fn await_memory(&self, request: &AwaitPartitionRequest) -> Result<Option<PartitionDriver>> {
        let (node, limit) = (Node::try_from(request.node)?, limit(request.timeout_ms));
        let driver = self.memory.await_memory(&self.uevents, node, request.address, request.bytes, limit)?;
        Ok(driver.as_ref().map(partition_driver))
    }

    fn do_start_instance(&self, mut request: StartInstanceRequest) -> Result<StartResponse> {
        let plugged = request.partition.take();
        let request = instance_request(request)?;
        let driver = plugged.map(|partition| self.await_memory(&partition)).transpose()?.flatten();
        let await_disk = |disk: &ScratchDisk| self.sysfs.await_disk(&self.uevents, &disk.address, DISK_LIMIT);
        let disk = request.scratch.as_ref().map(await_disk).transpose()?;
        let pid = self.instances.start(&request, disk.as_ref().map(|disk| &*disk.node))?;
        Ok(StartResponse { pid, driver: driver.into(), ..Default::default() })
    }

    fn do_wait(&self, request: &ProcessRequest) -> Result<ExitStatus> {
        let (instance, process) = process_id(&request.instance_id, &request.process_id)?;
        let (exit_code, oom) = self.instances.get(&instance)?.wait(&process)?;
        Ok(ExitStatus { exit_code, oom_killed: oom.is_some(), oom_limit: oom_limit(oom).into(), ..Default::default() })
    }

    fn do_signal(&self, request: &SignalProcessRequest) -> Result<()> {
        let (instance, process) = process_id(&request.instance_id, &request.process_id)?;
        self.instances.signal(&instance, &process, signal(request.signal)?)
    }

    fn do_resize(&self, request: &ResizeTerminalRequest) -> Result<()> {
        let (instance, process) = process_id(&request.instance_id, &request.process_id)?;
        let size = TerminalSize::new(request.size.columns, request.size.rows)?;
        self.instances.get(&instance)?.process(&process)?.streams.resize(size)
    }

    fn do_start_process(&self, request: StartProcessRequest) -> Result<u32> {
        let (instance, process) = process_id(&request.instance_id, &request.process_id)?;
        let program = match request.copy.into_option() {
            Some(copy) => Program::Copying(copying(&copy)?),
            None => Program::Command(process_spec(request.process.unwrap_or_default())?),
        };
        self.instances.start_process(&instance, &process, &program)
    }

    fn do_remove_process(&self, request: &ProcessRequest) -> Result<()> {
        let (instance, process) = process_id(&request.instance_id, &request.process_id)?;
        self.instances.remove_process(&instance, &process)
    }

    /// The state of a partition, without its processes.
    fn partition_memory(&self, node: Node) -> Result<PartitionMemory> {
        let memory = self.memory.node(node)?;
        Ok(PartitionMemory {
            node: node.number(),
            total_bytes: memory.total_bytes,
            free_bytes: memory.free_bytes.min(memory.total_bytes),
            anonymous_bytes: memory.anonymous_bytes,
            file_bytes: memory.file_bytes,
            driver: self.memory.driver(node)?.as_ref().map(partition_driver).into(),
            ..Default::default()
        })
    }

    fn migrated_for_unplug(&self, counters: &VmStat) -> Result<u64> {
        if let Some(pages) = counters.migrated_for_unplug() {
            return Ok(pages);
        }
        let unsupported = |_| AgentError::Unsupported("tracepoint migrate:mm_migrate_pages");
        self.migrations.as_ref().map_err(unsupported)?.pages()
    }

    fn reclaim_counters(&self) -> Result<ReclaimCounters> {
        let counters = VmStat::read()?;
        let migrated_pages = self.migrated_for_unplug(&counters)?;
        Ok(ReclaimCounters { migrated_pages, zeroed_pages: counters.zeroed, ..Default::default() })
    }

    fn do_statistics(&self) -> Result<StatisticsResponse> {
        let counters = VmStat::read()?;
        let migrated_pages = self.migrated_for_unplug(&counters)?;
        let count = |(reason, pages)| ReasonCount { reason, pages, ..Default::default() };
        Ok(StatisticsResponse {
            migrated_pages,
            cpu_ns: statistics::cpu_nanoseconds()?,
            zeroed_pages: counters.zeroed,
            migrated_by_reason: counters.migrated.into_iter().map(count).collect(),
            ..Default::default()
        })
    }
}

/// Time limit of a request that names none.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
/// Longest time limit that a request may name.
const MAX_LIMIT: Duration = Duration::from_secs(600);

fn limit(milliseconds: u32) -> Duration {
    match milliseconds {
        0 => DEFAULT_LIMIT,
        milliseconds => Duration::from_millis(milliseconds.into()).min(MAX_LIMIT),
    }
}

fn none_if_zero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn instance_request(request: StartInstanceRequest) -> Result<Request> {
    let network = instance_network(&request)?;
    let volumes = Volume::parse_all(&request.volumes)?;
    let scratch = request.scratch_disk.as_ref().map(|disk| scratch_disk(disk, &volumes)).transpose()?;
    let mut process = request.process.unwrap_or_default();
    let role = match (request.zygote.into_option(), request.fork_of) {
        (Some(_), zygote) if !zygote.is_empty() => return Err(ValueError::ForkedZygote(zygote.parse()?).into()),
        (Some(zygote), _) => {
            as_zygote(&mut process, zygote)?;
            Role::Zygote
        }
        (None, zygote) if zygote.is_empty() => Role::Plain,
        (None, zygote) => Role::ForkOf(zygote.parse()?),
    };
    Ok(Request {
        id: request.instance_id.parse()?,
        image: request.image_id.parse()?,
        role,
        process: process_spec(process)?,
        node: request.node.try_into()?,
        memory_max: none_if_zero(request.memory_max_bytes),
        base_limit: none_if_zero(request.base_limit_bytes),
        pids_max: none_if_zero(request.pids_max),
        network,
        volumes,
        scratch,
    })
}

/// The scratch disk of an instance with these volumes.
fn scratch_disk(disk: &agent::ScratchDisk, volumes: &[Volume]) -> std::result::Result<ScratchDisk, ValueError> {
    let path = disk.path.parse()?;
    Volume::check_beside(volumes, &path)?;
    Ok(ScratchDisk { address: disk.pci_address.parse()?, path })
}

fn instance_network(request: &StartInstanceRequest) -> Result<InstanceNetwork> {
    match request.network.enum_value() {
        Ok(agent::InstanceNetwork::UNCONNECTED) => Ok(InstanceNetwork::Unconnected),
        Ok(agent::InstanceNetwork::SHARED) => Ok(InstanceNetwork::Shared),
        Ok(agent::InstanceNetwork::OWN) => {
            let own = request.own_network.as_ref().ok_or(ValueError::NoAddress)?;
            Ok(InstanceNetwork::Own(OwnNetworkSetup::parse(own)?))
        }
        Err(number) => Err(AgentError::Unknown { kind: "network", name: number.to_string() }),
    }
}

/// Adds what the process of a zygote has beside its own.
fn as_zygote(process: &mut Process, zygote: Zygote) -> std::result::Result<(), ValueError> {
    if zygote.python {
        process.arguments.extend(["-c".into(), PYTHON_LAUNCHER.into()]);
        process.arguments.extend(zygote.modules);
    } else if !zygote.modules.is_empty() {
        return Err(ValueError::Modules(zygote.modules.len()));
    }
    process.environment.push(format!("{CONTROL_VARIABLE}={CONTROL}"));
    Ok(())
}

fn process_spec(process: Process) -> Result<ProcessSpec> {
    check_command(&process.arguments, &process.environment)?;
    let terminal = process.terminal.as_ref().map(|size| TerminalSize::new(size.columns, size.rows)).transpose()?;
    Ok(ProcessSpec {
        working_directory: check_working_directory(&process.working_directory)?.to_owned(),
        arguments: process.arguments,
        environment: process.environment,
        user: process.user.parse()?,
        stdio: terminal.map_or(StdioSpec::Pipes { stdin: process.stdin }, StdioSpec::Terminal),
    })
}

fn copying(copy: &Copy) -> Result<Copying> {
    let direction = match copy.direction.enum_value() {
        Ok(CopyDirection::LOOK) => Direction::Look,
        Ok(CopyDirection::OUT) => Direction::Out,
        Ok(CopyDirection::IN) => Direction::In,
        Err(number) => return Err(AgentError::Unknown { kind: "direction", name: number.to_string() }),
    };
    Ok(Copying { direction, path: check_working_directory(&copy.path)?.to_owned() })
}

/// The layers of an image, at least one.
fn layers(layers: &[Layer]) -> std::result::Result<Vec<image::Layer>, ValueError> {
    if layers.is_empty() {
        return Err(ValueError::NoLayers);
    }
    if layers.len() > MAX_LAYERS {
        return Err(ValueError::TooMany { what: "layers", count: layers.len(), limit: MAX_LAYERS });
    }
    let parse = |layer: &Layer| Ok(image::Layer { serial: layer.serial.parse()?, address: layer.pci_address.parse()? });
    layers.iter().map(parse).collect()
}

fn instance_id(text: &str) -> std::result::Result<InstanceId, ValueError> {
    text.parse()
}

fn process_id(instance: &str, process: &str) -> std::result::Result<(InstanceId, ProcessId), ValueError> {
    Ok((instance.parse()?, process.parse()?))
}

fn signal(number: u32) -> Result<Signal> {
    let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
    signal.ok_or_else(|| AgentError::Unknown { kind: "signal", name: number.to_string() })
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
