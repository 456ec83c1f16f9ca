//! The session with the guest: its agent, from the moment that it can be called to the end of the VM.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bellows_memory::ByteSize;
use bellows_protocol::network::InterfaceSetup;
use bellows_protocol::ready::BootTimes;

use super::agent::{AgentClient, InstanceMemory, SHORT};
use super::error::{NotRunning, PowerOffError, ReadyError, StatisticsError};
use super::ready::ReadyListener;
use super::rendezvous::Rendezvous;
use crate::deadline::Deadline;
use crate::end::{EndSignal, VmEnd};
use crate::model::{GuestInfo, GuestStatistics};

/// All code that calls the guest takes this: it tells whether the agent can be called.
pub(crate) struct Session {
    rendezvous: Rendezvous,
    guest: OnceLock<GuestInfo>,
    end: Arc<EndSignal>,
    uds_path: PathBuf,
    booted: Instant,
}

impl Session {
    /// A session that begins when the agent reaches `listener`, through the vsock device at `uds_path`. The guest began to
    /// boot at `booted`.
    pub(crate) fn new(listener: ReadyListener, uds_path: PathBuf, end: Arc<EndSignal>, booted: Instant) -> Self {
        Self { rendezvous: Rendezvous::new(listener), guest: OnceLock::new(), end, uds_path, booted }
    }

    /// Waits until the agent can be called, and tells it how many partitions there are, and the sum of all `windows` of memory; and
    /// has it set `network` up.
    pub(crate) fn meet(
        &self,
        partitions: usize,
        windows: ByteSize,
        network: &[InterfaceSetup],
        timeout: Duration,
    ) -> Result<GuestInfo, ReadyError> {
        let deadline = Deadline::after(timeout);
        let agent = self.rendezvous.reach(&self.uds_path, deadline, &self.end)?;
        let guest = agent.hello(partitions, windows, deadline.left())?;
        if !network.is_empty() {
            agent.configure_network(network, deadline.left())?;
        }
        agent.keep_clock();
        tracing::info!(
            after = ?self.booted.elapsed(),
            kernel = guest.kernel_release,
            partition_mode = %guest.partition_mode,
            instances_base = %guest.instances_base,
            "the guest is ready"
        );
        Ok(self.guest.get_or_init(|| guest).clone())
    }

    /// The agent, as long as it can be called.
    pub(crate) fn agent(&self) -> Result<&Arc<AgentClient>, NotRunning> {
        match (self.end.ended(), self.rendezvous.client()) {
            (Some(end), _) => Err(NotRunning::Ended(end)),
            (None, _) if self.end.is_paused() => Err(NotRunning::Paused),
            (None, agent) => agent.filter(|_| self.is_met()).ok_or(NotRunning::NotReady),
        }
    }

    /// The agent, once it has been met: for what goes on by itself, and waits while the VM is paused.
    pub(crate) fn met(&self) -> Option<&Arc<AgentClient>> {
        self.rendezvous.client()
    }

    /// The guest's report about itself.
    pub(crate) fn guest(&self) -> Result<&GuestInfo, NotRunning> {
        self.guest.get().ok_or(NotRunning::NotReady)
    }

    /// Asks the guest to switch itself off, and waits for the end no longer than `timeout`.
    pub(crate) fn shutdown(&self, timeout: Duration) {
        let deadline = Deadline::after(timeout);
        let Some(agent) = self.rendezvous.client() else { return };
        // A paused guest cannot switch itself off.
        if self.end.ended().is_some() || self.end.is_paused() {
            return;
        }
        if let Err(error) = agent.shutdown(timeout) {
            tracing::warn!(%error, "the guest does not shut down by itself");
            return;
        }
        self.end.wait(Some(deadline.left()));
    }

    /// Asks the guest to switch itself off.
    pub(crate) fn power_off(&self, timeout: Duration) -> Result<(), PowerOffError> {
        Ok(self.agent()?.shutdown(timeout)?)
    }

    pub(crate) fn statistics(&self) -> Result<GuestStatistics, StatisticsError> {
        Ok(self.agent()?.statistics(SHORT)?)
    }

    pub(crate) fn measure_instances(&self) -> Result<Vec<InstanceMemory>, StatisticsError> {
        Ok(self.agent()?.measure_instances(SHORT)?)
    }

    /// Looks at the guest's clock soon: after a pause, the guest may have missed that the host's clock was set.
    pub(crate) fn check_clock(&self) {
        if let (Some(_), Some(agent)) = (self.guest.get(), self.rendezvous.client()) {
            agent.keep_clock();
        }
    }

    /// Whether [`Session::meet`] has succeeded.
    pub(crate) fn is_met(&self) -> bool {
        self.guest.get().is_some()
    }

    /// The agent's report when it became ready.
    pub(crate) fn boot_times(&self) -> Option<BootTimes> {
        self.rendezvous.boot_times()
    }

    pub(crate) fn uds_path(&self) -> &Path {
        &self.uds_path
    }

    pub(crate) fn end(&self) -> &Arc<EndSignal> {
        &self.end
    }

    /// Waits for the end of the VM.
    pub(crate) fn wait(&self) -> VmEnd {
        // Without a time-out the wait returns only at the end.
        self.end.wait(None).unwrap_or(VmEnd::Stopped)
    }
}
