//! What a guest sees of the CPU, in a configuration.

use serde::{Deserialize, Serialize};

use super::{ConfigError, error};

/// Most changes of each kind.
const MAX_CHANGES: usize = 256;

/// Changes to what KVM offers a guest of the host's CPU: features that are hidden so that the hosts of a fleet look alike. It is no protection:
/// a guest may execute instructions that CPUID does not name. What says which vCPU this is, the clock and the hypervisor stays the monitor's.
///
/// ```
/// # use bellows_vmm::config::{BitChange, CpuTemplate, CpuidChange, CpuidRegister};
/// // Without AVX2 (leaf 7, EBX, bit 5).
/// let change = CpuidChange { leaf: 7, subleaf: 0, register: CpuidRegister::Ebx, bits: BitChange { set: 0, clear: 1 << 5 } };
/// let template = CpuTemplate { cpuid: vec![change], ..CpuTemplate::default() };
/// # assert_eq!(change.bits.apply(0x3f), 0x1f);
/// ```
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CpuTemplate {
    /// Capabilities that the host's KVM must have, by their numbers (linux/kvm.h).
    #[serde(default)]
    pub capabilities: Vec<u32>,
    /// Changes to what the CPUID instruction answers.
    #[serde(default)]
    pub cpuid: Vec<CpuidChange>,
    /// Changes to model-specific registers, made before a vCPU first runs. What boot needs is set afterwards.
    #[serde(default)]
    pub msrs: Vec<MsrChange>,
}

/// A change to one register of one answer of CPUID, which KVM must support.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidChange {
    /// What the guest asks with in EAX.
    pub leaf: u32,
    /// What it asks with in ECX, where that matters; else 0.
    #[serde(default)]
    pub subleaf: u32,
    /// The register of the answer.
    pub register: CpuidRegister,
    /// Its bits.
    pub bits: BitChange,
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A change to a model-specific register, which KVM must support.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MsrChange {
    /// Its number.
    pub index: u32,
    /// Its bits.
    pub bits: BitChange,
}

/// Bits that become 1 or 0; all others stay.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BitChange {
    /// Bits that become 1.
    #[serde(default)]
    pub set: u64,
    /// Bits that become 0.
    #[serde(default)]
    pub clear: u64,
}

impl BitChange {
    /// `value` with the change.
    #[must_use]
    pub const fn apply(self, value: u64) -> u64 {
        value & !self.clear | self.set
    }

    fn check(self, field: &str, most: u64) -> Result<(), ConfigError> {
        let both = self.set & self.clear;
        if both != 0 {
            return Err(error(field, format!("{both:#x} in both"), "no bit in `set` and in `clear`"));
        }
        let used = self.set | self.clear;
        if used > most {
            return Err(error(field, format!("{used:#x}"), format!("bits of {most:#x}")));
        }
        Ok(())
    }
}

impl CpuTemplate {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (field, count) in [
            ("cpu.capabilities", self.capabilities.len()),
            ("cpu.cpuid", self.cpuid.len()),
            ("cpu.msrs", self.msrs.len()),
        ] {
            if count > MAX_CHANGES {
                return Err(error(field, count, format!("at most {MAX_CHANGES}")));
            }
        }
        for (index, change) in self.cpuid.iter().enumerate() {
            change.bits.check(&format!("cpu.cpuid[{index}].bits"), u32::MAX.into())?;
        }
        for (index, change) in self.msrs.iter().enumerate() {
            change.bits.check(&format!("cpu.msrs[{index}].bits"), u64::MAX)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_register_can_have_is_refused() {
        let bits = |set, clear| BitChange { set, clear };
        let of = |bits| CpuTemplate {
            cpuid: vec![CpuidChange { leaf: 1, subleaf: 0, register: CpuidRegister::Eax, bits }],
            ..CpuTemplate::default()
        };
        of(bits(1, u64::from(u32::MAX) - 1)).check().unwrap();
        for (template, field) in [
            (of(bits(3, 2)), "cpu.cpuid[0].bits"),
            (of(bits(0, 1 << 32)), "cpu.cpuid[0].bits"),
            (
                CpuTemplate { msrs: vec![MsrChange { index: 0, bits: bits(1, 1) }], ..CpuTemplate::default() },
                "cpu.msrs[0].bits",
            ),
            (CpuTemplate { capabilities: vec![1; 257], ..CpuTemplate::default() }, "cpu.capabilities"),
        ] {
            assert_eq!(template.check().unwrap_err().field, field);
        }
        assert_eq!(bits(0b100, 0b011).apply(0b1011), 0b1100);
    }
}
