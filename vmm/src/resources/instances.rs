//! Instances: functions that run in a VM, each in a container and, as a rule, in a partition.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bellows_memory::{ByteSize, PartitionId};
use bellows_protocol::agent::{self, StartInstanceRequest};
use bellows_protocol::stream::StreamName;
pub use bellows_protocol::user::{Account, User};
use bellows_protocol::values::{ImageId, InstanceId, MIN_BASE_LIMIT, ProcessId, ValueError, check_command};
use bellows_protocol::volume::Volume;

use super::error::InstanceError;
use super::freeze::{self, FreezeReport, ThawReport};
use super::instance_network::InstanceNetwork;
use super::partitions::{Entry, Home, Partitions};
use super::processes::{Forwarding, Process, ProcessSpec};
use super::scratch::{ScratchDisks, ScratchSpec};
use crate::deadline::Deadline;
use crate::guest::agent::{AgentClient, AgentError};
use crate::guest::session::Session;
use crate::model::{ExitStatus, PlugReport};

/// Default limit on the processes and threads of an instance.
pub const DEFAULT_PIDS_MAX: u32 = 1024;

/// Defaults and limits of a VM's instances.
pub(crate) struct Instances {
    /// Base memory of an instance that names no limit.
    pub(crate) base_limit: Option<ByteSize>,
    /// All base memory.
    pub(crate) memory: ByteSize,
    pub(crate) scratch: ScratchDisks,
}

impl Instances {
    /// Starts an instance.
    pub(crate) fn start(
        &self,
        session: &Session,
        partitions: &Partitions,
        spec: &InstanceSpec,
    ) -> Result<Instance, InstanceError> {
        self.start_request(session, partitions, spec, spec.request())
    }

