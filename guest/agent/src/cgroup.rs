//! Control groups: the agent's own, and two per instance.
//!
//! ```text
//! /agent                     cpuset.mems=0: the agent's memory never lies in a partition; memory.min: nor is it reclaimed
//! /instances                 memory.max, pids.max: the limit of all instances together, so that the agent and the kernel keep
//!                            what they need
//! /instances/<id>            memory.max: the instance's base limit; memory.cache_to_parent=1 where its node is private
//! /instances/<id>/instance   the root that the instance sees: memory.max, memory.oom.group, memory.swap.max, pids.max,
//!                            and with a partition
//!                            cpuset.mems=0, memory.private_node=<partition> where the node is private,
//!                            cpuset.mems=0,<partition> with a stock kernel: see below
//! ```
//!
//! The limit on base memory is around the cgroup that the instance sees, because programs read `memory.max` to know how much they
//! can allocate, and that is the partition's size. Memory of a private node is not charged to any `memory.max`: the node is its limit.
//! Page cache that an instance with a private node brings in is charged to `/instances`: it outlives the instance, others read it
//! too, and its cgroup would stay as long. That of its scratch disk, which goes with it, counts for its base limit.
//!
//! With a stock kernel all memory is charged to `memory.max`, so one number must bound both: less than the partition's size,
//! so that this limit is met before the node is full. The part of it in base memory has no bound then. The cpuset holds node 0
//! too: the kernel makes some allocations for a task that obey its cpuset but cannot come from a movable zone (pipe buffers,
//! for one), and they would fail. The task's memory policy sends there all memory that *can* come from the partition.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bellows_protocol::values::InstanceId;
use nix::unistd::Pid;

use crate::error::{AgentError, Result};
use crate::files;
use crate::placement::Placement;

/// Mount point of the unified hierarchy.
pub const ROOT: &str = "/sys/fs/cgroup";
const AGENT: &str = "agent";
const INSTANCES: &str = "instances";
/// An instance's own cgroup, in the one that bounds its base memory.
const INSTANCE: &str = "instance";
/// Directory of the kernel's own limits on tasks.
const KERNEL: &str = "/proc/sys/kernel";
/// Tasks reserved for the agent and the kernel's threads, or half of all tasks if that is less.
const RESERVED_TASKS: u64 = 512;
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Limits of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The source of its memory.
    pub placement: Placement,
    /// `memory.max` as the instance sees it, in bytes.
    pub memory_max: u64,
    /// `memory.max` around it, in bytes.
    pub outer_max: u64,
    /// `pids.max`; by default half of the limit of all instances, so that an instance that forks forever leaves room
    /// for others.
    pub pids_max: Option<u32>,
}

