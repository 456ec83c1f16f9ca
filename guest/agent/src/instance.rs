//! Instances: each a container with its own cgroup, root file system and partition.
//!
//! What an instance consists of is taken apart in the order that makes its partition cheap to give back: kill the cgroup,
//! wait for its last process (anonymous memory is free then), destroy the sockets that outlive it with what they have to
//! send, unmount overlay and tmpfs (so is tmpfs memory), drop the page cache it brought in (it lies elsewhere where the node
//! is private), remove the cgroup. Nothing is left in the partition that would have to be migrated.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bellows_protocol::KILL_LIMIT;
use bellows_protocol::values::{ImageId, InstanceId, Node, ProcessId};
use nix::sys::signal::Signal;

use crate::base_memory::{BaseMemory, Claim};
use crate::cgroup::{Cgroup, Hierarchy, Limits, OomLimit};
use crate::container::spec::{ProcessSpec, Workload, configuration};
use crate::container::{Joining, Launcher, Process};
use crate::error::{AgentError, Result};
use crate::image::Images;
use crate::partition::MemoryInfo;
use crate::placement::Placement;
use crate::processes::Others;
use crate::reaper::Reaper;
use crate::rootfs::RootFs;
use crate::sockets::Sockets;
use crate::tmpfs::Capacities;
use crate::{files, furnish};

/// Below this lie the instances' mounts.
pub const FOLDER: &str = "/run/i";
/// With a stock kernel an instance's `memory.max` is at least this fraction below its partition's size, and at least this many
/// bytes: its own limit must be met first, as the kernel's answer to a full node may hit a neighbour.
const MARGIN_FRACTION: u64 = 64;
const MARGIN_BYTES: u64 = 8 << 20;

/// What is to be run.
#[derive(Debug)]
pub struct Request {
    /// Its name.
    pub id: InstanceId,
    /// Its image.
    pub image: ImageId,
    /// Its first process.
    pub process: ProcessSpec,
    /// Node of its partition.
    pub node: Node,
    /// Limit in bytes; with a partition, on what comes from there.
    pub memory_max: Option<u64>,
    /// Limit on what lies in base memory, in bytes.
    pub base_limit: Option<u64>,
    /// Limit on processes and threads.
    pub pids_max: Option<u32>,
}

impl Request {
    /// The limits of the instance, which may have `base` bytes of base memory; and where its partition's memory is, and how much.
    pub(crate) fn limits(&self, base: u64, partition: Option<(Placement, u64)>) -> Result<Limits> {
        let (placement, memory_max, outer_max) = match (partition, self.memory_max) {
            (None | Some((Placement::Base, _)), wanted) => {
                (Placement::Base, wanted.map_or(base, |wanted| wanted.min(base)), base)
            }
            (Some((Placement::Private(node), total)), Some(wanted)) if wanted < total => {
                return Err(AgentError::LimitInPartition { wanted, node, total });
            }
            (Some((placement @ Placement::Private(_), total)), _) => (placement, total, base),
            (Some((placement @ Placement::Policy(_), total)), wanted) => {
                let most = below_partition(total, wanted);
                (placement, most, most)
            }
        };
        Ok(Limits { placement, memory_max, outer_max, pids_max: self.pids_max })
    }
}

/// An instance that has been started.
#[derive(Debug)]
pub struct Instance {
    parts: Parts,
    init: Arc<Process>,
    others: Others,
    sockets: Sockets,
    oom_killed: OnceLock<Option<OomLimit>>,
}

impl Instance {
    /// A process of it.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`].
    pub fn process(&self, id: &ProcessId) -> Result<Arc<Process>> {
        if *id == ProcessId::init() { Ok(Arc::clone(&self.init)) } else { self.others.get(id) }
    }

