//! Further processes in an instance.

use bellows_protocol::values::{InstanceId, ProcessId};
use nix::sys::signal::Signal;

use super::{Instances, Parts};
use crate::container::Joining;
use crate::container::copy::Copying;
use crate::container::plan::ProcessSpec;
use crate::error::{AgentError, Result};
use crate::furnish;

/// What a further process does.
#[derive(Debug)]
pub enum Program {
    /// It runs this.
    Command(ProcessSpec),
    /// It copies files, as the instance's root.
    Copying(Copying),
}

impl Instances {
    /// Starts another process in an instance; returns its number.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`], [`AgentError::Exists`], [`AgentError::Ended`],
    /// [`AgentError::Frozen`]; errors of the start.
    /// Then nothing of it remains, except processes that it may have started.
    pub fn start_process(&self, instance: &InstanceId, id: &ProcessId, program: &Program) -> Result<u32> {
        let instance = self.get(instance)?;
        let Parts { id: name, cgroup, limits, rootfs, shares_network, .. } = &instance.parts;
        if *id == ProcessId::init() {
            return Err(AgentError::Exists { kind: "process", name: id.to_string() });
        }
        let place = instance.others.begin(id)?;
        if instance.init.exit.get().is_some() {
            return Err(AgentError::Ended(name.to_string()));
        }
        let _starting = instance.freezer.start(name)?;
        let cgroup = cgroup.as_ref().ok_or_else(|| AgentError::Ended(name.to_string()))?.folder();
        let joining = Joining {
            hostname: name.as_str(),
            cgroup,
            placement: limits.placement,
            init: &instance.init,
            shares_network: *shares_network,
        };
        let process = match program {
            Program::Command(process) => {
                let credentials = furnish::credentials(rootfs.root(), &process.user)?;
                self.launcher.join(&joining, process, &credentials)?
            }
            Program::Copying(copying) => self.launcher.copy(&joining, copying)?,
        };
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

    /// Kills a process that [`Instances::start_process`] has started, and removes it.
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
}