    /// Plugs an instance's partition until it has `size`, and starts the instance there.
    pub(crate) fn plug_and_start(
        &self,
        session: &Session,
        partitions: &Partitions,
        spec: &InstanceSpec,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<(Instance, PlugReport), InstanceError> {
        let id = &spec.id;
        let request = self.request(spec, spec.request())?;
        let partition = spec.partition.ok_or_else(|| InstanceError::NoPartition(id.clone()))?;
        let agent = session.agent()?;
        let (pid, report) = self.scratch.with(agent, (&spec.id, spec.scratch.as_ref()), request, |request| {
            let start = |entry: &Entry, left| {
                let address = entry.window().range().start().0;
                let started = agent.start_instance_plugged(request, size.get(), address, left);
                started.map_err(|source| InstanceError::Agent { action: "start", id: id.clone(), source })
            };
            partitions.plug_for(partition, size, timeout, start)
        })?;
        Ok((self.started(agent, partitions, spec, pid), report))
    }

    /// Starts a zygote.
    pub(crate) fn start_zygote(
        &self,
        session: &Session,
        partitions: &Partitions,
        spec: &ZygoteSpec,
    ) -> Result<Instance, InstanceError> {
        self.start_request(session, partitions, &spec.instance, spec.request())
    }

    fn start_request(
        &self,
        session: &Session,
        partitions: &Partitions,
        spec: &InstanceSpec,
        request: Result<StartInstanceRequest, ValueError>,
    ) -> Result<Instance, InstanceError> {
        let request = self.request(spec, request)?;
        if let Some(partition) = spec.partition
            && partitions.plugged(partition)?.get() == 0
        {
            return Err(InstanceError::NotPlugged { id: spec.id.clone(), partition });
        }
        let agent = session.agent()?;
        let failed = |source| InstanceError::Agent { action: "start", id: spec.id.clone(), source };
        let start = |request| agent.start_instance(&request).map_err(failed);
        let pid = self.scratch.with(agent, (&spec.id, spec.scratch.as_ref()), request, start)?;
        Ok(self.started(agent, partitions, spec, pid))
    }

    /// The request for an instance of `spec`, with its base limit.
    fn request(
        &self,
        spec: &InstanceSpec,
        request: Result<StartInstanceRequest, ValueError>,
    ) -> Result<StartInstanceRequest, InstanceError> {
        let mut request = request.map_err(|source| InstanceError::Spec { id: spec.id.clone(), source })?;
        let base_limit = spec.base_limit.or(self.base_limit).unwrap_or_default();
        check_base_limit(&spec.id, base_limit, self.memory)?;
        request.base_limit_bytes = base_limit.get();
        Ok(request)
    }

    /// Removes an instance by its name.
    pub(crate) fn remove(
        &self,
        session: &Session,
        partitions: &Partitions,
        id: &InstanceId,
        timeout: Duration,
    ) -> Result<(), InstanceError> {
        remove(session.agent()?, &self.scratch, id, timeout)?;
        partitions.forget_frozen(id);
        Ok(())
    }

    fn started(&self, agent: &Arc<AgentClient>, partitions: &Partitions, spec: &InstanceSpec, pid: u32) -> Instance {
        tracing::debug!(instance = %spec.id, pid, "started an instance");
        let home = spec.partition.map(|partition| partitions.home(partition));
        Instance { home, scratch: self.scratch.clone(), ..Instance::new(spec.id.clone(), pid, agent.clone()) }
    }
}

/// The program of an instance, and its limits.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Its name, unique in the VM.
    pub id: InstanceId,
    /// A mounted image ([`Vm::mount_image`](crate::Vm::mount_image), [`Vm::attach_image`](crate::Vm::attach_image)).
    pub image: ImageId,
    /// Its first process, with which it ends.
    pub process: ProcessSpec,
    /// The partition that its memory comes from; `None` is base memory.
    pub partition: Option<PartitionId>,
    /// Its cgroup's `memory.max`; `None` is its partition's size, or a little less where the limit must also cover memory
    /// outside the partition; without a partition it is the base limit. With the guest memory extension it must be at least the
    /// partition's size: plug less instead.
    pub memory_max: Option<ByteSize>,
    /// Its base limit. Base memory holds page tables, inodes, page cache, sockets and pipes, and without a partition all else.
    /// `None` is the VM's ([`crate::VmConfig::base_limit`]), or an equal share.
    pub base_limit: Option<ByteSize>,
    /// What it is connected to.
    pub network: InstanceNetwork,
    /// Most processes and threads; 0 is half of the guest kernel's limit for all instances.
    pub pids_max: u32,
    /// What it finds beside its image, read-only: images of one layer that the VM has mounted.
    pub volumes: Vec<Volume>,
    /// A disk of its own to write on, from its start to its removal.
    pub scratch: Option<ScratchSpec>,
    /// The zygote that its first process is a fork of ([`Vm::start_zygote`](crate::Vm::start_zygote)). Image and user are the
    /// zygote's.
    pub fork_of: Option<InstanceId>,
}

impl InstanceSpec {
    /// Runs `argv` as root in `/`, in base memory.
    #[must_use]
    pub fn new(id: InstanceId, image: ImageId, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id,
            image,
            process: ProcessSpec::new(argv),
            partition: None,
            memory_max: None,
            base_limit: None,
            network: InstanceNetwork::None,
            pids_max: DEFAULT_PIDS_MAX,
            volumes: Vec::new(),
            scratch: None,
            fork_of: None,
        }
    }

    /// The same as a fork of `zygote`.
    #[must_use]
    pub fn forked_from(mut self, zygote: InstanceId) -> Self {
        self.fork_of = Some(zygote);
        self
    }

    /// The same with its memory in partition `id`, which must be plugged.
    #[must_use]
    pub fn in_partition(mut self, id: PartitionId) -> Self {
        self.partition = Some(id);
        self
    }

    /// The same connected to `network`.
    #[must_use]
    pub fn on_network(mut self, network: InstanceNetwork) -> Self {
        self.network = network;
        self
    }

    /// Checks everything that the guest would refuse without looking at the image.
    ///
    /// # Errors
    /// The first invalid value.
    pub fn validate(&self) -> Result<(), ValueError> {
        self.request().map(drop)
    }

    fn request(&self) -> Result<StartInstanceRequest, ValueError> {
        let (network, own_network) = self.network.wire()?;
        Volume::check_all(&self.volumes)?;
        self.scratch.iter().try_for_each(|scratch| Volume::check_beside(&self.volumes, &scratch.path))?;
        Ok(StartInstanceRequest {
            volumes: self.volumes.iter().map(Volume::message).collect(),
            instance_id: self.id.to_string(),
            image_id: self.image.to_string(),
            process: Some(self.process.request()?).into(),
            node: self.partition.map_or(0, |partition| partition.get().into()),
            memory_max_bytes: self.memory_max.unwrap_or_default().get(),
            pids_max: self.pids_max,
            network: network.into(),
            own_network: own_network.into(),
            fork_of: self.fork_of.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..Default::default()
        })
    }
}

