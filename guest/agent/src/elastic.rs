//! Base memory that grows and shrinks while the guest runs, at the host's word.
//!
//! The memory that comes is movable: page cache and memory of programs, no kernel objects. It raises the limit of all instances
//! together, and no instance's own ([`BaseMemory`]).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bellows_protocol::values::Node;

use crate::base_memory::BaseMemory;
use crate::cgroup::Hierarchy;
use crate::error::{AgentError, Result};
use crate::files;
use crate::partition::{MemoryInfo, NodeMemory};
use crate::sync::Mutex;
use crate::uevent::Uevents;

/// Instances are under pressure when one of their tasks has waited for memory for `STALL` within `WINDOW`, the shortest that the
/// kernel takes.
const STALL: Duration = Duration::from_millis(10);
const WINDOW: Duration = Duration::from_millis(500);
/// What stays free on top of what the host takes: its driver moves pages there.
const MARGIN: u64 = 16 << 20;

/// The elastic part of base memory.
#[derive(Debug)]
pub struct ElasticBase {
    memory: MemoryInfo,
    hierarchy: Hierarchy,
    base: Arc<BaseMemory>,
    uevents: Arc<Uevents>,
    /// Bytes of the node at boot.
    boot: u64,
    /// Held through a change of the size.
    turn: Mutex<()>,
    /// Made by the first who waits for pressure, who holds it while waiting.
    trigger: Mutex<Option<File>>,
}

/// How base memory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Bytes by which it is larger than at boot, as far as limits follow.
    pub grown: u64,
    /// Instances have waited for memory.
    pub pressure: bool,
    /// Bytes of all instances together.
    pub used: u64,
    /// What they may have.
    pub limit: Option<u64>,
    /// Its node.
    pub node: NodeMemory,
}

impl ElasticBase {
    /// Base memory with `boot` bytes.
    pub fn new(
        memory: MemoryInfo,
        hierarchy: Hierarchy,
        base: Arc<BaseMemory>,
        uevents: Arc<Uevents>,
        boot: u64,
    ) -> Self {
        Self { memory, hierarchy, base, uevents, boot, turn: Mutex::default(), trigger: Mutex::default() }
    }

