//! `/pmem`.

use std::path::PathBuf;

use bellows_vmm::DriveConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limiter::Limiter;
use super::output::openable;
use crate::rest::fault::Fault;

/// A file that the guest has as persistent memory.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pmem {
    pub(crate) id: String,
    path_on_host: PathBuf,
    #[serde(default)]
    pub(crate) root_device: bool,
    /// Only true is taken.
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    rate_limiter: Option<Limiter>,
}

impl Pmem {
    /// Opens the file once, and refuses what Bellows does not have.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if !self.read_only {
            let expected =
                "true: what a guest would write there is not brought to the file when the guest asks for that";
            return Err(Fault::unsupported("read_only", false, expected));
        }
        if self.rate_limiter.is_some() {
            return Err(Fault::unsupported("rate_limiter", "set", "null: only flushes could be limited"));
        }
        openable("path_on_host", &self.path_on_host, false)
    }

    /// The disk as the library takes it.
    pub(crate) fn config(&self) -> DriveConfig {
        DriveConfig::pmem(&self.path_on_host)
    }

    /// The kernel parameters by which the guest finds its root file system here; none unless it is the root device, which comes first.
    pub(crate) fn root_parameters(&self) -> Vec<String> {
        if self.root_device { vec!["root=/dev/pmem0".into(), "ro".into()] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pmem(rest: &str) -> Result<Pmem, serde_json::Error> {
        serde_json::from_str(&format!(r#"{{"id": "a", "path_on_host": "/proc/version"{rest}}}"#))
    }

    #[test]
    fn what_would_need_to_be_written_back_is_refused_and_says_so() {
        pmem(r#", "read_only": true, "rate_limiter": null"#).unwrap().check().unwrap();
        for (rest, part) in [
            ("", "`read_only` is false"),
            (r#", "read_only": false"#, "not brought to the file"),
            (r#", "read_only": true, "rate_limiter": {"ops": {"size": 2, "refill_time": 1000}}"#, "`rate_limiter`"),
        ] {
            let message = pmem(rest).unwrap().check().unwrap_err().message;
            assert!(message.contains(part), "{message}");
        }
        assert!(pmem(r#", "size": 1"#).is_err());
        let missing: Pmem =
            serde_json::from_str(r#"{"id": "a", "path_on_host": "/nowhere", "read_only": true}"#).unwrap();
        assert!(missing.check().unwrap_err().message.contains("/nowhere"));
    }

    #[test]
    fn a_root_device_is_on_the_command_line() {
        let root = pmem(r#", "read_only": true, "root_device": true"#).unwrap();
        assert_eq!(root.root_parameters(), ["root=/dev/pmem0", "ro"]);
        assert_eq!(root.config(), DriveConfig::pmem("/proc/version"));
        assert!(pmem("").unwrap().root_parameters().is_empty());
    }
}
