//! `/drives`.

use std::path::PathBuf;

use bellows_vmm::DriveConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limiter::{self, Limiter};
use super::output::openable;
use crate::rest::fault::Fault;

/// A disk.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    pub(crate) drive_id: String,
    pub(crate) partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(default)]
    cache_type: CacheType,
    #[serde(default)]
    pub(crate) is_read_only: Option<bool>,
    path_on_host: Option<PathBuf>,
    #[serde(skip_serializing)]
    rate_limiter: Option<Limiter>,
    io_engine: Option<IoEngine>,
    #[serde(skip_serializing)]
    socket: Option<PathBuf>,
}

/// What a flush of the guest does. Bellows always carries it out, which either kind allows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
enum IoEngine {
    Sync,
    Async,
}

/// `PATCH /drives`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriveUpdate {
    pub(crate) drive_id: String,
    path_on_host: Option<PathBuf>,
    rate_limiter: Option<Limiter>,
}

impl Drive {
    /// Opens the file once, and refuses what Bellows does not have.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.socket.is_some() {
            return Err(Fault::unsupported("socket", "set", "null, and `path_on_host`"));
        }
        limiter::check(self.rate_limiter)?;
        if self.io_engine == Some(IoEngine::Async) {
            return Err(Fault::unsupported("io_engine", "\"Async\"", "\"Sync\" or null"));
        }
        let is_word = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if let Some(partuuid) = self.partuuid.as_ref().filter(|text| !is_word(text)) {
            return Err(Fault::value("partuuid", format!("{partuuid:?}"), "letters, digits and `-`"));
        }
        match &self.path_on_host {
            None => Err(Fault::value("path_on_host", "missing", "the path of a file or block device")),
            Some(path) => openable("path_on_host", path, !self.read_only()),
        }
    }

    fn read_only(&self) -> bool {
        self.is_read_only.unwrap_or(false)
    }

    /// The disk as the library takes it.
    pub(crate) fn config(&self) -> DriveConfig {
        DriveConfig { path: self.path_on_host.clone().unwrap_or_default(), read_only: self.read_only() }
    }

    /// The kernel parameters by which the guest finds its root file system here; none unless it is the root device.
    pub(crate) fn root_parameters(&self) -> Vec<String> {
        if !self.is_root_device {
            return Vec::new();
        }
        let device = match &self.partuuid {
            Some(partuuid) => format!("root=PARTUUID={partuuid}"),
            // The root device is the first disk.
            None => "root=/dev/vda".to_owned(),
        };
        vec![device, if self.read_only() { "ro" } else { "rw" }.to_owned()]
    }
}

impl DriveUpdate {
    /// Refuses what cannot change while the guest runs: all that is left changes nothing.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        limiter::check(self.rate_limiter)?;
        match &self.path_on_host {
            None => Ok(()),
            Some(path) => {
                let expected = "null; `DELETE` and `PUT` exchange a disk";
                Err(Fault::unsupported("path_on_host", format!("`{}`", path.display()), expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(rest: &str) -> Result<Drive, serde_json::Error> {
        serde_json::from_str(&format!(r#"{{"drive_id": "a", "is_root_device": true{rest}}}"#))
    }

    #[test]
    fn the_root_device_is_on_the_command_line() {
        let parameters = |rest| drive(rest).unwrap().root_parameters();
        assert_eq!(parameters(""), ["root=/dev/vda", "rw"]);
        let partuuid = r#", "partuuid": "0eaa91a0-01", "is_read_only": true"#;
        assert_eq!(parameters(partuuid), ["root=PARTUUID=0eaa91a0-01", "ro"]);
        let mut data = drive("").unwrap();
        data.is_root_device = false;
        assert!(data.root_parameters().is_empty());
    }

    #[test]
    fn what_bellows_lacks_is_refused_by_name() {
        let file = r#", "path_on_host": "/proc/version", "is_read_only": true"#;
        let check = |rest: &str| drive(&format!("{file}{rest}")).unwrap().check();
        check("").unwrap();
        check(r#", "io_engine": "Sync", "cache_type": "Writeback", "rate_limiter": null, "socket": null"#).unwrap();
        for (rest, field) in [
            (r#", "io_engine": "Async""#, "`io_engine`"),
            (r#", "socket": "/s""#, "`socket`"),
            (r#", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}"#, "`rate_limiter`"),
            (r#", "partuuid": "a b""#, "`partuuid`"),
        ] {
            let message = check(rest).unwrap_err().message;
            assert!(message.contains(field) && message.contains("expected"), "{message}");
        }
        assert!(drive("").unwrap().check().unwrap_err().message.contains("`path_on_host` is missing"));
        assert!(drive(r#", "size": 1"#).is_err());
        let fifo = r#", "path_on_host": "/dev/null/x""#;
        assert!(drive(fifo).unwrap().check().unwrap_err().message.contains("/dev/null/x"));
    }

    #[test]
    fn a_disk_keeps_its_file_while_the_guest_runs() {
        let update =
            |rest: &str| serde_json::from_str::<DriveUpdate>(&format!(r#"{{"drive_id": "a"{rest}}}"#)).unwrap();
        update("").check().unwrap();
        let message = update(r#", "path_on_host": "/x""#).check().unwrap_err().message;
        assert!(message.contains("`path_on_host` is `/x`"), "{message}");
    }
}
