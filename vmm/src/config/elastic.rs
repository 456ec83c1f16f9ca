//! How base memory may grow, in a configuration.

use bellows_memory::{BLOCK, ByteSize};
use serde::{Deserialize, Serialize};

use super::{ConfigError, MAX_PIECE, VmConfig, error};

/// Most that [`ElasticBaseConfig::movable_ratio`] may be: the memory map of 16 times as much memory is a quarter of the memory that the
/// guest boots with.
const MAX_RATIO: u32 = 16;

/// Base memory that grows while the guest's instances wait for memory, and shrinks afterwards.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticBaseConfig {
    /// The most that base memory may have, with what the guest boots with.
    pub max: ByteSize,
    /// How much may come for each byte that the guest boots with, at most. What comes is movable: it holds page cache and memory of
    /// programs. The kernel's own objects stay in what the guest boots with, and more memory has more of them.
    #[serde(default = "default_movable_ratio")]
    pub movable_ratio: u32,
    /// How long, in seconds, the guest must have had enough memory before some of it goes.
    #[serde(default = "default_shrink_after_s")]
    pub shrink_after_s: u32,
    /// The share of time, in percent, for which tasks of the host may wait for memory (`some avg10` in `/proc/pressure/memory`).
    /// Above it nothing grows, and what has grown shrinks at once.
    #[serde(default = "default_host_pressure_percent")]
    pub host_pressure_percent: u8,
    /// Base memory changes by [`crate::ElasticBase::request`] alone: nothing follows the guest, which needs no agent for it.
    #[serde(default)]
    pub by_request: bool,
}

impl ElasticBaseConfig {
    /// Base memory of up to `max`, and the default of everything else.
    #[must_use]
    pub fn new(max: ByteSize) -> Self {
        Self {
            max,
            movable_ratio: default_movable_ratio(),
            shrink_after_s: default_shrink_after_s(),
            host_pressure_percent: default_host_pressure_percent(),
            by_request: false,
        }
    }

    pub(super) fn check(&self, memory: ByteSize) -> Result<(), ConfigError> {
        let Self { max, movable_ratio, shrink_after_s, host_pressure_percent, .. } = *self;
        if !(1..=MAX_RATIO).contains(&movable_ratio) {
            return Err(error("elastic_base.movable_ratio", movable_ratio, format!("1 to {MAX_RATIO}")));
        }
        let most = ByteSize::bytes(memory.get().saturating_mul(u64::from(movable_ratio) + 1)).min(MAX_PIECE);
        if max <= memory || max > most || !max.is_multiple_of(BLOCK) {
            let expected = format!(
                "a multiple of {BLOCK}, more than the {memory} of `memory` and at most {most}: `memory` and `movable_ratio` times as much"
            );
            return Err(error("elastic_base.max", max, expected));
        }
        if shrink_after_s == 0 {
            return Err(error("elastic_base.shrink_after_s", shrink_after_s, "at least 1"));
        }
        if !(1..=100).contains(&host_pressure_percent) {
            return Err(error("elastic_base.host_pressure_percent", host_pressure_percent, "1 to 100"));
        }
        Ok(())
    }
}

impl VmConfig {
    /// How much larger than at boot base memory may become.
    pub(crate) fn growth(&self) -> ByteSize {
        let max = self.elastic_base.map_or(self.memory, |elastic| elastic.max);
        ByteSize::bytes(max.get().saturating_sub(self.memory.get()))
    }
}

fn default_movable_ratio() -> u32 {
    3
}

fn default_shrink_after_s() -> u32 {
    10
}

fn default_host_pressure_percent() -> u8 {
    10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut ElasticBaseConfig)) -> Result<(), String> {
        let mut config = ElasticBaseConfig::new(ByteSize::gib(1));
        change(&mut config);
        config.check(ByteSize::mib(256)).map_err(|error| error.to_string())
    }

    #[test]
    fn bounds_are_checked_and_named() {
        check(|_| {}).unwrap();
        check(|config| config.max = ByteSize::mib(258)).unwrap();
        check(|config| (config.max, config.movable_ratio) = (ByteSize::mib(4352), 16)).unwrap();
        type Change = fn(&mut ElasticBaseConfig);
        let changes: [(Change, &str); 7] = [
            (|config| config.max = ByteSize::mib(256), "is 256 MiB"),
            (|config| config.max = ByteSize::mib(1026), "at most 1 GiB"),
            (|config| config.max = ByteSize::mib(257), "a multiple of 2 MiB"),
            (|config| config.movable_ratio = 0, "`elastic_base.movable_ratio` is 0: expected 1 to 16"),
            (|config| config.movable_ratio = 17, "expected 1 to 16"),
            (|config| config.shrink_after_s = 0, "at least 1"),
            (|config| config.host_pressure_percent = 101, "1 to 100"),
        ];
        for (change, expected) in changes {
            let error = check(change).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_size_has_to_be_given() {
        let config: ElasticBaseConfig = serde_json::from_str(r#"{"max": "1G"}"#).unwrap();
        assert_eq!(config, ElasticBaseConfig::new(ByteSize::gib(1)));
        let mut vm = VmConfig::new("vmlinux", ByteSize::mib(256));
        assert_eq!(vm.growth(), ByteSize::bytes(0));
        vm.elastic_base = Some(config);
        assert_eq!(vm.growth(), ByteSize::mib(768));
    }
}
