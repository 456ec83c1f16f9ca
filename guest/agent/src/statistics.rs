//! Counters of the guest's kernel.
//!
//! Our kernel counts migrated pages by reason ([`VmStat`]). With other kernels they come from the tracepoint
//! `migrate:mm_migrate_pages`: `pgmigrate_success` would also count compaction and everything else. A tracefs instance of its
//! own keeps other users of tracing apart. A thread empties its buffer whenever it has data, and each request empties it once
//! more, so that an answer holds all earlier events.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{AgentError, Result};
use crate::files;
use crate::sync::Mutex;

const INSTANCE: &str = "/sys/kernel/tracing/instances/bellows";
/// Per CPU: about a thousand events between two looks.
const BUFFER_KIB: &str = "64";
/// The reasons of migrations for an unplug.
const REASONS: [&str; 2] = ["memory_hotplug", "contig_range"];

/// Counts pages migrated because of an unplug.
#[derive(Debug)]
pub struct Migrations {
    pipe: File,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    pages: u64,
    /// A line that is not complete yet.
    rest: Vec<u8>,
}

impl Migrations {
    /// Starts to count.
    ///
    /// # Errors
    /// [`AgentError::Path`] where the kernel has no such tracepoint.
    pub fn start() -> Result<Arc<Self>> {
        let instance = Path::new(INSTANCE);
        files::make_directory(instance)?;
        files::write(instance.join("buffer_size_kb"), BUFFER_KIB)?;
        files::write(instance.join("events/migrate/mm_migrate_pages/enable"), "1")?;
        let path = instance.join("trace_pipe");
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)
            .map_err(AgentError::path("open", &path))?;
        let migrations = Arc::new(Self { pipe, tally: Mutex::default() });
        let draining = Arc::clone(&migrations);
        std::thread::Builder::new()
            .name("migrations".into())
            .spawn(move || draining.run())
            .map_err(AgentError::system("clone"))?;
        Ok(migrations)
    }

    fn run(&self) {
        loop {
            match poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return tracing::error!(%error, "migrations are counted only on request"),
            }
            if let Err(error) = self.pages() {
                return tracing::error!(%error, "migrations are counted only on request");
            }
        }
    }

    /// Pages migrated since the start.
    ///
    /// # Errors
    /// [`AgentError::System`].
    pub fn pages(&self) -> Result<u64> {
        let mut tally = self.tally.lock();
        let mut buffer = vec![0; 16 << 10];
        loop {
            match (&self.pipe).read(&mut buffer) {
                Ok(0) => return Ok(tally.pages),
                Ok(count) => tally.add(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(tally.pages),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(AgentError::system("read of trace_pipe")(error)),
            }
        }
    }
}

impl Tally {
    fn add(&mut self, data: &[u8]) {
        self.rest.extend_from_slice(data);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { return };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        for line in lines.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            if line.contains("[LOST ") {
                tracing::warn!(%line, "migrations missed: the count is too low");
            }
            self.pages = self.pages.saturating_add(migrated(&line));
        }
    }
}

/// Pages migrated because of an unplug, from a line of the trace.
fn migrated(line: &str) -> u64 {
    let Some((_, event)) = line.split_once(" mm_migrate_pages: ") else { return 0 };
    let value = |key: &str| event.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    if value("reason").is_some_and(|reason| REASONS.contains(&reason)) {
        value("nr_succeeded").and_then(|pages| pages.parse().ok()).unwrap_or(0)
    } else {
        0
    }
}

/// Counters that our kernel has in `/proc/vmstat`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct VmStat {
    /// Pages migrated since boot, by reason.
    pub migrated: Vec<(String, u64)>,
    /// Pages zeroed since boot because memory was unplugged.
    pub zeroed: Option<u64>,
}

impl VmStat {
    /// The counters now.
    ///
    /// # Errors
    /// [`AgentError::Path`].
    pub fn read() -> Result<Self> {
        Ok(Self::parse(&files::read("/proc/vmstat")?))
    }

    fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            match name.strip_prefix("pgmigrate_") {
                // Counters of stock kernels.
                Some("success" | "fail") => {}
                Some(reason) => counters.migrated.push((reason.to_owned(), value)),
                None if name == "contig_alloc_zeroed" => counters.zeroed = Some(value),
                None => {}
            }
        }
        counters
    }

    /// Pages migrated because memory was unplugged or had to be contiguous; `None` with a stock kernel.
    pub fn migrated_for_unplug(&self) -> Option<u64> {
        let counted = self.migrated.iter().filter(|(reason, _)| REASONS.contains(&reason.as_str()));
        counted.map(|(_, pages)| *pages).reduce(u64::saturating_add)
    }
}

/// Busy time of the CPUs since boot in nanoseconds, without stolen time.
///
/// # Errors
/// [`AgentError::Path`], [`AgentError::Malformed`].
pub fn cpu_nanoseconds() -> Result<u64> {
    let path = "/proc/stat";
    let text = files::read(path)?;
    let ticks = busy_ticks(&text)
        .ok_or_else(|| AgentError::Malformed { what: path.into(), text: text.chars().take(80).collect() })?;
    // The unit of /proc/stat is the same on all of Linux's configurations for an architecture: 100 a second.
    const TICK_NANOSECONDS: u64 = 10_000_000;
    Ok(ticks.saturating_mul(TICK_NANOSECONDS))
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guest time is in user time already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = numbers[..] else { return None };
    Some([user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "     kworker/0:1-9       [000] .....    12.345678: mm_migrate_pages: nr_succeeded=32 nr_failed=1 \
                        nr_thp_succeeded=0 nr_thp_failed=0 nr_thp_split=0 nr_split=0 mode=MIGRATE_SYNC reason=";

    #[test]
    fn only_migrations_for_an_unplug_count() {
        assert_eq!(migrated(&format!("{LINE}memory_hotplug")), 32);
        assert_eq!(migrated(&format!("{LINE}contig_range")), 32);
        assert_eq!(migrated(&format!("{LINE}compaction")), 0);
        assert_eq!(migrated(""), 0);
        assert_eq!(migrated("CPU:0 [LOST 12 EVENTS]"), 0);
        assert_eq!(migrated(&LINE.replace("32", "x")), 0);
    }

    #[test]
    fn our_kernel_counts_by_reason() {
        let text = "pgmigrate_success 12\npgmigrate_fail 1\npgmigrate_compaction 2\npgmigrate_memory_hotplug 3\n\
                    pgmigrate_contig_range 7\ncontig_alloc_zeroed 9\nnr_free_pages 4\n";
        let counters = VmStat::parse(text);
        assert_eq!((counters.migrated.len(), counters.zeroed), (3, Some(9)));
        assert_eq!(counters.migrated_for_unplug(), Some(10));
    }

    #[test]
    fn a_stock_kernel_does_not() {
        let counters = VmStat::parse("pgmigrate_success 12\npgmigrate_fail 1\nnr_free_pages x\n");
        assert_eq!((counters.migrated_for_unplug(), counters), (None, VmStat::default()));
    }

    #[test]
    fn lines_may_come_in_pieces() {
        let text = format!("{LINE}contig_range\n{LINE}compaction\n{LINE}memory_hotplug\n");
        let mut tally = Tally::default();
        text.as_bytes().chunks(7).for_each(|piece| tally.add(piece));
        assert_eq!(tally.pages, 64);
        assert!(tally.rest.is_empty());
    }

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  10 20 30 4000 500 6 7 800 90 10\ncpu0 1 2"), Some(73));
        assert_eq!(busy_ticks("cpu  10 20"), None);
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
