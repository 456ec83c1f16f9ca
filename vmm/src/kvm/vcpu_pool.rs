//! All vCPUs of a VM: made, started and ended together.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use bellows_devices::bus::Bus;

use super::exit::{ExitNotice, ExitReason, VcpuError};
use super::gate::Gate;
use super::kick::{self, Kick, RunPage};
use super::machine::{Host, Machine};
use super::statistics::{ExitCounts, VcpuStatistics};
use super::threads::Threads;
use super::vcpu::Vcpu;
use crate::arch::Loaded;
use crate::arch::cpu::cpuid::{self, Topology};
use crate::arch::cpu::{msrs, registers};

/// What the vCPUs of a VM are to be like.
pub struct Vcpus {
    /// How many: 1 to [`Host::max_vcpus`].
    pub count: u16,
    /// Where the first vCPU starts; the guest starts the others itself.
    pub entry: Loaded,
    /// Devices on I/O ports.
    pub ports: Arc<Bus>,
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// Hears how the VM ends.
    pub notice: ExitNotice,
}

/// Why the vCPUs could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum VcpuPoolError {
    /// No such number of vCPUs is possible.
    #[error("{count} vCPUs asked for: this host allows 1 to {max}")]
    Count {
        /// What was asked for.
        count: u16,
        /// What is possible.
        max: u16,
    },
    /// KVM refused a step in making a vCPU.
    #[error("cannot set the {step} of vCPU {vcpu}")]
    Setup {
        /// Index of the vCPU.
        vcpu: u16,
        /// What was being done.
        step: &'static str,
        /// What KVM answered.
        #[source]
        source: io::Error,
    },
    /// The kick signal's handler could not be installed.
    #[error("cannot install the handler of the signal that stops vCPUs")]
    Signal(#[source] io::Error),
    /// A thread could not be made.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Thread {
        /// Index of the vCPU.
        vcpu: u16,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// The vCPUs of a VM. Dropping it stops them.
pub struct VcpuPool {
    gate: Arc<Gate>,
    notice: ExitNotice,
    waiting: Mutex<Vec<Vcpu>>,
    threads: Threads,
    statistics: Vec<Arc<VcpuStatistics>>,
}

impl VcpuPool {
    /// Makes the vCPUs. Memory must be in place: the first vCPU's tables are.
    ///
    /// # Errors
    /// The number is impossible, or KVM refused a step.
    pub fn new(host: &Host, machine: &Machine, vcpus: Vcpus) -> Result<Self, VcpuPoolError> {
        let Vcpus { count, entry, ports, mmio, notice } = vcpus;
        let max = host.max_vcpus();
        if !(1..=max).contains(&count) {
            return Err(VcpuPoolError::Count { count, max });
        }
        kick::install_handler().map_err(VcpuPoolError::Signal)?;
        let gate = machine.gate();
        let mut waiting = Vec::with_capacity(count.into());
        let mut statistics = Vec::with_capacity(count.into());
        for index in 0..count {
            let failed = |step| {
                move |source: kvm_ioctls::Error| VcpuPoolError::Setup { vcpu: index, step, source: source.into() }
            };
            let fd = machine.vm().create_vcpu(index.into()).map_err(failed("descriptor"))?;
            let topology = Topology { index, count };
            let clock = cpuid::Clock { tsc_khz: fd.get_tsc_khz().ok(), deadline_timer: host.has_tsc_deadline() };
            let cpuid = cpuid::for_vcpu(host.cpuid(), topology, clock);
            fd.set_cpuid2(&cpuid).map_err(failed("CPUID"))?;
            msrs::set(&fd).map_err(failed("MSRs"))?;
            registers::set_local_apic(&fd).map_err(failed("local APIC"))?;
            if index == 0 {
                registers::set_boot_state(&fd, entry.entry.0).map_err(failed("registers"))?;
            }
            let page = RunPage::map(&fd).map_err(|source| VcpuPoolError::Setup {
                vcpu: index,
                step: "shared page",
                source,
            })?;
            let kick = Arc::new(Kick::default());
            gate.register(kick.clone());
            statistics.push(Arc::new(VcpuStatistics::default()));
            waiting.push(Vcpu {
                index,
                fd,
                ports: ports.clone(),
                mmio: mmio.clone(),
                gate: gate.clone(),
                kick,
                page,
                statistics: statistics[usize::from(index)].clone(),
            });
        }
        Ok(Self { gate, notice, waiting: Mutex::new(waiting), threads: Threads::default(), statistics })
    }

    /// Runs the vCPUs, a thread each. Does nothing when they run already.
    ///
    /// # Errors
    /// A thread could not be made; those that were are ended.
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

    /// Ends all vCPUs and waits until their threads are done, whoever else is ending them; for good. From a vCPU's own
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
