//! A running VM.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bellows_devices::bus::Bus;
use bellows_devices::event_loop::EventLoop;
use bellows_memory::{BaseMemory, Discarder};
use bellows_protocol::ready::BootTimes;
use tempfile::TempDir;

use crate::config::VmConfig;
use crate::console::Console;
use crate::deadline::Deadline;
use crate::end::{EndSignal, VmEnd};
use crate::guest::agent::{AgentClient, AgentError, GuestInfo, GuestStatistics, SHORT};
use crate::guest::ready::NotReady;
use crate::guest::rendezvous::Rendezvous;
use crate::kvm::{ExitCounts, Gate, Machine, VcpuPool};
use crate::resident::resident_bytes;
use crate::resources::disks::Disks;
use crate::resources::images::Images;
use crate::resources::partitions::Partitions;
use crate::virtio_bus::VirtioBus;

/// There is nobody in the guest to ask.
#[derive(Debug, thiserror::Error)]
pub enum NotRunning {
    /// [`Vm::wait_ready`] has not returned yet.
    #[error("the guest's agent is not ready yet")]
    NotReady,
    /// The VM is over.
    #[error("the VM has ended: {0}")]
    Ended(VmEnd),
}

/// Why the guest can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The agent did not say that it is ready.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The agent said so, but can't be called.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// A running VM, made by [`VmBuilder`](crate::VmBuilder). All methods may be called from any thread. Dropping it stops it
/// and removes the sockets that it made.
pub struct Vm {
    // Dropped from the top: first what runs, then what it runs on.
    pub(crate) vcpus: VcpuPool,
    pub(crate) console: Option<Console>,
    pub(crate) _mmio: Arc<Bus>,
    pub(crate) _ports: Arc<Bus>,
    pub(crate) bus: VirtioBus,
    pub(crate) disks: Disks,
    pub(crate) images: Images,
    pub(crate) partitions: Partitions,
    pub(crate) _event_loop: EventLoop,
    pub(crate) _discarder: Discarder,
    pub(crate) machine: Machine,
    pub(crate) base: BaseMemory,
    pub(crate) agent: Rendezvous,
    pub(crate) guest: OnceLock<GuestInfo>,
    pub(crate) end: Arc<EndSignal>,
    pub(crate) uds_path: PathBuf,
    pub(crate) _directory: Option<TempDir>,
    pub(crate) config: VmConfig,
    pub(crate) started: Instant,
}

impl Vm {
    /// Waits until the guest's agent can be called. Anything that asks the guest comes after this.
    ///
    /// # Errors
    /// The agent was not ready in time, the VM ended, or the agent is of another version. It may be tried again.
    pub fn wait_ready(&self, timeout: Duration) -> Result<GuestInfo, ReadyError> {
        let deadline = Deadline::after(timeout);
        let agent = self.agent.reach(&self.uds_path, deadline, &self.end)?;
        let guest = agent.hello(&self.config.partitions, deadline.left())?;
        agent.keep_clock();
        tracing::info!(
            after = ?self.started.elapsed(),
            kernel = guest.kernel_release,
            partition_mode = %guest.partition_mode,
            wanted = %self.config.partition_mode,
            instances_base = %guest.instances_base,
            "the guest is ready"
        );
        Ok(self.guest.get_or_init(|| guest).clone())
    }

    /// Waits until the VM ends by itself.
    #[must_use]
    pub fn wait(&self) -> VmEnd {
        // Without a time-out there is an end.
        self.end.wait(None).unwrap_or(VmEnd::Stopped)
    }

    /// Waits until the VM ends by itself; `None` if it still runs after `timeout`.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<VmEnd> {
        self.end.wait(Some(timeout))
    }

    /// Asks the guest to switch itself off, and stops it after `timeout` if it has not. Says how it ended: anything but
    /// [`VmEnd::PoweredOff`] and [`VmEnd::Reset`] was no good order.
    pub fn shutdown(&self, timeout: Duration) -> VmEnd {
        let start = Instant::now();
        if let Ok(agent) = self.agent()
            && let Err(error) = agent.shutdown(timeout)
        {
            tracing::warn!(%error, "the guest does not end by itself");
        } else if self.agent.client().is_some() {
            self.end.wait(Some(timeout.saturating_sub(start.elapsed())));
        }
        self.stop()
    }

    /// Stops the VM at once, without asking the guest. Says how it ended, which may have been before. Whoever reads the serial
    /// console has a second to take the rest of it.
    pub fn stop(&self) -> VmEnd {
        self.end.report(VmEnd::Stopped);
        self.vcpus.stop();
        self.console.iter().for_each(Console::close);
        self.end.ended().unwrap_or(VmEnd::Stopped)
    }

    /// Something that stops the VM, for whoever must not keep it: a thread that waits for signals, for example.
    #[must_use]
    pub fn stopper(&self) -> VmStopper {
        VmStopper { end: self.end.clone(), gate: self.machine.gate() }
    }

    /// What the VM was made from.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The Unix socket through which the host reaches ports of the guest, and beside which the guest reaches the host's.
    #[must_use]
    pub fn vsock_path(&self) -> &Path {
        &self.uds_path
    }

    /// Counters of the guest's kernel.
    ///
    /// # Errors
    /// The guest can't say.
    pub fn statistics(&self) -> Result<GuestStatistics, StatisticsError> {
        Ok(self.agent()?.statistics(SHORT)?)
    }

    /// What made the vCPUs leave the guest so far, by vCPU.
    #[must_use]
    pub fn exits(&self) -> Vec<ExitCounts> {
        self.vcpus.counts()
    }

    /// How the guest's clock stood when its kernel and its agent were done; `None` before [`Vm::wait_ready`].
    #[must_use]
    pub fn boot_times(&self) -> Option<BootTimes> {
        self.agent.boot_times()
    }

    /// Bytes of host memory under guest memory: base memory and what is plugged. What the guest's kernel keeps about images
    /// over virtio-pmem lies in base memory and is counted; their files are the host's page cache, and are not. Asks the
    /// kernel page by page, for about 20 ms where 8 GiB are there in small pages; an unplug may wait that long.
    ///
    /// # Errors
    /// The kernel can't tell.
    pub fn resident_bytes(&self) -> std::io::Result<u64> {
        resident_bytes(self.base.view())
    }

    /// What the guest said of itself.
    pub(crate) fn guest(&self) -> Result<&GuestInfo, NotRunning> {
        self.guest.get().ok_or(NotRunning::NotReady)
    }

    pub(crate) fn agent(&self) -> Result<&Arc<AgentClient>, NotRunning> {
        match (self.end.ended(), self.agent.client()) {
            (Some(end), _) => Err(NotRunning::Ended(end)),
            (None, None) => Err(NotRunning::NotReady),
            (None, Some(agent)) => Ok(agent),
        }
    }
}

/// Stops a VM without keeping it: once the VM is dropped there is nothing left to stop.
#[derive(Clone)]
pub struct VmStopper {
    end: Arc<EndSignal>,
    gate: Arc<Gate>,
}

impl VmStopper {
    /// Stops the VM and does not wait for that. All that waits for the guest ends with an error.
    pub fn stop(&self) {
        self.end.report(VmEnd::Stopped);
        self.gate.stop();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// There is no agent to ask.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// The agent can't say.
    #[error(transparent)]
    Agent(#[from] AgentError),
}
