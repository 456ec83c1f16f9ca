//! The cost of a piece of work in counted time (`docs/lab.md`).

use std::fmt;
use std::fs;
use std::io;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use bellows_lab::COUNTED;
use serde::{Deserialize, Serialize};

/// The cost of a piece of work: everything that the emulated host did meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Instructions that the processor ran, of the host, its monitors and their guests.
    pub instructions: u64,
    /// Time for which the processor waited for a timer, in nanoseconds.
    pub waited_ns: u64,
    /// Exits of vCPUs.
    pub exits: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.waited_ns += other.waited_ns;
        self.exits += other.exits;
    }
}

impl Cost {
    /// The part of it that took `time` by the lab's clock, with all waiting and all exits.
    pub fn part(self, time: Duration) -> Self {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self { instructions: time.saturating_sub(self.waited_ns), ..self }
    }

    /// Its time by the lab's clock, where an instruction takes a nanosecond.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.instructions + self.waited_ns)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instructions, waited_ns, exits } = self;
        write!(f, "{instructions} instructions, {waited_ns} ns waited, {exits} exits")
    }
}

/// Measures a piece of work, in a lab that counts time.
#[derive(Debug)]
pub struct Meter {
    idle: u64,
    exits: u64,
    start: Instant,
}

impl Meter {
    /// Begins a measurement if time is counted; `None` by the wall clock.
    ///
    /// # Errors
    /// As [`Meter::start`].
    pub fn start_if_counted() -> io::Result<Option<Self>> {
        std::env::var_os(COUNTED).map(|_| Self::start()).transpose()
    }

    /// Begins a measurement.
    ///
    /// # Errors
    /// The kernel's accounts cannot be read; that takes root and debugfs.
    pub fn start() -> io::Result<Self> {
        let (idle, exits) = (idle()?, exits()?);
        Ok(Self { idle, exits, start: Instant::now() })
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`Meter::start`]; or a VM that was there at the start has gone, and its exits with it.
    pub fn stop(self) -> io::Result<Cost> {
        let time = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let waited_ns = idle()? - self.idle;
        let exits = exits()?;
        let exits = exits.checked_sub(self.exits).ok_or_else(|| {
            io::Error::other(format!("{EXITS} is {exits}: expected at least {}, as at the start", self.exits))
        })?;
        Ok(Cost { instructions: time.saturating_sub(waited_ns), waited_ns, exits })
    }
}

/// Timers and how long processors waited for them, in nanoseconds (kernel/time/timer_list.c). `/proc/stat` has it in
/// hundredths of a second.
const TIMERS: &str = "/proc/timer_list";

/// Exits of all running VMs (Documentation/virt/kvm/api.rst, `KVM_GET_STATS_FD`).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";

fn idle() -> io::Result<u64> {
    parse_idle(&read(TIMERS)?).ok_or_else(|| io::Error::other(format!("{TIMERS} has no `.idle_sleeptime`")))
}

fn exits() -> io::Result<u64> {
    let text = read(EXITS)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{EXITS} is `{}`: expected a number", text.trim())))
}

fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Nanoseconds for which all processors together were idle, with and without I/O in flight; `None` if no line has them.
fn parse_idle(timers: &str) -> Option<u64> {
    let times = timers.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let name = name.trim();
        (name == ".idle_sleeptime" || name == ".iowait_sleeptime")
            .then_some(value)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    times.reduce(|sum: u64, time| sum + time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMER_LIST: &str = "\
Timer List Version: v0.10
HRTIMER_MAX_CLOCK_BASES: 8
now at 4320000000 nsecs

cpu: 0
 active timers:
 #0: <0000000000000000>, tick_nohz_handler, S:01
  .idle_calls     : 31
  .idle_entrytime : 4319000000 nsecs
  .idle_waketime  : 4319500000 nsecs
  .idle_sleeptime : 1408301358 nsecs
  .iowait_sleeptime: 2182119 nsecs
  .last_jiffies   : 4294893262

cpu: 1
  .idle_sleeptime : 10 nsecs
  .iowait_sleeptime: 1 nsecs
";

    #[test]
    fn waits_of_all_processors_add_up() {
        assert_eq!(parse_idle(TIMER_LIST), Some(1_408_301_358 + 2_182_119 + 11));
        assert_eq!(parse_idle("cpu: 0\n  .idle_calls     : 31\n"), None);
    }

    #[test]
    fn instructions_and_waits_make_the_time() {
        let mut cost = Cost { instructions: 190_000, waited_ns: 10_000, exits: 3 };
        assert_eq!(cost.time(), Duration::from_micros(200));
        assert_eq!(cost.part(Duration::from_micros(50)), Cost { instructions: 40_000, ..cost });
        cost += Cost { instructions: 1, waited_ns: 2, exits: 4 };
        assert_eq!(cost, Cost { instructions: 190_001, waited_ns: 10_002, exits: 7 });
    }
}
