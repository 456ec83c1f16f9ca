//! `/cpu-config`: Firecracker's custom CPU templates.

use std::num::ParseIntError;

use bellows_vmm::config::{BitChange, CpuTemplate, CpuidChange, CpuidRegister, MsrChange};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::rest::fault::Fault;

/// What the guest sees of the CPU.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct CpuConfig {
    /// Numbers of capabilities that KVM must have; behind `!`, of one that Bellows is not to check, if it would.
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<CpuidModifier>,
    #[serde(default)]
    msr_modifiers: Vec<MsrModifier>,
    /// Of other architectures: none.
    #[serde(default)]
    #[schemars(length(max = 0))]
    vcpu_features: Vec<Value>,
    /// Of other architectures: none.
    #[serde(default)]
    #[schemars(length(max = 0))]
    reg_modifiers: Vec<Value>,
}

/// A change to an answer of CPUID. Numbers are decimal, or hexadecimal behind `0x`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
struct CpuidModifier {
    leaf: String,
    subleaf: String,
    /// KVM's of the answer, which stay as they are.
    #[schemars(range(max = 7))]
    flags: u32,
    modifiers: Vec<RegisterModifier>,
}

/// A change to a register of it.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
struct RegisterModifier {
    register: Register,
    /// Behind `0b`, from the highest bit: 0, 1, or x for a bit that stays; `_` anywhere. Bits that are left out are the highest, and stay.
    bitmap: String,
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A change to a model-specific register.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
struct MsrModifier {
    addr: String,
    bitmap: String,
}

impl CpuConfig {
    /// The library's form of it.
    ///
    /// # Errors
    /// A number or a bitmap is malformed, or it asks for what no VM can do without.
    pub(crate) fn template(&self) -> Result<CpuTemplate, Fault> {
        for (field, list) in [("vcpu_features", &self.vcpu_features), ("reg_modifiers", &self.reg_modifiers)] {
            if let Some(first) = list.first() {
                return Err(Fault::value(field, first, "none: they are for aarch64"));
            }
        }
        let mut template = CpuTemplate::default();
        for text in &self.kvm_capabilities {
            match text.strip_prefix('!') {
                Some(number) => {
                    let number = self::number("kvm_capabilities", number)?;
                    if bellows_vmm::needs_capability(number) {
                        let expected = "one that VMs of Bellows do without";
                        return Err(Fault::value("kvm_capabilities", format!("`{text}`"), expected));
                    }
                }
                None => template.capabilities.push(number("kvm_capabilities", text)?),
            }
        }
        for modifier in &self.cpuid_modifiers {
            let (leaf, subleaf) = (number("leaf", &modifier.leaf)?, number("subleaf", &modifier.subleaf)?);
            if modifier.flags > 7 {
                return Err(Fault::value("flags", modifier.flags, "KVM's, 0 to 7"));
            }
            for change in &modifier.modifiers {
                let register = match change.register {
                    Register::Eax => CpuidRegister::Eax,
                    Register::Ebx => CpuidRegister::Ebx,
                    Register::Ecx => CpuidRegister::Ecx,
                    Register::Edx => CpuidRegister::Edx,
                };
                template.cpuid.push(CpuidChange { leaf, subleaf, register, bits: bitmap(&change.bitmap, 32)? });
            }
        }
        for modifier in &self.msr_modifiers {
            let index = number("addr", &modifier.addr)?;
            template.msrs.push(MsrChange { index, bits: bitmap(&modifier.bitmap, 64)? });
        }
        Ok(template)
    }
}

/// A number in decimal, or in hexadecimal behind `0x`.
fn number(field: &str, text: &str) -> Result<u32, Fault> {
    let parsed: Result<u32, ParseIntError> = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    // The standard library's takes a sign, too.
    match parsed {
        Ok(number) if !text.contains('+') => Ok(number),
        _ => Err(Fault::value(field, format!("`{}`", text.escape_debug()), "a number of 32 bits, such as 7 or 0x7")),
    }
}

/// A bitmap of up to `width` bits.
fn bitmap(text: &str, width: usize) -> Result<BitChange, Fault> {
    let wrong = || {
        let expected = format!("1 to {width} of 0, 1 and x behind 0b");
        Fault::value("bitmap", format!("`{}`", text.escape_debug()), expected)
    };
    let digits: Vec<char> = text.strip_prefix("0b").ok_or_else(wrong)?.chars().filter(|digit| *digit != '_').collect();
    if digits.is_empty() || digits.len() > width {
        return Err(wrong());
    }
    let mut bits = BitChange::default();
    for (position, digit) in digits.iter().rev().enumerate() {
        match digit {
            '0' => bits.clear |= 1 << position,
            '1' => bits.set |= 1 << position,
            'x' => {}
            _ => return Err(wrong()),
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<CpuTemplate, String> {
        let config: CpuConfig = serde_json::from_str(text).map_err(|error| error.to_string())?;
        config.template().map_err(|fault| fault.message)
    }

    /// docs/cpu_templates/cpu-templates.md of Firecracker.
    #[test]
    fn firecrackers_example_means_what_its_documentation_says() {
        let template = template(
            r#"{
                "kvm_capabilities": ["!56", "121"],
                "cpuid_modifiers": [{
                    "leaf": "0x1", "subleaf": "0x0", "flags": 0,
                    "modifiers": [{ "register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010" }]
                }],
                "msr_modifiers": [{
                    "addr": "0x10a", "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000000"
                }]
            }"#,
        );
        let template = template.unwrap();
        assert_eq!(template.capabilities, [121]);
        let bits = BitChange {
            set: 0b0000_0000_0000_0011_0000_0110_1111_0010,
            clear: 0b0000_1111_1111_1100_0011_1001_0000_1101,
        };
        assert_eq!(template.cpuid, [CpuidChange { leaf: 1, subleaf: 0, register: CpuidRegister::Eax, bits }]);
        assert_eq!(template.msrs, [MsrChange { index: 0x10a, bits: BitChange { set: 0, clear: u64::MAX } }]);
    }

    #[test]
    fn short_bitmaps_leave_the_highest_bits_and_underscores_mean_nothing() {
        assert_eq!(bitmap("0b101", 32).unwrap(), BitChange { set: 0b101, clear: 0b010 });
        assert_eq!(bitmap("0b0000_xxxx", 32).unwrap(), BitChange { set: 0, clear: 0xf0 });
        for text in ["", "0b", "101", "0b2", "0bX", "0b_", "0x1", &format!("0b{}", "x".repeat(33))] {
            assert!(bitmap(text, 32).unwrap_err().message.contains("bitmap"), "{text}");
        }
    }

    #[test]
    fn what_bellows_does_not_have_is_refused_and_named() {
        for (text, part) in [
            (r#"{"vcpu_features": [{"index": 0, "bitmap": "0b1"}]}"#, "none: they are for aarch64"),
            (r#"{"reg_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}"#, "none: they are for aarch64"),
            (r#"{"kvm_capabilities": ["!3"]}"#, "`!3`"),
            (r#"{"kvm_capabilities": ["+3"]}"#, "`+3`"),
            (r#"{"kvm_capabilities": ["99999999999"]}"#, "32 bits"),
            (r#"{"cpuid_modifiers": [{"leaf": "one", "subleaf": "0", "flags": 0, "modifiers": []}]}"#, "`one`"),
            (r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 8, "modifiers": []}]}"#, "flags"),
            (r#"{"unknown": 1}"#, "unknown field"),
        ] {
            let error = template(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
