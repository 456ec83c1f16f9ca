//! All vCPUs of a VM: made, started and ended together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;

use super::error::{VcpuError, VcpuPoolError};
use super::exit::{ExitNotice, ExitReason};
use super::gate::Gate;
use super::kick::{self, Kick, RunPage};
use super::machine::{Host, Machine};
use super::statistics::{ExitCounts, VcpuStatistics};
use super::threads::Threads;
use super::vcpu::Vcpu;
use crate::arch::cpu::{Topology, VcpuState};
use crate::arch::{Buses, Loaded, StateError};

/// The setup of a VM's vCPUs.
pub struct Vcpus {
    /// Their number: 1 to [`Host::max_vcpus`].
    pub count: u16,
    /// Where the first vCPU starts; the guest starts the others itself.
    pub entry: Loaded,
    /// The devices.
    pub buses: Buses,
    /// Reports the end of the VM.
    pub notice: ExitNotice,
}

/// The vCPUs of a VM. Dropping it stops them.
pub struct VcpuPool {
    gate: Arc<Gate>,
    notice: ExitNotice,
    waiting: Mutex<Vec<Vcpu>>,
    threads: Threads,
    statistics: Vec<Arc<VcpuStatistics>>,
    fds: Vec<Arc<Mutex<VcpuFd>>>,
    /// MSRs that are part of a vCPU's state.
    msrs: Vec<u32>,
}

impl VcpuPool {
    /// Makes the vCPUs. Memory must be in place: the first vCPU's tables are.
    ///
    /// # Errors
    /// The number is impossible, or KVM refused a step.
    pub fn new(host: &Host, machine: &Machine, vcpus: Vcpus) -> Result<Self, VcpuPoolError> {
        let Vcpus { count, entry, buses, notice } = vcpus;
        let max = host.max_vcpus();
        if !(1..=max).contains(&count) {
            return Err(VcpuPoolError::Count { count, max });
        }
        kick::install_handler().map_err(VcpuPoolError::Signal)?;
        let gate = machine.gate();
        let mut waiting = Vec::with_capacity(count.into());
        let mut statistics = Vec::with_capacity(count.into());
        let mut fds = Vec::with_capacity(count.into());
        for index in 0..count {
            let failed = |step| {
                move |source: kvm_ioctls::Error| VcpuPoolError::Setup { vcpu: index, step, source: source.into() }
            };
            let fd = machine.vm().create_vcpu(index.into()).map_err(failed("descriptor"))?;
            let set_up = host.cpu().set_up(&fd, Topology { index, count }, entry);
            set_up.map_err(|(step, error)| failed(step)(error))?;
            let page = RunPage::map(&fd).map_err(|source| VcpuPoolError::Setup {
                vcpu: index,
                step: "shared page",
                source,
            })?;
            let kick = Arc::new(Kick::default());
            gate.register(kick.clone());
            let fd = Arc::new(Mutex::new(fd));
            fds.push(fd.clone());
            statistics.push(Arc::new(VcpuStatistics::default()));
            waiting.push(Vcpu {
                index,
                fd,
                buses: buses.clone(),
                gate: gate.clone(),
                kick,
                page,
                statistics: statistics[usize::from(index)].clone(),
            });
        }
        Ok(Self {
            gate,
            notice,
            waiting: Mutex::new(waiting),
            threads: Threads::default(),
            statistics,
            fds,
            msrs: host.cpu().msrs().to_vec(),
        })
    }

    /// Runs the vCPUs, each on a thread. Does nothing if they already run.
    ///
    /// # Errors
    /// The system has no thread; those already started are ended.
    pub fn start(&self) -> Result<(), VcpuPoolError> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for vcpu in waiting {
            let index = vcpu.index;
            let notice = self.notice.clone();
            self.threads.spawn(format!("vcpu{index}"), move || run(vcpu, &notice)).map_err(|source| {
                self.gate.stop();
                VcpuPoolError::Thread { vcpu: index, source }
            })?;
        }
        Ok(())
    }

    /// Pauses all vCPUs: when this returns, each has done all that its last exit asked for, and executes nothing until
    /// [`VcpuPool::resume`], whichever thread calls that. `false` if the VM stops instead. Not for a vCPU's own thread.
    #[must_use]
    pub fn pause(&self) -> bool {
        self.gate.pause()
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.gate.resume();
    }

    /// The state of each vCPU, by index.
    ///
    /// # Errors
    /// The vCPUs are not paused, or KVM refused.
    pub fn save(&self) -> Result<Vec<VcpuState>, StateError> {
        self.save_all(&self.parked()?)
    }

    /// Restores the state of each vCPU.
    ///
    /// # Errors
    /// The vCPUs are not paused, there are more or fewer, or KVM refused; nothing changed. After [`StateError::Torn`] the VM
    /// cannot go on.
    pub fn restore(&self, states: &[VcpuState]) -> Result<(), StateError> {
        let fds = self.parked()?;
        if fds.len() != states.len() {
            return Err(StateError::Vcpus { found: states.len(), expected: fds.len() });
        }
        let before = self.save_all(&fds)?;
        let restore = |states: &[VcpuState]| fds.iter().zip(states).try_for_each(|(fd, state)| state.restore(fd));
        restore(states).map_err(|error| error.undo(|| restore(&before)))
    }

    fn save_all(&self, fds: &[MutexGuard<'_, VcpuFd>]) -> Result<Vec<VcpuState>, StateError> {
        fds.iter().map(|fd| VcpuState::save(fd, &self.msrs)).collect()
    }

    /// The descriptors; the vCPUs' threads give them up while they are parked.
    fn parked(&self) -> Result<Vec<MutexGuard<'_, VcpuFd>>, StateError> {
        self.fds.iter().map(|fd| fd.try_lock().map_err(|_| StateError::Running)).collect()
    }

    /// Ends all vCPUs and waits until their threads are done, for good; several callers may do so at once. From a vCPU's own
    /// thread it does not wait for that one.
    pub fn stop(&self) {
        self.gate.stop();
        self.threads.wait();
    }

    /// Exits of each vCPU so far, by index.
    #[must_use]
    pub fn counts(&self) -> Vec<ExitCounts> {
        self.statistics.iter().map(|vcpu| vcpu.counts()).collect()
    }
}

impl Drop for VcpuPool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a vCPU's thread does.
fn run(vcpu: Vcpu, notice: &ExitNotice) {
    let index = vcpu.index;
    let result = catch_unwind(AssertUnwindSafe(|| vcpu.run()));
    match result {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(reason))) => notice.report(reason),
        Ok(Err(error)) => notice.report(ExitReason::Error(Box::new(error))),
        Err(_) => notice.report(ExitReason::Error(Box::new(VcpuError::Panicked { vcpu: index }))),
    }
}