    /// Has limits follow a base memory that is `grown` bytes larger than at boot. Where that is more than before, waits for
    /// the memory; where it is less, frees some first, and the answer may be more than `grown`.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`] if the memory does not come; [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn resize(&self, grown: u64, limit: Duration) -> Result<Use> {
        let _turn = self.turn.lock();
        let before = self.base.grown();
        let grown = if grown < before {
            self.free(before, grown)?
        } else {
            self.await_memory(grown, limit)?;
            grown
        };
        self.base.set_grown(grown);
        if self.hierarchy.memory_limit()?.is_some() {
            self.hierarchy.limit_memory(Some(self.base.limit()))?;
        }
        self.look(false)
    }

    /// Waits until instances are under pressure, for `limit` at most.
    ///
    /// # Errors
    /// [`AgentError::Unsupported`] if the kernel does not say; [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn await_pressure(&self, limit: Duration) -> Result<Use> {
        let mut trigger = self.trigger.lock();
        let file = match &mut *trigger {
            Some(file) => file,
            none => none.insert(self.hierarchy.pressure(STALL, WINDOW)?),
        };
        let pressure = files::await_urgent(file, limit).map_err(AgentError::system("poll"))?;
        drop(trigger);
        self.look(pressure)
    }

    /// Waits until the node has what it had at boot and `grown` bytes more.
    fn await_memory(&self, grown: u64, limit: Duration) -> Result<()> {
        let wanted = self.boot.saturating_add(grown);
        let what = || format!("{wanted} bytes of base memory");
        // A memory block that is online already can grow without an announcement.
        self.uevents.watch_until(
            limit,
            what,
            || Ok((self.memory.node(Node::BASE)?.total_bytes >= wanted).then_some(())),
        )
    }

    /// Frees memory until `before - after` bytes can be taken; returns the least that base memory can be larger by, at least
    /// `after`.
    fn free(&self, before: u64, after: u64) -> Result<u64> {
        let excess = self.excess(before, after)?;
        if excess == 0 {
            return Ok(after);
        }
        self.hierarchy.reclaim(excess)?;
        Ok(after.saturating_add(self.excess(before, after)?).min(before))
    }

    /// Bytes that are in the way of `before` becoming `after`: above the limit that there will be, or of what has to be free.
    fn excess(&self, before: u64, after: u64) -> Result<u64> {
        let free = self.memory.node(Node::BASE)?.free_bytes;
        let lacking = (before - after).saturating_add(MARGIN).saturating_sub(free);
        let above = match self.hierarchy.memory_limit()? {
            Some(_) => self.hierarchy.memory_used()?.saturating_sub(self.base.limit_with(after)),
            None => 0,
        };
        Ok(lacking.max(above))
    }

    fn look(&self, pressure: bool) -> Result<Use> {
        Ok(Use {
            grown: self.base.grown(),
            pressure,
            used: self.hierarchy.memory_used()?,
            limit: self.hierarchy.memory_limit()?,
            node: self.memory.node(Node::BASE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const MIB: u64 = 1 << 20;
    const BOOT: u64 = 256 * MIB;
    /// Free at boot.
    const FREE: u64 = 200 * MIB;
    const LIMIT: Duration = Duration::from_secs(30);

    /// A guest whose kernel is some files.
    struct Guest {
        folder: tempfile::TempDir,
        elastic: ElasticBase,
    }

    impl Guest {
        fn new(limited: bool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            fs::create_dir_all(path("sys/devices/system/node/node0")).unwrap();
            fs::create_dir_all(path("cgroup/instances")).unwrap();
            let base = Arc::new(BaseMemory::new(FREE));
            let limit = if limited { base.limit().to_string() } else { "max".into() };
            fs::write(path("cgroup/instances/memory.max"), limit).unwrap();
            fs::write(path("cgroup/instances/memory.reclaim"), "").unwrap();
            let uevents = Arc::<Uevents>::default();
            let memory = MemoryInfo::new(path("sys"), path("proc"));
            let elastic = ElasticBase::new(memory, Hierarchy::new(path("cgroup")), base, uevents, BOOT);
            let guest = Self { folder, elastic };
            guest.has(BOOT, FREE, 0);
            guest
        }

        fn has(&self, total: u64, free: u64, used: u64) {
            let meminfo = format!("Node 0 MemTotal: {} kB\nNode 0 MemFree: {} kB\n", total / 1024, free / 1024);
            replace(&self.path("sys/devices/system/node/node0/meminfo"), &meminfo);
            replace(&self.path("cgroup/instances/memory.current"), &used.to_string());
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join(name)
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.path("cgroup/instances").join(file)).unwrap()
        }
    }

    /// In one step, for readers.
    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, path).unwrap();
    }

    #[test]
    fn limits_follow_memory_that_has_come() {
        let guest = Guest::new(true);
        let limit = guest.elastic.base.limit();
        std::thread::scope(|scope| {
            let resized = scope.spawn(|| guest.elastic.resize(128 * MIB, LIMIT));
            guest.has(BOOT + 64 * MIB, FREE, 0);
            guest.elastic.uevents.announce();
            guest.has(BOOT + 128 * MIB, FREE, 0);
            guest.elastic.uevents.announce();
            let now = resized.join().unwrap().unwrap();
            assert_eq!((now.grown, now.limit, now.pressure), (128 * MIB, Some(limit + 128 * MIB), false));
        });
    }

    #[test]
    fn limits_do_not_follow_memory_that_does_not_come() {
        let guest = Guest::new(true);
        let limit = guest.elastic.base.limit();
        guest.has(BOOT + 126 * MIB, FREE, 0);
        let error = guest.elastic.resize(128 * MIB, Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("402653184 bytes of base memory after 1 ms"), "{error}");
        assert_eq!((guest.elastic.base.grown(), guest.text("memory.max")), (0, limit.to_string()));
    }

    #[test]
    fn what_is_free_goes_without_a_search() {
        let guest = Guest::new(true);
        guest.has(BOOT + 128 * MIB, 300 * MIB, 10 * MIB);
        guest.elastic.resize(128 * MIB, LIMIT).unwrap();
        let now = guest.elastic.resize(0, LIMIT).unwrap();
        assert_eq!((now.grown, now.limit), (0, Some(guest.elastic.base.limit_with(0))));
        assert_eq!(guest.text("memory.reclaim"), "");
    }

    /// Here the kernel finds nothing to free.
    #[test]
    fn what_cannot_be_freed_stays() {
        let guest = Guest::new(true);
        let limit = guest.elastic.base.limit();
        guest.has(BOOT + 128 * MIB, 300 * MIB, limit + 100 * MIB);
        guest.elastic.resize(128 * MIB, LIMIT).unwrap();
        let now = guest.elastic.resize(64 * MIB, LIMIT).unwrap();
        assert_eq!((now.grown, now.limit), (100 * MIB, Some(limit + 100 * MIB)));
        assert_eq!(guest.text("memory.reclaim"), (36 * MIB).to_string(), "what is above the limit");

        guest.has(BOOT + 128 * MIB, 30 * MIB, 0);
        let now = guest.elastic.resize(0, LIMIT).unwrap();
        assert_eq!(guest.text("memory.reclaim"), (86 * MIB).to_string(), "what has to be free");
        assert_eq!(now.grown, 86 * MIB);
    }

    #[test]
    fn a_stock_kernel_has_no_limit_to_follow() {
        let guest = Guest::new(false);
        guest.has(BOOT + 128 * MIB, FREE, 1 << 40);
        let now = guest.elastic.resize(128 * MIB, LIMIT).unwrap();
        assert_eq!((now.limit, guest.text("memory.max").as_str()), (None, "max"));
        assert_eq!(guest.elastic.resize(0, LIMIT).unwrap().grown, 0);
    }

    #[test]
    fn a_kernel_that_tells_no_pressure_is_named_so() {
        let error = Guest::new(true).elastic.await_pressure(LIMIT).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::UNIMPLEMENTED, "{error}");
    }
}
