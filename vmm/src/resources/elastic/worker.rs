//! The thread that looks at guest and host, and carries out what the plan says.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_devices::virtio::{MemHandle, UnplugError};
use bellows_memory::partition::WaitError;
use bellows_memory::{BLOCK, ByteSize, limited};

use super::Shared;
use super::plan::{Observed, Plan, STEP, Step};
use crate::causes::chain;
use crate::end::EndSignal;
use crate::guest::agent::{AgentClient, AgentError, BaseUse};

/// How long the guest may take for each part of a step.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to give memory back; then what is left stays for a while.
const SHRINK_LIMIT: Duration = Duration::from_secs(10);
/// Least time between two looks: a guest that always reports pressure costs no more than this.
const PAUSE: Duration = Duration::from_millis(50);
/// How much tasks of the host wait for memory (Documentation/accounting/psi.rst).
const HOST_PRESSURE: &str = "/proc/pressure/memory";

pub(super) struct Worker {
    handle: MemHandle,
    shared: Arc<Shared>,
    plan: Plan,
    agent: Arc<AgentClient>,
    end: Arc<EndSignal>,
    /// Most pressure on the host under which base memory grows, in percent.
    host_pressure: f64,
    start: Instant,
}

impl Worker {
    pub(super) fn new(
        handle: MemHandle,
        shared: Arc<Shared>,
        plan: Plan,
        agent: Arc<AgentClient>,
        end: Arc<EndSignal>,
        host_pressure_percent: u8,
    ) -> Self {
        Self { handle, shared, plan, agent, end, host_pressure: host_pressure_percent.into(), start: Instant::now() }
    }

    /// Follows the guest until the VM ends, or the guest cannot be followed.
    pub(super) fn run(mut self) {
        while self.end.wait(Some(PAUSE)).is_none() {
            self.end.await_running();
            let pauses = self.end.pauses();
            match self.look() {
                Ok(observed) => self.step(observed),
                // It could not answer meanwhile.
                Err(AgentError::Paused { .. }) => {}
                Err(AgentError::Timeout { .. }) if self.end.pauses() != pauses => {}
                Err(error) if self.end.ended().is_some() => {
                    tracing::debug!(%error, "base memory follows the guest no longer: the VM has ended");
                    return;
                }
                Err(error) => {
                    limited!(warn, %error, "base memory does not follow the guest");
                    self.fail(chain(&error));
                    // A kernel that does not tell will not tell later.
                    if matches!(error, AgentError::Refused { .. }) {
                        return;
                    }
                }
            }
        }
    }

    fn look(&self) -> Result<Observed, AgentError> {
        let found = self.agent.await_base_pressure(self.plan.idle())?;
        Ok(Observed {
            pressure: found.pressure,
            short: is_short(&found),
            host_pressure: some_avg10(Path::new(HOST_PRESSURE)).is_some_and(|share| share >= self.host_pressure),
        })
    }

    fn step(&mut self, observed: Observed) {
        match self.plan.next(self.now(), observed) {
            Step::Rest => {}
            Step::Grow(size) => self.grow(size),
            Step::Shrink(size) => self.shrink(size),
        }
    }

    /// First the memory, then the guest's limits.
    fn grow(&mut self, size: ByteSize) {
        let before = self.plan.grown();
        // What an earlier shrink has not got back yet stays.
        let kept = self.handle.memory().report().plugged;
        let size = size.max(kept);
        let failed = match self.handle.plug(size, LIMIT) {
            Err(error) => chain(&error),
            Ok(plugged) => match self.agent.resize_base(before, size, LIMIT) {
                Ok(_) => {
                    tracing::debug!(%before, %size, "base memory has grown");
                    self.plan.has_grown(self.now(), size);
                    return self.shared.change(|progress| progress.grew(before, size));
                }
                Err(error) => {
                    if let Err(error) = self.handle.undo(&plugged, SHRINK_LIMIT) {
                        limited!(warn, %error, "memory that the guest cannot use stays plugged");
                    }
                    chain(&error)
                }
            },
        };
        limited!(warn, %before, %size, error = failed, "base memory has not grown");
        self.plan.has_not_grown(self.now());
        self.fail(failed);
    }

    /// First the guest's limits, then the memory.
    fn shrink(&mut self, wanted: ByteSize) {
        let before = self.plan.grown();
        let size = match self.agent.resize_base(before, wanted, LIMIT) {
            Ok(found) => whole_blocks(found.grown).min(before),
            Err(error) => {
                limited!(warn, %before, %wanted, %error, "the guest frees no base memory");
                self.plan.has_shrunk(self.now(), wanted, before);
                return self.fail(chain(&error));
            }
        };
        let shrunk = self.handle.shrink(size, SHRINK_LIMIT);
        // So that a report has what the host got; a failure shows there, too.
        let _ = self.handle.memory().wait_discarded(SHRINK_LIMIT);
        let plugged = self.handle.memory().report().plugged;
        tracing::debug!(%before, %wanted, %size, %plugged, "base memory has shrunk");
        self.plan.has_shrunk(self.now(), wanted, plugged.clamp(size, before));
        self.shared.change(|progress| progress.shrank(plugged));
        match shrunk {
            Ok(_) | Err(UnplugError::Incomplete(WaitError::Timeout { .. } | WaitError::Ended(_))) => {}
            Err(error) => self.fail(chain(&error)),
        }
    }

    fn fail(&self, fault: String) {
        self.shared.change(|progress| progress.fault = Some(fault));
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Whether more memory would help: less than a step is left of the limit, or free.
fn is_short(found: &BaseUse) -> bool {
    found.left.is_some_and(|left| left.get() < STEP) || found.free.get() < STEP
}

/// `size` rounded up.
fn whole_blocks(size: ByteSize) -> ByteSize {
    ByteSize::bytes(size.get().checked_next_multiple_of(BLOCK.get()).unwrap_or(u64::MAX))
}

/// The share of time, in percent of the last ten seconds, for which some task of the host waited for memory; `None` where the host's
/// kernel does not say.
fn some_avg10(path: &Path) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_pressure_is_the_share_that_some_task_waited() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let share = |text: &str| {
            fs::write(file.path(), text).unwrap();
            some_avg10(file.path())
        };
        let full = "full avg10=1.00 avg60=2.00 avg300=3.00 total=4\n";
        assert_eq!(share(&format!("some avg10=12.34 avg60=56.00 avg300=78.00 total=90\n{full}")), Some(12.34));
        // CPUs have no line `full`, and nothing else counts.
        assert_eq!(share("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), Some(0.0));
        for text in ["", full, "some avg60=1.00\n", "some avg10=\n", "some avg10=much\n"] {
            assert_eq!(share(text), None, "{text:?}");
        }
        assert_eq!(some_avg10(Path::new("/nowhere/memory")), None);
    }
}