/// The unified hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    /// The hierarchy mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Enables the controllers and moves this process, hence all its children, to a cgroup that keeps it in base memory.
    /// Kernel threads stay where they are: they cannot be confined for good. Instances together are kept from taking all
    /// tasks that the kernel can have. `reserved` bytes of the agent's memory are not reclaimed.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`]. A controller that the kernel lacks is logged: limits that need it
    /// fail where they are set.
    pub fn confine_agent(&self, reserved: u64) -> Result<()> {
        enable_controllers(&self.root);
        let agent = self.root.join(AGENT);
        files::make_directory(&agent)?;
        files::make_directory(self.root.join(INSTANCES))?;
        enable_controllers(&self.root.join(INSTANCES));
        self.limit_tasks(Path::new(KERNEL))?;
        if let Err(error) = files::write(agent.join("cpuset.mems"), "0") {
            tracing::warn!(%error, "the agent is not kept out of partitions");
        }
        if let Err(error) = files::write(agent.join("memory.min"), &reserved.to_string()) {
            tracing::warn!(%error, "the agent's memory is not protected from reclaim");
        }
        files::write(agent.join("cgroup.procs"), "0")
    }

    /// Limits the tasks of all instances together to the kernel's own limit, found in `kernel`, less a reserve. Otherwise
    /// one instance could take them all, and the agent could not start a thread.
    fn limit_tasks(&self, kernel: &Path) -> Result<()> {
        let all = number(&kernel.join("threads-max"))?.min(number(&kernel.join("pid_max"))?);
        let most = all - RESERVED_TASKS.min(all / 2);
        files::write(self.tasks(), &most.to_string())
    }

    /// Limits the memory of all instances together that counts for `memory.max`; `None` means no limit.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn limit_memory(&self, bytes: Option<u64>) -> Result<()> {
        let text = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        files::write(self.root.join(INSTANCES).join("memory.max"), &text)
    }

    /// The limit on the memory of all instances together, if there is one.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn memory_limit(&self) -> Result<Option<u64>> {
        let path = self.root.join(INSTANCES).join("memory.max");
        if files::read(&path)? == "max" { Ok(None) } else { number(&path).map(Some) }
    }

    /// The memory of all instances together that counts for it.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn memory_used(&self) -> Result<u64> {
        number(&self.root.join(INSTANCES).join("memory.current"))
    }

    /// Frees up to `bytes` of the memory of instances: page cache, which they read again when they need it.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn reclaim(&self, bytes: u64) -> Result<()> {
        reclaim(&self.root.join(INSTANCES), &bytes.to_string())
    }

    /// A file that is readable by `POLLPRI` when tasks of instances have waited for memory for `stall` within `window`.
    ///
    /// # Errors
    /// [`AgentError::Unsupported`] where the kernel does not say; [`AgentError::Path`].
    pub fn pressure(&self, stall: Duration, window: Duration) -> Result<File> {
        use std::io::Write;
        let path = self.root.join(INSTANCES).join("memory.pressure");
        let file = File::options().read(true).write(true).open(&path);
        let trigger = format!("some {} {}", stall.as_micros(), window.as_micros());
        match file.and_then(|mut file| file.write_all(trigger.as_bytes()).map(|()| file)) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(AgentError::Unsupported("pressure stall information"))
            }
            Err(error) => Err(AgentError::path("set a trigger in", path)(error)),
        }
    }

    /// The file with the limit on tasks of all instances together.
    fn tasks(&self) -> PathBuf {
        self.root.join(INSTANCES).join("pids.max")
    }

    /// An instance's cgroups, which may not exist.
    pub fn cgroup(&self, id: &InstanceId) -> Cgroup {
        let outer = self.root.join(INSTANCES).join(id.as_str());
        Cgroup { inner: outer.join(INSTANCE), outer }
    }

    /// Creates an instance's cgroups with their limits set.
    ///
    /// # Errors
    /// [`AgentError::Path`], or [`AgentError::NotAllowed`] if the kernel does not let it use the node.
    pub fn create(&self, id: &InstanceId, limits: Limits) -> Result<Cgroup> {
        let pids_max = match limits.pids_max {
            Some(count) => count.into(),
            None => number(&self.tasks())? / 2,
        };
        let cgroup = self.cgroup(id);
        std::fs::create_dir(&cgroup.outer).map_err(AgentError::path("create", &cgroup.outer))?;
        match cgroup.bound(limits.outer_max).and_then(|()| cgroup.limit(id, limits, pids_max)) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // It is empty, so the removal can only fail for the same reason.
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }
}

/// Which limit an instance had met when the kernel killed it for lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomLimit {
    /// The size of its partition. Where that is a private node, the kernel counts the same when the guest has no memory left.
    Partition,
    /// Its base limit.
    Base,
    /// Its `memory.max`, if that is less than the others or bounds both.
    Memory,
    /// No limit of its own: the guest had no memory left.
    Guest,
}

/// Memory that an instance has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    /// All, wherever it lies; never less than what is limited.
    pub bytes: u64,
    /// What counts for its limits: not memory of a private node.
    pub limited: u64,
}

/// One instance's cgroups.
#[derive(Debug)]
pub struct Cgroup {
    /// The outer cgroup, which the instance does not see.
    outer: PathBuf,
    /// The inner cgroup, which the instance sees as the root.
    inner: PathBuf,
}

impl Cgroup {
    /// Sets up the outer cgroup, and makes the inner one.
    fn bound(&self, outer_max: u64) -> Result<()> {
        files::write(self.outer.join("memory.max"), &outer_max.to_string())?;
        enable_controllers(&self.outer);
        std::fs::create_dir(&self.inner).map_err(AgentError::path("create", &self.inner))?;
        // There is exactly one, and the instance cannot make another.
        files::write(self.outer.join("cgroup.max.descendants"), "1")
    }

