//! Why KVM cannot run a VM, or go on running it.

use std::io;
use std::path::PathBuf;

use kvm_bindings::KVM_API_VERSION;

use crate::arch;
use crate::kind::ErrorKind;

/// Why this host cannot run VMs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The device file is missing.
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
    /// Opening the device failed for another reason.
    #[error("cannot open `{path}`")]
    Open {
        /// The device file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The device is something else, or KVM from before Linux 2.6.22.
    #[error("`{path}` speaks KVM API version {found}: expected {KVM_API_VERSION}")]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// A capability is missing.
    #[error("the host's KVM lacks {name}, which every VM needs")]
    Capability {
        /// Name of the capability, as in KVM's API documentation.
        name: &'static str,
    },
    /// A capability that the VM's configuration asks for is missing.
    #[error("the host's KVM lacks capability {0}, which `cpu.capabilities` asks for")]
    AskedCapability(u32),
    /// A leaf of CPUID that is to change.
    #[error("the host's KVM has no leaf {leaf:#x}, subleaf {subleaf:#x} of CPUID, which `cpu.cpuid` changes")]
    CpuidLeaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// A model-specific register that is to change.
    #[error("the host's KVM has no MSR {0:#x}, which `cpu.msrs` changes")]
    Msr(u32),
    /// KVM does not report the CPU features for guests.
    #[error("cannot read the CPU features that KVM supports")]
    Cpu(#[source] io::Error),
}

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} of a new VM")]
pub struct MachineError {
    /// The step that failed.
    pub step: &'static str,
    /// KVM's error.
    #[source]
    pub source: io::Error,
}

/// Why the vCPUs could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum VcpuPoolError {
    /// The number of vCPUs is impossible.
    #[error("{count} vCPUs requested: expected 1 to {max} on this host")]
    Count {
        /// The number requested.
        count: u16,
        /// The most that this host allows.
        max: u16,
    },
    /// KVM refused a step in making a vCPU.
    #[error("cannot set the {step} of vCPU {vcpu}")]
    Setup {
        /// Index of the vCPU.
        vcpu: u16,
        /// The step that failed.
        step: &'static str,
        /// KVM's error.
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
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl VcpuPoolError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Count { .. } => ErrorKind::Invalid,
            Self::Setup { .. } | Self::Signal(_) | Self::Thread { .. } => ErrorKind::Host,
        }
    }
}

/// How a vCPU failed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM cannot emulate an instruction of the guest: most often an access to absent memory, by an instruction that
    /// KVM's emulator lacks.
    #[error("vCPU {vcpu}: KVM cannot emulate the instruction at {PC} {pc:#x}{}{}", address(*guest_address), bytes(instruction), PC = arch::PROGRAM_COUNTER)]
    Emulation {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the instruction.
        pc: u64,
        /// Guest-physical address that it touched, if the host's CPU reports it.
        guest_address: Option<u64>,
        /// The instruction's first bytes, where KVM read them.
        instruction: Vec<u8>,
    },
    /// KVM cannot continue from the vCPU's state.
    #[error("vCPU {vcpu}: KVM internal error {suberror} at {PC} {pc:#x} (data {data:x?})", PC = arch::PROGRAM_COUNTER)]
    Internal {
        /// Index of the vCPU.
        vcpu: u16,
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Guest-virtual address of the instruction.
        pc: u64,
        /// Further data from KVM.
        data: Vec<u64>,
    },
    /// The CPU refused the guest's state.
    #[error("vCPU {vcpu}: the CPU refused to enter the guest at {PC} {pc:#x}, hardware reason {reason:#x}", PC = arch::PROGRAM_COUNTER)]
    Entry {
        /// Index of the vCPU.
        vcpu: u16,
        /// The CPU's reason.
        reason: u64,
        /// Guest-virtual address of the next instruction.
        pc: u64,
    },
    /// Host memory behind a guest address is gone: a file behind it was truncated. (For broken memory on x86, KVM has
    /// the kernel send `SIGBUS` to the process instead.)
    #[error("vCPU {vcpu}: host memory behind the guest failed at {PC} {pc:#x}{}", address(*guest_address), PC = arch::PROGRAM_COUNTER)]
    HostMemory {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the instruction.
        pc: u64,
        /// Guest-physical address, if KVM reports it.
        guest_address: Option<u64>,
        /// KVM's error.
        #[source]
        source: io::Error,
    },
    /// `KVM_RUN` failed.
    #[error("vCPU {vcpu}: KVM cannot run it at {PC} {pc:#x}", PC = arch::PROGRAM_COUNTER)]
    Run {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the next instruction.
        pc: u64,
        /// KVM's error.
        #[source]
        source: io::Error,
    },
    /// An exit that our configurations never produce.
    #[error("vCPU {vcpu}: unexpected exit `{exit}` at {PC} {pc:#x}", PC = arch::PROGRAM_COUNTER)]
    Unexpected {
        /// Index of the vCPU.
        vcpu: u16,
        /// The exit.
        exit: String,
        /// Guest-virtual address of the next instruction.
        pc: u64,
    },
    /// The vCPU's thread could not be set up for kicks.
    #[error("vCPU {vcpu}: its thread cannot take the kick signal")]
    Signal {
        /// Index of the vCPU.
        vcpu: u16,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A device that the vCPU called panicked.
    #[error("vCPU {vcpu}: its thread panicked")]
    Panicked {
        /// Index of the vCPU.
        vcpu: u16,
    },
}

fn address(address: Option<u64>) -> String {
    address.map(|address| format!(", guest-physical address {address:#x}")).unwrap_or_default()
}

fn bytes(instruction: &[u8]) -> String {
    if instruction.is_empty() { String::new() } else { format!(", instruction bytes {instruction:02x?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_error_says_where() {
        let error = VcpuError::Emulation {
            vcpu: 1,
            pc: 0xffff,
            guest_address: Some(0x1_0000_0000),
            instruction: vec![0x0f, 1],
        };
        let text = error.to_string();
        assert!(text.contains("RIP 0xffff") && text.contains("0x100000000") && text.contains("[0f, 01]"), "{text}");
    }
}
