//! `/dev/kvm`, and a VM made from it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::doorbells::KvmDoorbells;
use super::error::{HostError, MachineError};
use super::gate::Gate;
use super::msi::KvmMsi;
use super::slots::KvmSlots;
use crate::arch::cpu::HostCpu;
use crate::arch::vm::VmState;
use crate::arch::{self, StateError, layout};
use crate::config::{CpuTemplate, CpuidChange};

/// A host whose KVM can run our machine.
pub struct Host {
    kvm: Kvm,
    cpu: HostCpu,
}

impl Host {
    /// Opens `/dev/kvm` and checks that it has the capabilities needed.
    ///
    /// # Errors
    /// KVM is missing, not accessible or too old.
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
        for &(capability, name) in NEEDED.iter().chain(arch::vm::NEEDED) {
            if !kvm.check_extension(capability) {
                return Err(HostError::Capability { name });
            }
        }
        let cpu = HostCpu::read(&kvm).map_err(HostError::Cpu)?;
        Ok(Self { kvm, cpu })
    }

    /// Changes what guests see of the CPU.
    ///
    /// # Errors
    /// The host's KVM lacks what is asked for, or what is to change.
    pub fn change_cpu(&mut self, template: &CpuTemplate) -> Result<(), HostError> {
        let lacks = |capability: &&u32| self.kvm.check_extension_raw((**capability).into()) <= 0;
        if let Some(capability) = template.capabilities.iter().find(lacks) {
            return Err(HostError::AskedCapability(*capability));
        }
        self.cpu
            .change_cpuid(&template.cpuid)
            .map_err(|CpuidChange { leaf, subleaf, .. }| HostError::CpuidLeaf { leaf, subleaf })?;
        self.cpu.change_msrs(&template.msrs).map_err(|change| HostError::Msr(change.index))
    }

    /// The most vCPUs one VM can have on this host.
    #[must_use]
    pub fn max_vcpus(&self) -> u16 {
        u16::try_from(self.kvm.get_max_vcpus()).unwrap_or(u16::MAX).min(layout::MAX_VCPUS)
    }

    /// Width of a guest-physical address in bits.
    #[must_use]
    pub fn physical_address_bits(&self) -> u8 {
        self.cpu.address_bits()
    }

    /// Whether a memory slot goes without the page tables of all others.
    #[must_use]
    pub fn removes_slots_alone(&self) -> bool {
        arch::vm::keeps_page_tables_of_other_slots(&self.kvm)
    }

    /// The CPU features that the host offers to guests.
    pub(crate) fn cpu(&self) -> &HostCpu {
        &self.cpu
    }
}

/// The KVM capabilities that every VM needs, with KVM's names.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::InternalErrorData, "KVM_CAP_INTERNAL_ERROR_DATA"),
];

/// Whether VMs need the capability of KVM with this number.
#[must_use]
pub fn needs_capability(number: u32) -> bool {
    NEEDED.iter().chain(arch::vm::NEEDED).any(|(capability, _)| *capability as u32 == number)
}

/// A VM with its interrupt controllers, without memory, devices or vCPUs.
pub struct Machine {
    vm: Arc<VmFd>,
    gate: Arc<Gate>,
    slots: Arc<KvmSlots>,
    msi: Arc<KvmMsi>,
    doorbells: Arc<KvmDoorbells>,
}

impl Machine {
    /// Makes a VM with its interrupt controllers in the kernel.
    ///
    /// # Errors
    /// KVM refused a step.
    pub fn new(host: &Host) -> Result<Self, MachineError> {
        let failed = |step| move |source: kvm_ioctls::Error| MachineError { step, source: io::Error::from(source) };
        let vm = loop {
            match host.kvm.create_vm() {
                Ok(vm) => break vm,
                // KVM waits for a lock here, and signals interrupt that.
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(failed("make the descriptor")(error)),
            }
        };
        arch::vm::set_up(&vm).map_err(|(step, error)| failed(step)(error))?;

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

    /// The gate that stops vCPUs for a moment.
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

    /// The state of the clock and the interrupt controllers. The vCPUs must be paused ([`VcpuPool::pause`](super::VcpuPool::pause)).
    ///
    /// # Errors
    /// KVM refused.
    pub fn save(&self) -> Result<VmState, StateError> {
        VmState::save(&self.vm)
    }

    /// Restores a state of the clock and the interrupt controllers, from a VM of the same configuration. The vCPUs must
    /// be paused.
    ///
    /// # Errors
    /// KVM refused; nothing changed. After [`StateError::Torn`] the VM cannot go on.
    pub fn restore(&self, state: &VmState) -> Result<(), StateError> {
        let before = self.save()?;
        state.restore(&self.vm).map_err(|error| error.undo(|| before.restore(&self.vm)))
    }

    pub(crate) fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_device_and_its_fault() {
        let error = |path: &str| Host::open_at(Path::new(path)).err().unwrap().to_string();
        assert!(error("/nowhere/kvm").contains("`/nowhere/kvm` does not exist"), "{}", error("/nowhere/kvm"));
        assert!(error("/dev/null").contains("`/dev/null` speaks KVM API version -1"), "{}", error("/dev/null"));
        assert!(error("/proc/self/fd").contains("cannot open"), "{}", error("/proc/self/fd"));
    }
}