    fn limit(&self, id: &InstanceId, limits: Limits, pids_max: u64) -> Result<()> {
        let mems = self.inner.join("cpuset.mems");
        match limits.placement {
            Placement::Base => files::write(mems, "0")?,
            Placement::Policy(node) => {
                files::write(mems, &format!("0,{node}"))?;
                let effective = files::read(self.inner.join("cpuset.mems.effective"))?;
                if !files::list_holds(&effective, node.number()) {
                    return Err(AgentError::NotAllowed { cgroup: id.to_string(), effective, node });
                }
            }
            Placement::Private(node) => {
                files::write(mems, "0")?;
                files::write(self.outer.join("memory.cache_to_parent"), "1")?;
                // A new member of the cgroup inherits the node, so the cgroup must still be empty.
                match files::write(self.inner.join("memory.private_node"), &node.to_string()) {
                    Err(AgentError::Path { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                        let by = "another instance, or memory that an earlier one left".into();
                        return Err(AgentError::InUse { what: format!("node {node}"), by });
                    }
                    result => result?,
                }
            }
        }
        files::write(self.inner.join("memory.max"), &limits.memory_max.to_string())?;
        // A function that has lost one of its processes is useless: the kernel kills all or none of them, whichever
        // limit is met.
        files::write(self.inner.join("memory.oom.group"), "1")?;
        // Absent where the kernel has no swap.
        match files::write(self.inner.join("memory.swap.max"), "0") {
            Err(AgentError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        files::write(self.inner.join("pids.max"), &pids_max.to_string())
    }

    /// The folder of the cgroup that the instance sees.
    pub fn folder(&self) -> &Path {
        &self.inner
    }

    /// The folder of the cgroup around that, which the instance does not see.
    pub fn boundary(&self) -> &Path {
        &self.outer
    }

    /// The processes in the cgroup that it sees, by their numbers as the agent sees them.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let path = self.inner.join("cgroup.procs");
        let parse = |line: &str| {
            let malformed = || AgentError::Malformed { what: path.display().to_string(), text: line.into() };
            line.parse().map(Pid::from_raw).map_err(|_| malformed())
        };
        files::read(&path)?.lines().map(parse).collect()
    }

    /// The limit that it had met when the kernel killed processes of it for lack of memory; `None` if the kernel killed
    /// none. `limits` are its own.
    ///
    /// A limit that is met counts as `oom` where it is set. A full partition shows only as a kill.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn oom_killed(&self, limits: Limits) -> Result<Option<OomLimit>> {
        let count = |path: &Path, file, key| -> Result<u64> {
            Ok(flat_keyed(&files::read(path.join(file))?, key).unwrap_or(0))
        };
        if count(&self.outer, "memory.events", "oom_kill")? == 0 {
            return Ok(None);
        }
        let outer = count(&self.outer, "memory.events.local", "oom")? > 0;
        let inner = count(&self.inner, "memory.events.local", "oom")? > 0;
        Ok(Some(match (limits.placement, inner || outer) {
            (Placement::Policy(_), true) => OomLimit::Memory,
            (Placement::Base, true) if !outer && limits.memory_max < limits.outer_max => OomLimit::Memory,
            (Placement::Base | Placement::Private(_), true) => OomLimit::Base,
            (Placement::Private(_), false) => OomLimit::Partition,
            (Placement::Base | Placement::Policy(_), false) => OomLimit::Guest,
        }))
    }

    /// Kills all its processes and waits until the last one, and with it its address space, is gone.
    ///
    /// # Errors
    /// [`AgentError::Path`]; [`AgentError::TimedOut`].
    pub fn kill(&self, limit: Duration) -> Result<()> {
        match files::write(self.outer.join("cgroup.kill"), "1") {
            // Gone already.
            Err(AgentError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        self.await_event("populated", 0, limit, "end")
    }

    /// Stops all its processes where they are, and waits until the last one has stopped. After an error they go on.
    ///
    /// # Errors
    /// [`AgentError::Path`]; [`AgentError::TimedOut`], for example if a process waits for a disk that does not answer.
    pub fn freeze(&self, limit: Duration) -> Result<()> {
        self.set_frozen(true)?;
        let frozen = self.await_event("frozen", 1, limit, "stop");
        if frozen.is_err()
            && let Err(error) = self.set_frozen(false)
        {
            tracing::error!(cgroup = %self.outer.display(), %error, "processes may stay frozen");
        }
        frozen
    }

    /// Has its processes go on.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        files::write(self.outer.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Waits until `key` is `value` in `cgroup.events`: the `what` of all processes.
    fn await_event(&self, key: &str, value: u64, limit: Duration, what: &str) -> Result<()> {
        let events = self.outer.join("cgroup.events");
        let mut file = File::open(&events).map_err(AgentError::path("open", &events))?;
        let deadline = Instant::now() + limit;
        loop {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(AgentError::path("read", &events))?;
            if flat_keyed(&text, key) == Some(value) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::TimedOut {
                    what: format!("{what} of all processes in {}", self.outer.display()),
                    after: limit,
                });
            }
            // The kernel announces a change since the last read.
            files::await_urgent(&file, left).map_err(AgentError::path("poll", &events))?;
        }
    }

    /// Drops the page cache that its processes, now gone, brought in, so that it need not be migrated when the partition
    /// is unplugged.
    ///
    /// `memory.reclaim` takes the pages charged to this cgroup: the pages that the instance's own reads allocated, under
    /// its bind policy, in its partition. `drop_caches` would take the neighbours' cache as well. A request for more
    /// than the cgroup has makes the kernel try everything, including pages in per-CPU batches; it then answers
    /// `EAGAIN`, as expected.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn drop_page_cache(&self) -> Result<()> {
        let bytes: u64 = files::read(self.outer.join("memory.current"))?.parse().unwrap_or(0);
        if bytes == 0 {
            return Ok(());
        }
        match reclaim(&self.outer, &format!("{bytes} swappiness=0")) {
            // Before Linux 6.8 it takes no swappiness; the guest has no swap anyway.
            Err(AgentError::Path { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                reclaim(&self.outer, &bytes.to_string())
            }
            result => result,
        }
    }

    /// Memory charged to it at this moment; `None` if it is gone.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn allocated(&self) -> Result<Option<Allocated>> {
        // The removal of a cgroup may come between the opening of a file and its reading (ENODEV).
        let current = |cgroup: &Path| match number(&cgroup.join("memory.current")) {
            Err(AgentError::Path { source, .. })
                if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            result => result.map(Some),
        };
        let (Some(bytes), Some(limited)) = (current(&self.inner)?, current(&self.outer)?) else { return Ok(None) };
        // What the kernel keeps for the inner cgroup itself counts for the outer one alone.
        Ok(Some(Allocated { bytes: bytes.max(limited), limited }))
    }

