//! `/hotplug/memory`.

use bellows_vmm::{ByteSize, ElasticBaseConfig, ElasticBaseReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Machine;
use crate::rest::fault::Fault;

/// What a guest plugs at a time.
const BLOCK_MIB: u64 = 2;
/// What the host gives the guest access to at a time.
const SLOT_MIB: u64 = 128;
/// How much may come for each MiB of base memory, which holds its memory map.
const RATIO: u32 = 16;

/// Memory that may come while the VM runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryHotplug {
    total_size_mib: u64,
    #[serde(default = "block_mib")]
    block_size_mib: u64,
    #[serde(default = "slot_mib")]
    slot_size_mib: u64,
}

/// `PATCH /hotplug/memory`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryHotplugUpdate {
    pub(crate) requested_size_mib: u64,
}

const fn block_mib() -> u64 {
    BLOCK_MIB
}

const fn slot_mib() -> u64 {
    SLOT_MIB
}

impl MemoryHotplug {
    /// Refuses what no VM can have.
    pub(crate) fn check(self, machine: Machine) -> Result<(), Fault> {
        let Self { total_size_mib, block_size_mib, slot_size_mib } = self;
        if block_size_mib != BLOCK_MIB {
            return Err(Fault::unsupported("block_size_mib", block_size_mib, BLOCK_MIB));
        }
        if slot_size_mib != SLOT_MIB {
            return Err(Fault::unsupported("slot_size_mib", slot_size_mib, SLOT_MIB));
        }
        let most = machine.mem_size_mib.saturating_mul(RATIO.into());
        if !total_size_mib.is_multiple_of(SLOT_MIB) || !(SLOT_MIB..=most).contains(&total_size_mib) {
            let expected = format!("a multiple of {SLOT_MIB}, up to {RATIO} times `mem_size_mib`, which is {most}");
            return Err(Fault::value("total_size_mib", total_size_mib, expected));
        }
        Ok(())
    }

    /// The memory as the library takes it.
    pub(crate) fn config(self, machine: Machine) -> ElasticBaseConfig {
        let most = ByteSize::mib(machine.mem_size_mib.saturating_add(self.total_size_mib));
        ElasticBaseConfig { movable_ratio: RATIO, by_request: true, ..ElasticBaseConfig::new(most) }
    }

    /// The body of `GET /hotplug/memory`.
    pub(crate) fn status(self, report: &ElasticBaseReport) -> Value {
        json!({
            "block_size_mib": self.block_size_mib,
            "total_size_mib": self.total_size_mib,
            "slot_size_mib": self.slot_size_mib,
            "plugged_size_mib": report.plugged.get() >> 20,
            "requested_size_mib": report.target.get() >> 20,
        })
    }
}

impl MemoryHotplugUpdate {
    /// What is to be plugged of `hotplug`.
    pub(crate) fn size(self, hotplug: MemoryHotplug) -> Result<ByteSize, Fault> {
        let (wanted, most) = (self.requested_size_mib, hotplug.total_size_mib);
        if wanted > most || !wanted.is_multiple_of(BLOCK_MIB) {
            let expected = format!("an even number, up to {most}, which is `total_size_mib`");
            return Err(Fault::value("requested_size_mib", wanted, expected));
        }
        Ok(ByteSize::mib(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hotplug(text: &str) -> MemoryHotplug {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn sizes_are_those_that_the_device_has() {
        let machine = Machine::default();
        let good = hotplug(r#"{"total_size_mib": 2048, "block_size_mib": 2}"#);
        good.check(machine).unwrap();
        let config = good.config(machine);
        assert_eq!((config.max, config.by_request), (ByteSize::mib(2176), true));
        for (text, part) in [
            (r#"{"total_size_mib": 256, "block_size_mib": 4}"#, "`block_size_mib` is 4, which is not supported yet"),
            (r#"{"total_size_mib": 256, "slot_size_mib": 256}"#, "`slot_size_mib` is 256, which is not supported yet"),
            (r#"{"total_size_mib": 0}"#, "`total_size_mib` is 0: expected a multiple of 128"),
            (r#"{"total_size_mib": 130}"#, "is 130"),
            (r#"{"total_size_mib": 2176}"#, "which is 2048"),
            (r#"{"total_size_mib": 18446744073709551488}"#, "is 18446744073709551488"),
        ] {
            let message = hotplug(text).check(machine).unwrap_err().message;
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_size_is_whole_blocks_of_what_there_is() {
        let size =
            |requested_size_mib| MemoryHotplugUpdate { requested_size_mib }.size(hotplug(r#"{"total_size_mib": 256}"#));
        assert_eq!((size(0), size(256)), (Ok(ByteSize::bytes(0)), Ok(ByteSize::mib(256))));
        for wrong in [1, 258, u64::MAX] {
            assert!(size(wrong).unwrap_err().message.contains("up to 256"));
        }
    }
}
