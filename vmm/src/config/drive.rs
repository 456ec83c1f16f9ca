//! Raw disks in a configuration.

use std::path::PathBuf;

use bellows_devices::virtio::limits::RateLimit;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Transport, check_path, error};

/// A raw disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// The file or block device; with [`Transport::Pmem`], a regular file.
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Rate limits at first: of bytes, and of requests. There are none with [`Transport::Pmem`], where reads are no requests.
    #[serde(default)]
    pub limits: RateLimit,
    /// How it reaches the guest. As persistent memory it is read-only, and has zeros behind its end, up to a multiple of 2 MiB.
    #[serde(default)]
    pub transport: Transport,
}

impl DriveConfig {
    /// The file or block device at `path`, without rate limits.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, read_only: bool) -> Self {
        Self { path: path.into(), read_only, limits: RateLimit::default(), transport: Transport::Blk }
    }

    /// The regular file at `path` as persistent memory, read-only.
    #[must_use]
    pub fn pmem(path: impl Into<PathBuf>) -> Self {
        Self { transport: Transport::Pmem, ..Self::new(path, true) }
    }

    /// Checks it by itself.
    pub(super) fn check(&self, field: &str) -> Result<(), ConfigError> {
        check_path(&format!("{field}.path"), &self.path)?;
        if self.transport == Transport::Blk {
            return Ok(());
        }
        if !self.read_only {
            let expected =
                "true: nothing writes a guest's persistent memory back to the file when the guest asks for that";
            return Err(error(format!("{field}.read_only"), false, expected));
        }
        if self.limits != RateLimit::default() {
            let expected = "none: reads of persistent memory are no requests";
            return Err(error(format!("{field}.limits"), "set", expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistent_memory_is_read_only_and_has_no_limits() {
        let pmem = DriveConfig::pmem("/a");
        pmem.check("drives[0]").unwrap();
        let writable = DriveConfig { read_only: false, ..pmem.clone() };
        assert_eq!(writable.check("drives[0]").unwrap_err().field, "drives[0].read_only");
        let rate = RateLimit {
            bandwidth: Some(serde_json::from_str(r#"{"per_second": 1, "burst": 1}"#).unwrap()),
            operations: None,
        };
        let limited = DriveConfig { limits: rate, ..pmem };
        assert_eq!(limited.check("drives[0]").unwrap_err().field, "drives[0].limits");
        DriveConfig { limits: rate, ..DriveConfig::new("/a", false) }.check("drives[0]").unwrap();
    }
}
