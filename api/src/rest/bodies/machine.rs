//! `/machine-config`.

use bellows_vmm::config::{MIN_MEMORY, VCPUS};
use bellows_vmm::{Backing, ByteSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rest::fault::Fault;

/// CPUs and memory of the VM.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: u64,
    #[serde(default)]
    smt: bool,
    #[serde(default, skip_serializing)]
    cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: HugePages,
}

/// A change of it: what is missing stays.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineUpdate {
    vcpu_count: Option<u8>,
    mem_size_mib: Option<u64>,
    smt: Option<bool>,
    cpu_template: Option<CpuTemplate>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
}

/// The host's pages under guest memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub(crate) enum HugePages {
    /// What the host gives: transparent huge pages where it has them.
    #[default]
    None,
    /// 2 MiB pages out of the host's pool.
    #[serde(rename = "2M")]
    TwoMebibytes,
}

/// Firecracker's templates: what the guest sees of the CPU.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl Machine {
    /// Base memory.
    pub(crate) fn memory(&self) -> ByteSize {
        ByteSize::mib(self.mem_size_mib)
    }

    /// What is under it.
    pub(crate) fn backing(&self) -> Backing {
        match self.huge_pages {
            HugePages::None => Backing::default(),
            HugePages::TwoMebibytes => Backing::Hugetlbfs,
        }
    }

    /// Refuses what no VM can have.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if !VCPUS.contains(&self.vcpu_count) {
            let expected = format!("{} to {}", VCPUS.start(), VCPUS.end());
            return Err(Fault::value("vcpu_count", self.vcpu_count, expected));
        }
        // Beyond any host: above it, the size in bytes would not fit.
        let most = u64::MAX >> 24;
        if !self.mem_size_mib.is_multiple_of(2)
            || self.mem_size_mib < MIN_MEMORY.get() >> 20
            || self.mem_size_mib > most
        {
            let expected = format!("an even number of MiB, at least {}", MIN_MEMORY.get() >> 20);
            return Err(Fault::value("mem_size_mib", self.mem_size_mib, expected));
        }
        if self.smt {
            return Err(Fault::unsupported("smt", true, false));
        }
        if self.track_dirty_pages {
            return Err(Fault::unsupported("track_dirty_pages", true, false));
        }
        match self.cpu_template {
            None | Some(CpuTemplate::None) => Ok(()),
            Some(other) => Err(Fault::unsupported("cpu_template", format!("{other:?}"), "null or \"None\"")),
        }
    }

    /// With a change.
    ///
    /// # Errors
    /// It changes nothing.
    pub(crate) fn updated(self, update: MachineUpdate) -> Result<Self, Fault> {
        if update == MachineUpdate::default() {
            return Err(Fault::new("the body changes nothing: expected at least one property of `/machine-config`"));
        }
        Ok(Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: update.cpu_template.or(self.cpu_template),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: &str) -> String {
        let update: MachineUpdate = serde_json::from_str(change).unwrap();
        Machine::default().updated(update).unwrap().check().unwrap_err().message
    }

    #[test]
    fn what_is_missing_has_firecrackers_defaults() {
        let machine: Machine = serde_json::from_str(r#"{"vcpu_count": 2, "mem_size_mib": 256}"#).unwrap();
        machine.check().unwrap();
        assert_eq!(
            serde_json::to_value(machine).unwrap(),
            serde_json::json!({
                "vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
            })
        );
        for missing in [r#"{"vcpu_count": 2}"#, r#"{"mem_size_mib": 256}"#] {
            assert!(serde_json::from_str::<Machine>(missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn a_value_that_is_not_possible_is_named() {
        for (change, expected) in [
            (r#"{"vcpu_count": 0}"#, "`vcpu_count` is 0: expected 1 to 32"),
            (r#"{"vcpu_count": 33}"#, "`vcpu_count` is 33"),
            (r#"{"mem_size_mib": 0}"#, "`mem_size_mib` is 0: expected an even number of MiB, at least 32"),
            (r#"{"mem_size_mib": 129}"#, "`mem_size_mib` is 129"),
            (r#"{"mem_size_mib": 18446744073709551614}"#, "`mem_size_mib` is 18446744073709551614"),
            (r#"{"smt": true}"#, "`smt` is true, which is not supported yet: expected false"),
            (r#"{"track_dirty_pages": true}"#, "`track_dirty_pages`"),
            (r#"{"cpu_template": "T2S"}"#, "`cpu_template` is T2S"),
        ] {
            let message = refused(change);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_change_leaves_the_rest() {
        let update = |json| serde_json::from_str::<MachineUpdate>(json).unwrap();
        let machine = Machine::default().updated(update(r#"{"huge_pages": "2M", "cpu_template": "None"}"#)).unwrap();
        machine.check().unwrap();
        assert_eq!((machine.vcpu_count, machine.mem_size_mib, machine.backing()), (1, 128, Backing::Hugetlbfs));
        assert!(Machine::default().updated(update("{}")).is_err());
    }
}
