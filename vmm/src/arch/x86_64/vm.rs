//! The rest of a VM in KVM, beside memory: interrupt controllers, a timer, and quirks turned off.

use bellows_memory::Version;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_PMU_CAPABILITY, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_clock_data, kvm_enable_cap,
    kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};

use super::cpu::kvm_error;
use super::layout;
use crate::arch::StateError;

/// The KVM capabilities that every VM needs on this architecture, with KVM's names.
pub(crate) const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
];

/// Sets up a new VM: PIC, I/O APIC and (per vCPU) local APIC in the kernel, and an in-kernel timer for kernels that calibrate
/// their clock the old way.
///
/// # Errors
/// KVM refused a step, which is named.
pub(crate) fn set_up(vm: &VmFd) -> Result<(), (&'static str, kvm_ioctls::Error)> {
    let failed = |step| move |error| (step, error);
    vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(failed("place the identity map"))?;
    vm.set_tss_address(layout::TSS.start as usize).map_err(failed("place the task state segment"))?;
    vm.create_irq_chip().map_err(failed("make the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(failed("make the timer"))?;
    keep_page_tables_of_other_slots(vm).map_err(failed("turn off a quirk"))?;
    turn_off_performance_counters(vm).map_err(failed("turn off the performance counters"))
}

/// Whether hosts of this KVM let [`keep_page_tables_of_other_slots`].
pub(crate) fn keeps_page_tables_of_other_slots(kvm: &Kvm) -> bool {
    let offered = u32::try_from(kvm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())).unwrap_or(0);
    offered & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0
}

/// Deleting a slot drops the page tables of the whole VM unless this quirk is off (newer hosts offer that).
fn keep_page_tables_of_other_slots(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    if !enable(vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL)? {
        tracing::debug!("deleting a memory slot drops all page tables of the VM on this host");
    }
    Ok(())
}

/// Without CPUID leaves for performance monitoring KVM still gives guests on AMD the four counters that every K7 has.
/// Hosts before Linux 5.18 cannot disable them.
fn turn_off_performance_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    if !enable(vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE)? {
        tracing::debug!("this host has no performance counters for guests, or cannot disable them");
    }
    Ok(())
}

/// Turns on a flag of a capability if the host has it. Returns whether it has.
fn enable(vm: &VmFd, capability: u32, flag: u32) -> Result<bool, kvm_ioctls::Error> {
    let offered = u32::try_from(vm.check_extension_raw(capability.into())).unwrap_or(0);
    if offered & flag == 0 {
        return Ok(false);
    }
    let mut request = kvm_enable_cap { cap: capability, ..Default::default() };
    request.args[0] = flag.into();
    vm.enable_cap(&request)?;
    Ok(true)
}

/// What a VM has beside its vCPUs and memory: the clock, the interrupt controllers and the timer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    version: Version<1>,
    clock: kvm_clock_data,
    /// PIC (master, slave) and I/O APIC.
    interrupts: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
}

impl VmState {
    /// Reads the state of a VM whose vCPUs are parked.
    ///
    /// # Errors
    /// KVM refused.
    pub(crate) fn save(vm: &VmFd) -> Result<Self, StateError> {
        let failed = |component| kvm_error("save", component);
        let controller = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(failed("interrupt controllers"))?;
            Ok(chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let mut clock = vm.get_clock().map_err(failed("clock"))?;
        // The other flags describe the moment of reading; `KVM_SET_CLOCK` refuses them.
        clock.flags = 0;
        Ok(Self {
            version: Version,
            clock,
            interrupts: chips.into_iter().map(controller).collect::<Result<_, StateError>>()?,
            timer: vm.get_pit2().map_err(failed("timer"))?,
        })
    }

    /// Gives the state to a VM whose vCPUs are parked. The guest's clock goes on from where it was.
    ///
    /// # Errors
    /// KVM refused part of it.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        let failed = |component| kvm_error("restore", component);
        for chip in &self.interrupts {
            vm.set_irqchip(chip).map_err(failed("interrupt controllers"))?;
        }
        vm.set_pit2(&self.timer).map_err(failed("timer"))?;
        vm.set_clock(&self.clock).map_err(failed("clock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_another_version_is_refused() {
        let (clock, timer) = (kvm_clock_data::default(), kvm_pit_state2::default());
        let state = VmState { version: Version, clock, interrupts: vec![kvm_irqchip::default()], timer };
        let mut value = serde_json::to_value(state).unwrap();
        assert!(serde_json::from_value::<VmState>(value.clone()).is_ok());
        value["version"] = 2.into();
        let error = serde_json::from_value::<VmState>(value).unwrap_err();
        assert_eq!(error.to_string(), "the state's version is 2: expected 1");
    }
}
