//! What a host's KVM offers, for those who want to know before they make a VM.

use crate::kvm::{Host, HostError};

/// A host on which VMs can run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostReport {
    /// The most vCPUs that one VM can have.
    pub max_vcpus: u16,
    /// Width of a guest-physical address in bits.
    pub address_bits: u8,
    /// Whether an unplug leaves the page tables of other memory alone. Otherwise they are dropped, and built anew.
    pub removes_slots_alone: bool,
}

impl HostReport {
    /// Opens KVM, and looks for all that a VM needs.
    ///
    /// # Errors
    /// VMs cannot run: KVM is missing, not accessible or too old.
    pub fn read() -> Result<Self, HostError> {
        let host = Host::open()?;
        Ok(Self {
            max_vcpus: host.max_vcpus(),
            address_bits: host.physical_address_bits(),
            removes_slots_alone: host.removes_slots_alone(),
        })
    }
}
