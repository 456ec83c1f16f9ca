//! The state of a vCPU, as KVM gives and takes it.
//!
//! The order of the calls is part of the interface (`Documentation/virt/kvm/api.rst`): asking for `mp_state` may change other
//! state, so it comes first; the timer's MSR is taken only where the local APIC is in the mode for it, so MSRs follow the APIC;
//! events are last, because setting registers drops pending events.

use bellows_memory::Version;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::arch::StateError;

/// MSRs in one call.
const MSRS: usize = 256;

/// The whole state of a vCPU between two instructions. It excludes CPUID: restore it to a vCPU with the same setup.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    version: Version<1>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a parked vCPU: `indices` are the MSRs that KVM can have.
    ///
    /// # Errors
    /// KVM refused.
    pub(crate) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, StateError> {
        let failed = |component| kvm_error("save", component);
        Ok(Self {
            version: Version,
            mp_state: vcpu.get_mp_state().map_err(failed("run state"))?,
            regs: vcpu.get_regs().map_err(failed("registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("system registers"))?,
            xsave: vcpu.get_xsave().map_err(failed("extended registers"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("extended control registers"))?,
            debugregs: vcpu.get_debug_regs().map_err(failed("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(failed("local APIC"))?,
            msrs: get_msrs(vcpu, indices)?,
            events: vcpu.get_vcpu_events().map_err(failed("events"))?,
        })
    }

    /// Gives the state to a parked vCPU.
    ///
    /// # Errors
    /// KVM refused part of it.
    pub(crate) fn restore(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let failed = |component| kvm_error("restore", component);
        vcpu.set_mp_state(self.mp_state).map_err(failed("run state"))?;
        vcpu.set_regs(&self.regs).map_err(failed("registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(failed("system registers"))?;
        // SAFETY: KVM reads 4096 bytes, the size of the type: it reads more only if the process has asked the kernel for
        // features with larger state, and this process never does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed("extended registers"))?;
        // A host without XSAVE has no such registers, and KVM refuses an empty list.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(failed("extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debugregs).map_err(failed("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(failed("local APIC"))?;
        set_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(failed("events"))
    }
}

/// The MSRs that the host's KVM can save.
///
/// # Errors
/// KVM refused.
pub(super) fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, kvm_ioctls::Error> {
    Ok(kvm.get_msr_index_list()?.as_slice().to_vec())
}

/// KVM stops at the first MSR that this vCPU does not have: that one is left out.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let failed = |component| kvm_error("save", component);
    let mut saved = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let now = &left[..left.len().min(MSRS)];
        let mut msrs = msrs(now.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(failed("MSRs"))?.min(now.len());
        saved.extend_from_slice(&msrs.as_slice()[..count]);
        let skipped = usize::from(count < now.len());
        left = &left[count + skipped..];
    }
    Ok(saved)
}

fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    for chunk in entries.chunks(MSRS) {
        let count = vcpu.set_msrs(&msrs(chunk.iter().copied())?).map_err(kvm_error("restore", "MSRs"))?;
        if let Some(refused) = chunk.get(count) {
            return Err(StateError::Msr { index: refused.index });
        }
    }
    Ok(())
}

fn msrs(entries: impl Iterator<Item = kvm_msr_entry>) -> Result<Msrs, StateError> {
    let entries: Vec<_> = entries.collect();
    let too_many = |_| kvm_error("list", "MSRs")(kvm_ioctls::Error::new(libc::ENOMEM));
    Msrs::from_entries(&entries).map_err(too_many)
}

pub(in super::super) fn kvm_error(
    action: &'static str,
    component: &'static str,
) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { action, component, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VcpuState {
        VcpuState {
            version: Version,
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs { rip: 0x100_0000, rsp: u64::MAX, ..Default::default() },
            sregs: kvm_sregs { cr3: 0x9000, ..Default::default() },
            xsave: kvm_xsave { region: [7; 1024], ..Default::default() },
            xcrs: kvm_xcrs { nr_xcrs: 1, ..Default::default() },
            debugregs: kvm_debugregs { dr7: 0x400, ..Default::default() },
            lapic: kvm_lapic_state { regs: [-1; 1024] },
            msrs: vec![kvm_msr_entry { index: 0x10, data: 5, ..Default::default() }],
            events: kvm_vcpu_events { flags: 1, ..Default::default() },
        }
    }

    #[test]
    fn a_state_outlives_the_process_as_text() {
        let text = serde_json::to_string(&state()).unwrap();
        let read: VcpuState = serde_json::from_str(&text).unwrap();
        assert_eq!((read.regs, read.sregs, read.debugregs, read.events), {
            let VcpuState { regs, sregs, debugregs, events, .. } = state();
            (regs, sregs, debugregs, events)
        });
        assert_eq!(read.xsave.region, [7; 1024]);
        assert_eq!(read.lapic.regs, [-1; 1024]);
        assert_eq!((read.mp_state.mp_state, read.msrs[0].data), (3, 5));
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        let mut value = serde_json::to_value(state()).unwrap();
        value["version"] = 2.into();
        let error = serde_json::from_value::<VcpuState>(value).unwrap_err();
        assert_eq!(error.to_string(), "the state's version is 2: expected 1");
    }

    #[test]
    fn a_state_with_more_in_it_is_refused() {
        let mut value = serde_json::to_value(state()).unwrap();
        value["nested"] = serde_json::json!(1);
        assert!(serde_json::from_value::<VcpuState>(value).unwrap_err().to_string().contains("nested"));
    }
}