/// A zygote: an instance whose process gets ready once, and that other instances are forked from.
#[derive(Clone, Debug)]
pub struct ZygoteSpec {
    /// What it runs, and where. Its forks have the same image and user, and partitions of their own.
    pub instance: InstanceSpec,
    /// How its process gets ready.
    pub runtime: ZygoteRuntime,
}

/// How the process of a zygote gets ready.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ZygoteRuntime {
    /// It speaks the protocol of `docs/zygotes.md`.
    #[default]
    Own,
    /// It is a Python interpreter, given by the instance's arguments, with a launcher of the agent's.
    Python {
        /// Names of modules to import, in this order.
        modules: Vec<String>,
    },
}

impl ZygoteSpec {
    /// The image's `python3`, as root in base memory, with these modules imported.
    #[must_use]
    pub fn python(id: InstanceId, image: ImageId, modules: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let modules = modules.into_iter().map(Into::into).collect();
        Self { instance: InstanceSpec::new(id, image, ["python3"]), runtime: ZygoteRuntime::Python { modules } }
    }

    /// A program that speaks the protocol itself.
    #[must_use]
    pub fn new(instance: InstanceSpec) -> Self {
        Self { instance, runtime: ZygoteRuntime::Own }
    }

    /// The same with its memory in partition `id`, which must be plugged.
    #[must_use]
    pub fn in_partition(mut self, id: PartitionId) -> Self {
        self.instance.partition = Some(id);
        self
    }

    fn request(&self) -> Result<StartInstanceRequest, ValueError> {
        if let Some(zygote) = &self.instance.fork_of {
            return Err(ValueError::ForkedZygote(zygote.clone()));
        }
        let zygote = match &self.runtime {
            ZygoteRuntime::Own => agent::Zygote::new(),
            ZygoteRuntime::Python { modules } => {
                agent::Zygote { python: true, modules: modules.clone(), ..Default::default() }
            }
        };
        // The launcher takes some room beside them.
        check_command(&[&self.instance.process.argv[..], &zygote.modules].concat(), &self.instance.process.env)?;
        Ok(StartInstanceRequest { zygote: Some(zygote).into(), ..self.instance.request()? })
    }
}

/// A function that runs, or has run, in a VM. Dropping it changes nothing: only [`Instance::remove`] and
/// [`Vm::remove_instance`](crate::Vm::remove_instance) remove the instance.
pub struct Instance {
    id: InstanceId,
    init: Process,
    home: Option<Home>,
    scratch: ScratchDisks,
    pub(super) agent: Arc<AgentClient>,
}

