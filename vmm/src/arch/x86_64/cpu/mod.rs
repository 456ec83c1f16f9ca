//! vCPUs: their setup before they first run, and the details of their errors.

mod cpuid;
mod msrs;
mod registers;
mod state;

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

pub(crate) use registers::write_boot_tables;
pub use state::VcpuState;
pub(super) use state::kvm_error;

use crate::arch::Loaded;
use crate::config::{CpuidChange, MsrChange};

/// The CPU features that the host's KVM can offer a guest.
pub(crate) struct HostCpu {
    /// Unfiltered.
    cpuid: CpuId,
    /// The in-kernel local APIC has a TSC-deadline timer.
    deadline_timer: bool,
    /// MSRs that are part of a vCPU's state.
    msrs: Vec<u32>,
    /// What guests find in some of them.
    changed_msrs: Vec<MsrChange>,
}

/// The place of a vCPU among all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    /// Index, which is its APIC id.
    pub index: u16,
    /// Number of vCPUs.
    pub count: u16,
}

impl HostCpu {
    /// # Errors
    /// KVM refused.
    pub(crate) fn read(kvm: &Kvm) -> io::Result<Self> {
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Self {
            cpuid: cpuid::with_brand(cpuid, cpuid::host_brand()),
            deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
            msrs: state::msr_indices(kvm)?,
            changed_msrs: Vec::new(),
        })
    }

    /// Changes what is offered. What a vCPU's place, the clock and the hypervisor say is put over it.
    ///
    /// # Errors
    /// The change to an answer that KVM does not have; all before it are made.
    pub(crate) fn change_cpuid(&mut self, changes: &[CpuidChange]) -> Result<(), CpuidChange> {
        changes.iter().try_for_each(|change| cpuid::change(&mut self.cpuid, *change).ok_or(*change))
    }

    /// Changes MSRs of vCPUs that are set up from now on.
    ///
    /// # Errors
    /// The change to one that KVM does not have; none is made.
    pub(crate) fn change_msrs(&mut self, changes: &[MsrChange]) -> Result<(), MsrChange> {
        if let Some(change) = changes.iter().find(|change| !self.msrs.contains(&change.index)) {
            return Err(*change);
        }
        self.changed_msrs.extend_from_slice(changes);
        Ok(())
    }

    /// Width of a guest-physical address in bits.
    pub(crate) fn address_bits(&self) -> u8 {
        cpuid::physical_address_bits(&self.cpuid)
    }

    /// MSRs that are part of a vCPU's state.
    pub(crate) fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Sets up a new vCPU. The first enters the kernel at `loaded`; the guest starts the others itself.
    ///
    /// # Errors
    /// KVM refused a step, which is named.
    pub(crate) fn set_up(
        &self,
        vcpu: &VcpuFd,
        topology: Topology,
        loaded: Loaded,
    ) -> Result<(), (&'static str, kvm_ioctls::Error)> {
        let failed = |step| move |error| (step, error);
        let clock = cpuid::Clock { tsc_khz: vcpu.get_tsc_khz().ok(), deadline_timer: self.deadline_timer };
        let cpuid = cpuid::for_vcpu(&self.cpuid, topology, clock);
        vcpu.set_cpuid2(&cpuid).map_err(failed("CPUID"))?;
        // Some MSRs follow CPUID.
        msrs::change(vcpu, &self.changed_msrs).map_err(failed("changed MSRs"))?;
        msrs::set(vcpu).map_err(failed("MSRs"))?;
        registers::set_local_apic(vcpu).map_err(failed("local APIC"))?;
        if topology.index == 0 {
            registers::set_boot_state(vcpu, loaded.entry.0).map_err(failed("registers"))?;
        }
        Ok(())
    }
}

/// Guest-virtual address of the instruction that a vCPU stands at; 0 where KVM does not tell.
pub(crate) fn program_counter(vcpu: &VcpuFd) -> u64 {
    vcpu.get_regs().map(|registers| registers.rip).unwrap_or_default()
}

/// Takes apart the data of `KVM_INTERNAL_ERROR_EMULATION`: flags; if flag 0 is set, a length byte and 15 instruction bytes; then
/// the exit reason and two words of exit information of the host's CPU. Returns the instruction, as far as KVM has read it, and
/// the guest-physical address, where the CPU tells.
pub(crate) fn emulation_data(data: &[u64]) -> (Vec<u8>, Option<u64>) {
    const HAS_INSTRUCTION: u64 = 1;
    /// SVM's nested page fault; its second word of information is the guest-physical address (AMD APM vol. 2, 15.25.6).
    const SVM_NESTED_PAGE_FAULT: u64 = 0x400;
    let Some((flags, mut rest)) = data.split_first() else { return (Vec::new(), None) };
    let mut instruction = Vec::new();
    if flags & HAS_INSTRUCTION != 0 && rest.len() >= 2 {
        let bytes: Vec<u8> = rest[..2].iter().flat_map(|word| word.to_le_bytes()).collect();
        instruction = bytes[1..=usize::from(bytes[0]).min(15)].to_vec();
        rest = &rest[2..];
    }
    let address = match rest {
        [SVM_NESTED_PAGE_FAULT, _, address, ..] => Some(*address),
        _ => None,
    };
    (instruction, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_failure_names_instruction_and_address() {
        let instruction = u64::from_le_bytes([3, 0x0f, 0x6f, 0x07, 0x90, 0x90, 0x90, 0x90]);
        let data = [1, instruction, 0x9090_9090_9090_9090, 0x400, 0x1_0000_0006, 0x2_4000_0000, 0, 0];
        assert_eq!(emulation_data(&data), (vec![0x0f, 0x6f, 0x07], Some(0x2_4000_0000)));
        assert_eq!(emulation_data(&[0, 48, 0x181, 0, 0, 0]), (vec![], None));
        assert_eq!(emulation_data(&[]), (vec![], None));
        assert_eq!(emulation_data(&[1, 0xff]), (vec![], None));
        assert_eq!(emulation_data(&[1, u64::MAX, u64::MAX]).0.len(), 15);
    }
}
