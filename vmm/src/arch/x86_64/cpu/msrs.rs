//! Model-specific registers as a kernel expects them from firmware. All others start as KVM resets them.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::config::MsrChange;

/// `IA32_MISC_ENABLE`: bit 0, fast string instructions.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: bit 11, MTRRs are on; memory they don't name is type 6, write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the boot MSRs of a vCPU.
pub(crate) fn set(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    write(vcpu, &[(MISC_ENABLE, FAST_STRINGS), (MTRR_DEF_TYPE, WRITE_BACK)])
}

/// Changes MSRs of a vCPU that has its CPUID.
pub(crate) fn change(vcpu: &VcpuFd, changes: &[MsrChange]) -> Result<(), kvm_ioctls::Error> {
    for MsrChange { index, bits } in changes {
        let mut found = Msrs::from_entries(&[entry(*index, 0)]).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        if vcpu.get_msrs(&mut found)? != 1 {
            tracing::error!("this vCPU has no MSR {index:#x}");
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        }
        let value = found.as_slice().first().map_or(0, |entry| entry.data);
        write(vcpu, &[(*index, bits.apply(value))])?;
    }
    Ok(())
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), kvm_ioctls::Error> {
    let entries: Vec<_> = values.iter().map(|&(index, data)| entry(index, data)).collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    let set = vcpu.set_msrs(&msrs)?;
    if set == entries.len() {
        return Ok(());
    }
    // KVM stops at the first one it does not know.
    tracing::error!("KVM refused MSR {:#x}", entries[set].index);
    Err(kvm_ioctls::Error::new(libc::EINVAL))
}
