//! Decides where end-to-end work runs: on this machine's KVM or in the lab.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where microVMs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// This machine has KVM backed by the processor.
    Kvm,
    /// Without such KVM, an emulated host is booted.
    Lab,
}

impl Host {
    /// Looks at this machine. A `/dev/kvm` that cannot make a VM, or that is not backed by AMD-V or VT-x, doesn't count.
    pub fn detect() -> Self {
        if hardware_module() && processor_flag() && can_create_vm() { Self::Kvm } else { Self::Lab }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        })
    }
}

/// `kvm_pvm` also answers as KVM but emulates most of what a guest kernel does, and only runs kernels written for it.
fn hardware_module() -> bool {
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    (module("kvm_intel") || module("kvm_amd")) && !module("kvm_pvm")
}

fn processor_flag() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn can_create_vm() -> bool {
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    let Ok(kvm) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else { return false };
    // SAFETY: KVM_CREATE_VM takes a machine type by value and touches no memory of this process.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    if vm < 0 {
        return false;
    }
    // SAFETY: `vm` is a descriptor the call above made, and nothing else owns it.
    unsafe { libc::close(vm) };
    true
}
