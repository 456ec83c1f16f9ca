//! `/dev/kvm`, and a VM made from it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES,
    KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::doorbells::KvmDoorbells;
use super::gate::Gate;
use super::msi::KvmMsi;
use super::slots::KvmSlots;
use crate::arch::cpu::cpuid;
use crate::arch::layout;

/// Why this host can't run VMs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error("`{path}` does not exist: the host has no KVM, or its module (kvm_amd, kvm_intel) is not loaded")]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// The device may not be opened.
    #[error("no permission to open `{path}`: it needs read and write access (group `kvm` on most systems)")]
    Permission {
        /// The device file.
        path: PathBuf,
    },
    /// The device can't be opened for another reason.
    #[error("cannot open `{path}`")]
    Open {
        /// The device file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The device is no KVM, or one from before Linux 2.6.22.
    #[error("`{path}` speaks KVM API version {found}, expected {KVM_API_VERSION}")]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// What it says.
        found: i32,
    },
    /// A capability is missing.
    #[error("the host's KVM lacks {name}, which every VM needs")]
    Capability {
        /// Name of the capability, as in KVM's API documentation.
        name: &'static str,
    },
    /// The CPU features that guests may see could not be read.
    #[error("cannot read the CPU features that KVM supports")]
    Cpuid(#[source] io::Error),
}

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} of a new VM")]
pub struct MachineError {
    /// What was being done.
    pub step: &'static str,
    /// What KVM answered.
    #[source]
    pub source: io::Error,
}

/// A host whose KVM can run our machine.
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
}

impl Host {
    /// Opens `/dev/kvm` and checks that it can do what is needed.
    ///
    /// # Errors
    /// KVM is missing, closed to us or too old.
    pub fn open() -> Result<Self, HostError> {
        Self::open_at(Path::new("/dev/kvm"))
    }

    /// [`Host::open`] with another device file.
    ///
    /// # Errors
    /// As for [`Host::open`].
    pub fn open_at(path: &Path) -> Result<Self, HostError> {
        let open_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => HostError::Missing { path: path.to_owned() },
            io::ErrorKind::PermissionDenied => HostError::Permission { path: path.to_owned() },
            _ => HostError::Open { path: path.to_owned(), source },
        };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| open_error(error.into()))?;
        let kvm = Kvm::new_with_path(&name).map_err(|error| open_error(error.into()))?;
        let found = kvm.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(HostError::ApiVersion { path: path.to_owned(), found });
        }
        for (capability, name) in NEEDED {
            if !kvm.check_extension(capability) {
                return Err(HostError::Capability { name });
            }
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| HostError::Cpuid(error.into()))?;
        Ok(Self { kvm, cpuid: cpuid::with_brand(cpuid, cpuid::host_brand()) })
    }

    /// The most vCPUs one VM can have on this host.
    #[must_use]
    pub fn max_vcpus(&self) -> u16 {
        u16::try_from(self.kvm.get_max_vcpus()).unwrap_or(u16::MAX).min(layout::MAX_VCPUS)
    }

    /// Width of a guest-physical address in bits.
    #[must_use]
    pub fn physical_address_bits(&self) -> u8 {
        cpuid::physical_address_bits(&self.cpuid)
    }

    /// What KVM can show a guest of the host's CPU, unfiltered.
    pub(crate) fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Whether the in-kernel local APIC has a TSC-deadline timer.
    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// What every VM needs, with KVM's names.
const NEEDED: [(Cap, &str); 15] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::InternalErrorData, "KVM_CAP_INTERNAL_ERROR_DATA"),
];

/// A VM with its interrupt controllers, without memory, devices or vCPUs.
pub struct Machine {
    vm: Arc<VmFd>,
    gate: Arc<Gate>,
    slots: Arc<KvmSlots>,
    msi: Arc<KvmMsi>,
    doorbells: Arc<KvmDoorbells>,
}

impl Machine {
    /// Makes a VM: PIC, I/O APIC and (per vCPU) local APIC in the kernel, and an in-kernel timer for kernels that calibrate
    /// their clock the old way.
    ///
    /// # Errors
    /// KVM refused a step.
    pub fn new(host: &Host) -> Result<Self, MachineError> {
        let failed = |step| move |source: kvm_ioctls::Error| MachineError { step, source: io::Error::from(source) };
        let vm = loop {
            match host.kvm.create_vm() {
                Ok(vm) => break vm,
                // Making a VM waits for a lock that signals interrupt.
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(failed("make the descriptor")(error)),
            }
        };
        vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(failed("place the identity map"))?;
        vm.set_tss_address(layout::TSS as usize).map_err(failed("place the task state segment"))?;
        vm.create_irq_chip().map_err(failed("make the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(failed("make the timer"))?;
        keep_page_tables_of_other_slots(&vm).map_err(failed("turn off a quirk"))?;
        turn_off_performance_counters(&vm).map_err(failed("turn off the performance counters"))?;

        let vm = Arc::new(vm);
        let gate = Arc::new(Gate::new());
        Ok(Self {
            slots: Arc::new(KvmSlots::new(vm.clone(), gate.clone())),
            msi: Arc::new(KvmMsi::new(vm.clone())),
            doorbells: Arc::new(KvmDoorbells::new(vm.clone())),
            gate,
            vm,
        })
    }

    /// The VM's memory slots.
    #[must_use]
    pub fn slots(&self) -> Arc<KvmSlots> {
        self.slots.clone()
    }

    /// The VM's supply of MSI vectors.
    #[must_use]
    pub fn msi(&self) -> Arc<KvmMsi> {
        self.msi.clone()
    }

    /// The VM's doorbells.
    #[must_use]
    pub fn doorbells(&self) -> Arc<KvmDoorbells> {
        self.doorbells.clone()
    }

    /// What stops vCPUs for a moment.
    #[must_use]
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Makes each signal of `fd` an edge on interrupt line `gsi` of the I/O APIC.
    ///
    /// # Errors
    /// KVM refused.
    pub fn wire_line(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        self.vm.register_irqfd(fd, gsi).map_err(io::Error::from)
    }

    pub(crate) fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }
}

/// Deleting a slot drops the page tables of the whole VM unless this quirk is off (newer hosts offer that).
fn keep_page_tables_of_other_slots(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    if !enable(vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL)? {
        tracing::debug!("deleting a memory slot drops all page tables of the VM on this host");
    }
    Ok(())
}

/// Without CPUID leaves for performance monitoring KVM still gives guests on AMD the four counters that every K7 has.
/// Hosts before Linux 5.18 have no way to take them away.
fn turn_off_performance_counters(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    if !enable(vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE)? {
        tracing::debug!("guests have no performance counters on this host, or it can't take them away");
    }
    Ok(())
}

/// Turns on one of the flags of a capability, where the host has it: whether it has.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_the_device() {
        let error = |path: &str| Host::open_at(Path::new(path)).err().unwrap().to_string();
        assert!(error("/nowhere/kvm").contains("`/nowhere/kvm` does not exist"), "{}", error("/nowhere/kvm"));
        assert!(error("/dev/null").contains("`/dev/null` speaks KVM API version -1"), "{}", error("/dev/null"));
        assert!(error("/proc/self/fd").contains("cannot open"), "{}", error("/proc/self/fd"));
    }
}