    /// Bytes of files, tmpfs not counted, that are charged to it.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn page_cache(&self) -> Result<u64> {
        let stat = files::read(self.outer.join("memory.stat"))?;
        let of = |key| flat_keyed(&stat, key).unwrap_or(0);
        Ok(of("file").saturating_sub(of("shmem")))
    }

    /// Whether they exist.
    pub fn exists(&self) -> bool {
        self.outer.exists()
    }

    /// Removes them, as far as they exist; its processes must be gone.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn remove(&self) -> Result<()> {
        for path in [&self.inner, &self.outer] {
            match std::fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(AgentError::path("remove", path))?,
            }
        }
        Ok(())
    }
}

/// Has the kernel free memory of a cgroup; it may find less than that.
fn reclaim(cgroup: &Path, what: &str) -> Result<()> {
    match files::write(cgroup.join("memory.reclaim"), what) {
        Err(AgentError::Path { source, .. }) if source.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        result => result,
    }
}

/// The number that a file holds.
fn number(path: &Path) -> Result<u64> {
    let text = files::read(path)?;
    text.parse().map_err(|_| AgentError::Malformed { what: path.display().to_string(), text })
}

fn enable_controllers(path: &Path) {
    for controller in CONTROLLERS {
        if let Err(error) = files::write(path.join("cgroup.subtree_control"), &format!("+{controller}")) {
            tracing::warn!(%error, controller, "no such cgroup controller");
        }
    }
}

/// The instance that a process belongs to, by its `/proc/<pid>/cgroup`.
pub fn instance_of(text: &str) -> Option<InstanceId> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut names = path.split('/');
    if names.next() == Some(INSTANCES) { names.next()?.parse().ok() } else { None }
}

/// The value of `key` in a flat keyed file: lines of `KEY VALUE`.
pub fn flat_keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
#[path = "cgroup_test.rs"]
mod tests;