impl Instance {
    pub(crate) fn new(id: InstanceId, pid: u32, agent: Arc<AgentClient>) -> Self {
        let init = Process::new(id.clone(), ProcessId::init(), pid, agent.clone());
        Self { id, init, home: None, scratch: ScratchDisks::default(), agent }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Its first process.
    #[must_use]
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// Passes the output of its first process to `stream` on to `sink`, on a thread of its own, until it ends. An instance
    /// waits while its output is not read.
    ///
    /// # Errors
    /// The stream is taken or the thread could not be made.
    pub fn forward(&self, stream: StreamName, sink: impl Write + Send + 'static) -> Result<Forwarding, InstanceError> {
        self.init.connect(stream)?.forward(sink)
    }

    /// Waits for the end of its first process.
    ///
    /// # Errors
    /// The agent failed, or the VM has ended.
    pub fn wait(&self) -> Result<ExitStatus, InstanceError> {
        self.init.wait()
    }

    /// Sends its first process a signal, by number.
    ///
    /// # Errors
    /// The process is gone, or the signal does not exist.
    pub fn signal(&self, number: u32) -> Result<(), InstanceError> {
        self.init.signal(number)
    }

    /// Kills its remaining processes and removes its resources, its scratch disk with them: then its whole partition can be unplugged, and its name
    /// is free. An instance that is gone already counts as removed.
    ///
    /// # Errors
    /// The agent failed, or did not finish within `timeout` and may still be working. Try again then: the instance stays until
    /// it is removed.
    #[tracing::instrument(name = "remove_instance", level = "debug", skip_all, fields(instance = %self.id))]
    pub fn remove(&self, timeout: Duration) -> Result<(), InstanceError> {
        remove(&self.agent, &self.scratch, &self.id, timeout)?;
        if let Some(entry) = self.home.as_ref().and_then(|home| home.entry().ok()) {
            entry.forget_frozen(&self.id);
        }
        Ok(())
    }

    /// Stops all its processes where they are, and gives back what it does not need until [`Instance::thaw`]: of its partition
    /// what is free goes back to the host, and the rest is pushed out to the host's swap. With a stock kernel nothing is unplugged,
    /// without swap nothing is pushed out; the report says so.
    ///
    /// A frozen instance makes no progress. It can be removed, and its partition unplugged; signals other than 9 wait for the
    /// thaw. Another process in it and forks of it are refused. To freeze it again tries again to give memory back.
    ///
    /// # Errors
    /// It has ended, a process is being started in it, or its processes did not stop in time: then it goes on. After
    /// [`InstanceError::Partition`] it is frozen, and memory did not go back. If the agent did not answer it may be frozen.
    pub fn freeze(&self, timeout: Duration) -> Result<FreezeReport, InstanceError> {
        freeze::freeze(&self.agent, &self.id, self.home.as_ref(), timeout, freeze::host_swap)
    }

    /// Plugs what the freeze has unplugged, and has it go on. What was pushed out comes back as it is touched. An instance that
    /// is not frozen is left as it is.
    ///
    /// # Errors
    /// [`InstanceError::Partition`] if its partition cannot be plugged, for example because the host has too little memory: it stays
    /// frozen. The agent failed. Try again then.
    pub fn thaw(&self, timeout: Duration) -> Result<ThawReport, InstanceError> {
        freeze::thaw(&self.agent, &self.id, self.home.as_ref(), timeout)
    }
}

/// 0 means no limit.
fn check_base_limit(id: &InstanceId, limit: ByteSize, memory: ByteSize) -> Result<(), InstanceError> {
    if limit.get() == 0 || (MIN_BASE_LIMIT..=memory.get()).contains(&limit.get()) {
        return Ok(());
    }
    Err(InstanceError::BaseLimit { id: id.clone(), limit, memory })
}

fn remove(
    agent: &AgentClient,
    scratch: &ScratchDisks,
    id: &InstanceId,
    timeout: Duration,
) -> Result<(), InstanceError> {
    let deadline = Deadline::after(timeout);
    agent.remove_instance(id, deadline.left()).map_err(failed("remove", id))?;
    scratch.remove(agent, id, deadline.left())
}

fn failed(action: &'static str, id: &InstanceId) -> impl FnOnce(AgentError) -> InstanceError {
    let id = id.clone();
    move |source| InstanceError::Agent { action, id, source }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bellows_protocol::agent::{Empty, InstanceRequest};
    use bellows_protocol::agent_ttrpc::Agent;
    use ttrpc::{Code, TtrpcContext};

    use super::*;
    use crate::guest::agent::fixture::Fixture;

    /// An agent that removes an instance only on a further attempt.
    #[derive(Default)]
    struct Stalled(Mutex<Vec<String>>);

    impl Agent for Stalled {
        fn remove_instance(&self, _: &TtrpcContext, request: InstanceRequest) -> ttrpc::Result<Empty> {
            let mut asked = self.0.lock().unwrap();
            asked.push(request.instance_id);
            let refusal = |code, message| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)));
            match asked.len() {
                1 => refusal(Code::DEADLINE_EXCEEDED, "a task is left"),
                2 => Ok(Empty::new()),
                _ => refusal(Code::NOT_FOUND, "there is no instance"),
            }
        }
    }

    #[test]
    fn a_removal_that_failed_can_be_tried_again() {
        let fake = Arc::new(Stalled::default());
        let fixture = Fixture::with_agent(fake.clone());
        let agent = Arc::new(fixture.connect().unwrap());
        let limit = Duration::from_secs(30);
        let instance = Instance::new("a".parse().unwrap(), 1, agent.clone());
        assert!(matches!(instance.remove(limit), Err(InstanceError::Agent { action: "remove", .. })));
        instance.remove(limit).unwrap();
        instance.remove(limit).expect("an instance that is gone counts as removed");
        remove(&agent, &ScratchDisks::default(), &"b".parse().unwrap(), limit).expect("the name suffices");
        assert_eq!(*fake.0.lock().unwrap(), ["a", "a", "a", "b"]);
    }

    fn spec(argv: &[&str]) -> InstanceSpec {
        InstanceSpec::new("a".parse().unwrap(), "image".parse().unwrap(), argv.iter().copied())
    }

    #[test]
    fn a_limit_on_base_memory_fits_base_memory() {
        let check = |limit| check_base_limit(&"a".parse().unwrap(), limit, ByteSize::mib(512));
        for good in [0, 4 << 20, 512 << 20] {
            check(ByteSize::bytes(good)).unwrap();
        }
        for bad in [1, (4 << 20) - 1, (512 << 20) + 1, u64::MAX] {
            let error = check(ByteSize::bytes(bad)).unwrap_err().to_string();
            assert!(error.contains(&ByteSize::bytes(bad).to_string()) && error.contains("512"), "{error}");
        }
    }

    #[test]
    fn a_zygote_and_its_forks_are_asked_for() {
        let python = ZygoteSpec::python("z".parse().unwrap(), "image".parse().unwrap(), ["json", "ssl"]);
        let request = python.clone().in_partition(PartitionId::new(1).unwrap()).request().unwrap();
        assert_eq!((request.node, &request.process.arguments[..]), (1, &["python3".to_owned()][..]));
        assert!(request.zygote.python && request.zygote.modules == ["json", "ssl"]);
        let own = ZygoteSpec::new(spec(&["/runtime"])).request().unwrap();
        assert!(own.zygote.is_some() && !own.zygote.python);
        let fork = spec(&["python3"]).forked_from("z".parse().unwrap());
        let request = fork.request().unwrap();
        assert_eq!((request.fork_of.as_str(), request.zygote.is_none()), ("z", true));
        assert_eq!(ZygoteSpec::new(fork).request(), Err(ValueError::ForkedZygote("z".parse().unwrap())));
        let modules = ZygoteRuntime::Python { modules: vec!["a\0".into()] };
        assert!(ZygoteSpec { runtime: modules, ..python }.request().is_err());
    }

    #[test]
    fn specifications_that_the_guest_would_refuse_are_refused() {
        let request = spec(&["sh"]).in_partition(PartitionId::new(3).unwrap()).request().unwrap();
        assert_eq!((request.node, request.process.working_directory.as_str(), request.memory_max_bytes), (3, "/", 0));
        assert_eq!(request.network, agent::InstanceNetwork::UNCONNECTED.into());
        let shared = spec(&["sh"]).on_network(InstanceNetwork::Vm).request().unwrap();
        assert_eq!(shared.network, agent::InstanceNetwork::SHARED.into());
        assert!(spec(&[]).request().is_err());
        let refused = |change: fn(&mut ProcessSpec)| {
            let mut spec = spec(&["sh"]);
            change(&mut spec.process);
            spec.request().is_err()
        };
        assert!(refused(|process| process.cwd = "tmp".into()));
        assert!(refused(|process| process.env = vec!["x".into()]));
    }
}