    /// Blocks until a process has ended; answers its exit code, and if the kernel killed for lack of memory, which limit was met.
    ///
    /// # Errors
    /// Those of [`Instance::process`].
    pub fn wait(&self, id: &ProcessId) -> Result<(i32, Option<OomLimit>)> {
        let code = self.process(id)?.exit.wait();
        if *id != ProcessId::init() {
            return Ok((code, self.parts.oom_killed()));
        }
        // Already, so that the kernel has cleaned up its network by the time that memory is to go back.
        self.destroy_sockets();
        Ok((code, self.oom_killed()))
    }

    /// Destroys what would keep memory of its partition, once its first process has ended and the kernel all others with it;
    /// where that fails, memory is given back later.
    fn destroy_sockets(&self) {
        let id = &self.parts.id;
        match self.sockets.destroy() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::debug!(%id, %error, "sockets may stay")
            }
            Err(error) => tracing::warn!(%id, %error, "sockets may stay"),
        }
    }

    fn oom_killed(&self) -> Option<OomLimit> {
        // Kept, because the cgroup may be gone when the next one asks.
        *self.oom_killed.get_or_init(|| self.parts.oom_killed())
    }
}

/// What there is to take apart.
#[derive(Debug)]
struct Parts {
    id: InstanceId,
    image: ImageId,
    limits: Limits,
    folder: PathBuf,
    cgroup: Option<Cgroup>,
    rootfs: RootFs,
    /// Its part of base memory, until all this is gone.
    claim: Claim,
}

#[derive(Debug)]
enum Slot {
    /// Being started or removed.
    Busy,
    Started(Arc<Instance>),
    /// Not started, and not wholly taken apart either.
    Remains(Box<Parts>),
}

/// Why an instance was not started, and what could not be taken apart of it.
struct Failure {
    error: AgentError,
    remains: Option<Box<Parts>>,
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self { error, remains: None }
    }
}

/// All instances.
#[derive(Debug)]
pub struct Instances {
    table: Mutex<HashMap<InstanceId, Slot>>,
    images: Arc<Images>,
    hierarchy: Hierarchy,
    launcher: Launcher,
    memory: MemoryInfo,
    base: Arc<BaseMemory>,
    reaper: Arc<Reaper>,
    folder: PathBuf,
    kill_limit: Duration,
}

impl Instances {
    /// No instances yet.
    pub fn new(
        images: Arc<Images>,
        hierarchy: Hierarchy,
        launcher: Launcher,
        memory: MemoryInfo,
        base: Arc<BaseMemory>,
        reaper: Arc<Reaper>,
    ) -> Self {
        let (folder, kill_limit) = (FOLDER.into(), KILL_LIMIT);
        Self { table: Mutex::default(), images, hierarchy, launcher, memory, base, reaper, folder, kill_limit }
    }

    /// Divides base memory, now that it is known that there are `partitions`, whose windows are `partition_bytes` together;
    /// answers what all instances may have of it.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn divide_base(&self, partitions: u32, partition_bytes: u64) -> Result<u64> {
        let all = self.base.divide(partitions, partition_bytes);
        // With a stock kernel memory of partitions counts, too.
        let only_base = partitions == 0 || self.memory.has_private_nodes();
        self.hierarchy.limit_memory(only_base.then(|| self.base.limit()))?;
        Ok(all)
    }

    /// Starts an instance; answers its first process's number.
    ///
    /// # Errors
    /// [`AgentError::Exists`]; what any of its parts fails with. Nothing is left of it then, or what can be removed as an
    /// instance.
    pub fn start(&self, request: &Request) -> Result<u32> {
        {
            let mut table = self.lock();
            if table.contains_key(&request.id) {
                return Err(AgentError::Exists { kind: "instance", name: request.id.to_string() });
            }
            table.insert(request.id.clone(), Slot::Busy);
        }
        match self.build(request) {
            Ok(instance) => {
                let pid = instance.init.pid.as_raw().unsigned_abs();
                self.finish(&request.id, Some(Slot::Started(Arc::new(instance))));
                Ok(pid)
            }
            Err(Failure { error, remains }) => {
                self.finish(&request.id, remains.map(Slot::Remains));
                Err(error)
            }
        }
    }

    /// What becomes of an instance that was busy.
    fn finish(&self, id: &InstanceId, slot: Option<Slot>) {
        let mut table = self.lock();
        match slot {
            Some(slot) => table.insert(id.clone(), slot),
            None => table.remove(id),
        };
    }

    /// An instance that has been started.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`].
    pub fn get(&self, id: &InstanceId) -> Result<Arc<Instance>> {
        match self.lock().get(id) {
            Some(Slot::Started(instance)) => Ok(Arc::clone(instance)),
            Some(Slot::Busy) => Err(busy(id)),
            Some(Slot::Remains(_)) | None => Err(unknown(id)),
        }
    }

    /// Starts another process in an instance; answers its number.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::Exists`], [`AgentError::Ended`]; what starting it fails with.
    /// Nothing is left of it then, but processes that it may have started.
    pub fn start_process(&self, instance: &InstanceId, id: &ProcessId, process: &ProcessSpec) -> Result<u32> {
        let instance = self.get(instance)?;
        let Parts { id: name, folder, limits, rootfs, .. } = &instance.parts;
        if *id == ProcessId::init() {
            return Err(AgentError::Exists { kind: "process", name: id.to_string() });
        }
        let place = instance.others.begin(id)?;
        if instance.init.exit.get().is_some() {
            return Err(AgentError::Ended(name.to_string()));
        }
        let credentials = furnish::credentials(rootfs.root(), &process.user)?;
        let joining = Joining { container: name.as_str(), folder, name: id.as_str(), placement: limits.placement };
        let process = self.launcher.join(&joining, process, &credentials)?;
        let pid = process.pid.as_raw().unsigned_abs();
        place.fill(process);
        Ok(pid)
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::System`].
    pub fn signal(&self, instance: &InstanceId, id: &ProcessId, signal: Signal) -> Result<()> {
        let process = self.get(instance)?.process(id)?;
        self.reaper.signal(process.pid, signal).map_err(AgentError::system("kill"))
    }

    /// Kills a process that [`Instances::start_process`] has started, and forgets it.
    ///
    /// # Errors
    /// [`AgentError::Gone`], [`AgentError::InUse`]; [`AgentError::TimedOut`], then it can be tried again.
    pub fn remove_process(&self, instance: &InstanceId, id: &ProcessId) -> Result<()> {
        let gone = || AgentError::Gone { kind: "process", name: id.to_string() };
        if *id == ProcessId::init() {
            return Err(AgentError::InUse { what: format!("process {id}"), by: format!("instance {instance}") });
        }
        let instance = match self.get(instance) {
            Err(AgentError::Unknown { .. }) => return Err(gone()),
            instance => instance?,
        };
        let process = match instance.others.get(id) {
            Err(AgentError::Unknown { .. }) => return Err(gone()),
            process => process?,
        };
        self.reaper.signal(process.pid, Signal::SIGKILL).map_err(AgentError::system("kill"))?;
        if process.exit.wait_for(self.kill_limit).is_none() {
            return Err(AgentError::TimedOut { what: format!("end of process {id}"), after: self.kill_limit });
        }
        process.streams.close();
        instance.others.forget(id);
        Ok(())
    }

    /// Ends an instance, or what is left of one that did not start, and takes it apart.
    ///
    /// # Errors
    /// [`AgentError::Gone`], [`AgentError::InUse`]; what a step fails with, then it can be tried again.
    pub fn remove(&self, id: &InstanceId) -> Result<()> {
        let slot = match self.lock().get_mut(id) {
            Some(Slot::Busy) => return Err(busy(id)),
            Some(slot) => std::mem::replace(slot, Slot::Busy),
            None => return Err(AgentError::Gone { kind: "instance", name: id.to_string() }),
        };
        let removed = match &slot {
            Slot::Started(instance) => self.kill(instance).and_then(|()| {
                instance.init.exit.wait_for(self.kill_limit);
                instance.init.streams.close();
                instance.oom_killed();
                instance.destroy_sockets();
                self.dismantle(&instance.parts)
            }),
            Slot::Remains(parts) => parts.kill(self.kill_limit).and_then(|()| self.dismantle(parts)),
            Slot::Busy => Ok(()),
        };
        self.finish(id, removed.is_err().then_some(slot));
        removed
    }

    /// Kills all processes of an instance, also those that were just being started.
    fn kill(&self, instance: &Instance) -> Result<()> {
        instance.parts.kill(self.kill_limit)?;
        // They fail in a container whose first process is gone; one may have come to the cgroup in the meantime.
        instance.others.close(self.kill_limit)?;
        instance.parts.kill(self.kill_limit)
    }

    /// Ends all instances, as far as it goes.
    pub fn remove_all(&self) {
        let ids: Vec<InstanceId> = self.lock().keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.remove(&id) {
                tracing::warn!(%id, %error, "instance not removed");
            }
        }
    }

    fn build(&self, request: &Request) -> std::result::Result<Instance, Failure> {
        let claim = self.base.claim(request.base_limit, request.node.is_partition())?;
        let limits = self.limits(request, claim.bytes())?;
        let layers = self.images.begin_use(&request.image)?;
        let folder = self.folder.join(request.id.as_str());
        let mut parts = Parts {
            id: request.id.clone(),
            image: request.image.clone(),
            limits,
            cgroup: None,
            rootfs: RootFs::below(&folder),
            folder,
            claim,
        };
        match self.assemble(request, &layers, &mut parts) {
            Ok((process, network)) => Ok(Instance {
                parts,
                init: Arc::new(process),
                others: Others::default(),
                sockets: Sockets::of(network),
                oom_killed: OnceLock::new(),
            }),
            Err(error) => {
                let cleanup = parts.kill(self.kill_limit).and_then(|()| self.dismantle(&parts));
                let remains = cleanup.err().map(|cleanup| {
                    tracing::error!(id = %request.id, error = %cleanup, "remains of an instance that did not start");
                    Box::new(parts)
                });
                Err(Failure { error, remains })
            }
        }
    }

    fn assemble(&self, request: &Request, layers: &[PathBuf], parts: &mut Parts) -> Result<(Process, OwnedFd)> {
        let limits = parts.limits;
        let capacities = Capacities::within(limits.placement, limits.memory_max, parts.claim.bytes());
        files::make_directory(&parts.folder)?;
        parts.cgroup = Some(self.hierarchy.create(&request.id, limits)?);
        parts.rootfs.mount(layers, limits.placement, capacities.scratch)?;
        let root = parts.rootfs.root();
        let credentials = furnish::credentials(root, &request.process.user)?;
        furnish::furnish(root, request.id.as_str(), &request.process.working_directory)?;
        let configuration = configuration(&Workload {
            hostname: request.id.as_str(),
            root,
            cgroup: &Hierarchy::name(&request.id),
            placement: limits.placement,
            capacities,
            process: &request.process,
            credentials: &credentials,
        });
        let file = parts.folder.join("config.json");
        std::fs::write(&file, configuration.to_string()).map_err(AgentError::path("write", &file))?;
        self.launcher.launch(request.id.as_str(), &parts.folder, &request.process, &credentials)
    }

    /// The limits of an instance that may have `base` bytes of base memory.
    fn limits(&self, request: &Request, base: u64) -> Result<Limits> {
        if !request.node.is_partition() {
            return request.limits(base, None);
        }
        let total = self.memory.node(request.node)?.total_bytes;
        if total == 0 {
            return Err(AgentError::NoMemory(request.node));
        }
        request.limits(base, Some((self.memory.placement(request.node)?, total)))
    }

    /// Takes apart what has no processes any more.
    fn dismantle(&self, parts: &Parts) -> Result<()> {
        // First, and nothing else if it fails: the folder is removed with all that is in it.
        parts.rootfs.unmount()?;
        // The container library removes the cgroup of a container that it could not create.
        if let Some(cgroup) = parts.cgroup.as_ref().filter(|cgroup| cgroup.exists()) {
            // In base memory the cache stays for the next one, and in a private node there is none.
            if matches!(parts.limits.placement, Placement::Policy(_)) {
                match cgroup.drop_page_cache().and_then(|()| cgroup.page_cache()) {
                    Ok(0) => {}
                    Ok(bytes) => tracing::info!(id = %parts.id, bytes, "page cache is still in use by others"),
                    Err(error) => tracing::warn!(id = %parts.id, %error, "page cache not dropped"),
                }
            }
            cgroup.remove()?;
        }
        self.launcher.forget(parts.id.as_str());
        if let Err(error) = std::fs::remove_dir_all(&parts.folder) {
            tracing::warn!(path = %parts.folder.display(), %error, "folder stays");
        }
        self.images.end_use(&parts.image);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Slot>> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Parts {
    fn oom_killed(&self) -> Option<OomLimit> {
        let killed = self.cgroup.as_ref().map(|cgroup| cgroup.oom_killed(self.limits));
        killed.transpose().unwrap_or_else(|error| {
            tracing::warn!(id = %self.id, %error, "not known whether it was killed for lack of memory");
            None
        })?
    }

    fn kill(&self, limit: Duration) -> Result<()> {
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.kill(limit))
    }
}

/// `memory.max` of an instance in a partition of `total` bytes.
fn below_partition(total: u64, wanted: Option<u64>) -> u64 {
    let most = total.saturating_sub((total / MARGIN_FRACTION).max(MARGIN_BYTES)).max(1);
    wanted.map_or(most, |wanted| wanted.min(most))
}

fn busy(id: &InstanceId) -> AgentError {
    AgentError::InUse { what: format!("instance {id}"), by: "its start or removal".into() }
}

fn unknown(id: &InstanceId) -> AgentError {
    AgentError::Unknown { kind: "instance", name: id.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bellows_protocol::user::User;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::mounts::mount_at;
    use crate::pci::Sysfs;
    use crate::streams::StdioSpec;
    use crate::uevent::Uevents;

    fn request() -> Request {
        Request {
            id: "f-1".parse().unwrap(),
            image: "demo".parse().unwrap(),
            process: ProcessSpec {
                arguments: vec!["true".into()],
                environment: Vec::new(),
                working_directory: "/".into(),
                user: User::default(),
                stdio: StdioSpec::Pipes { stdin: false },
            },
            node: Node::try_from(0).unwrap(),
            memory_max: None,
            base_limit: None,
            pids_max: None,
        }
    }

    /// An image, and instances whose start fails, because `folder` has no cgroups.
    fn fixture(folder: &Path) -> (Arc<Images>, Instances) {
        let images = Arc::<Images>::default();
        images.mount(&Sysfs::default(), &Uevents::default(), &request().image, &[]).unwrap();
        let reaper = Arc::<Reaper>::default();
        let launcher = Launcher::new("/no/such/agent", folder, Arc::clone(&reaper));
        let hierarchy = Hierarchy::new(folder.join("cgroup"));
        let base = Arc::new(BaseMemory::new(1 << 30));
        let mut instances =
            Instances::new(Arc::clone(&images), hierarchy, launcher, MemoryInfo::default(), base, reaper);
        instances.folder = folder.join("i");
        (images, instances)
    }

    /// Runs a test that mounts, which needs root, so that nobody else sees what it mounts.
    fn in_mount_namespace(test: fn()) {
        let thread = std::thread::spawn(move || {
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
            test();
        });
        thread.join().unwrap();
    }

    #[test]
    fn what_a_failed_start_leaves_can_be_removed() {
        in_mount_namespace(|| {
            let folder = tempfile::tempdir().unwrap();
            let (images, instances) = fixture(folder.path());
            let Request { id, image, .. } = request();
            // A mount in use cannot be taken apart.
            let scratch = folder.path().join("i/f-1/s");
            mount_at(Some("scratch"), &scratch, "tmpfs", MsFlags::empty(), "").unwrap();
            let used = std::fs::File::create(scratch.join("file")).unwrap();

            let error = instances.start(&request()).unwrap_err();
            assert!(error.to_string().contains("cgroup"), "{error}");
            assert!(scratch.join("file").exists(), "files are not removed from what is still mounted");
            assert!(matches!(instances.start(&request()), Err(AgentError::Exists { .. })));
            assert!(matches!(instances.get(&id), Err(AgentError::Unknown { .. })));
            let error = instances.remove(&id).unwrap_err();
            assert!(error.to_string().contains("unmount"), "{error}");
            assert!(matches!(images.unmount(&image), Err(AgentError::InUse { .. })));

            drop(used);
            instances.remove_all();
            assert!(!folder.path().join("i/f-1").exists());
            images.unmount(&image).unwrap();
            assert_eq!(instances.remove(&id).unwrap_err().code(), ttrpc::Code::NOT_FOUND);
        });
    }

    /// One whose last process does not end, as far as its cgroup says.
    #[test]
    fn remains_with_processes_stay_until_these_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (images, mut instances) = fixture(folder.path());
        instances.kill_limit = Duration::from_millis(5);
        let Request { id, image, .. } = request();
        let cgroup = folder.path().join("cgroup/instances/f-1");
        let own = folder.path().join("i/f-1");
        for path in [&cgroup, &own] {
            std::fs::create_dir_all(path).unwrap();
        }
        let populated = |count| std::fs::write(cgroup.join("cgroup.events"), format!("populated {count}\n")).unwrap();
        std::fs::write(cgroup.join("cgroup.kill"), "").unwrap();
        populated(1);
        images.begin_use(&image).unwrap();
        let parts = Parts {
            id: id.clone(),
            image: image.clone(),
            limits: instances.limits(&request(), 1 << 20).unwrap(),
            cgroup: Some(instances.hierarchy.cgroup(&id)),
            rootfs: RootFs::below(&own),
            folder: own.clone(),
            claim: instances.base.claim(None, false).unwrap(),
        };
        instances.finish(&id, Some(Slot::Remains(Box::new(parts))));

        assert!(matches!(instances.remove(&id), Err(AgentError::TimedOut { .. })));
        assert!(own.exists() && matches!(images.unmount(&image), Err(AgentError::InUse { .. })));
        populated(0);
        // A folder of files is not gone as a cgroup is.
        assert!(instances.remove(&id).unwrap_err().to_string().contains("remove"));
        std::fs::remove_dir_all(&cgroup).unwrap();
        instances.remove(&id).unwrap();
        assert!(!own.exists());
        images.unmount(&image).unwrap();
    }

    #[test]
    fn a_failed_start_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (images, instances) = fixture(folder.path());
        for _ in 0..2 {
            let error = instances.start(&request()).unwrap_err();
            assert!(error.to_string().contains("cgroup"), "{error}");
            assert!(!folder.path().join("i/f-1").exists());
        }
        images.unmount(&request().image).unwrap();
    }

    #[test]
    fn the_limit_is_met_before_the_partition_is_full() {
        const GIB: u64 = 1 << 30;
        assert_eq!(below_partition(GIB, None), GIB - (16 << 20));
        assert_eq!(below_partition(GIB, Some(GIB)), GIB - (16 << 20));
        assert_eq!(below_partition(GIB, Some(1 << 20)), 1 << 20);
        assert_eq!(below_partition(128 << 20, None), 120 << 20);
        assert_eq!(below_partition(1, None), 1);
    }
}
