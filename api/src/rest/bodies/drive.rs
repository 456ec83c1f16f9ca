//! `/drives`.

use std::path::PathBuf;

use bellows_vmm::{DriveConfig, RateLimit};
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
    /// The file that is to take the place of the drive's.
    pub(crate) path_on_host: Option<PathBuf>,
    rate_limiter: Option<Limiter>,
}

impl Drive {
    /// Opens the file once, and refuses what Bellows does not have.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.socket.is_some() {
            return Err(Fault::unsupported("socket", "set", "null, and `path_on_host`"));
        }
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
        let mut config = DriveConfig::new(self.path_on_host.clone().unwrap_or_default(), self.read_only());
        limiter::apply(self.rate_limiter, &mut config.limits);
        config
    }

    /// Takes over what an update has changed.
    pub(crate) fn update(&mut self, update: &DriveUpdate) {
        if update.path_on_host.is_some() {
            self.path_on_host.clone_from(&update.path_on_host);
        }
        self.rate_limiter = Limiter::updated(self.rate_limiter, update.rate_limiter);
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
    /// `limits` with what is to change; `None` if nothing is.
    pub(crate) fn applied_to(&self, mut limits: RateLimit) -> Option<RateLimit> {
        limiter::apply(self.rate_limiter, &mut limits);
        self.rate_limiter.map(|_| limits)
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
    fn a_drive_has_limits_and_an_update_leaves_the_rest_as_it_is() {
        let rest = r#", "path_on_host": "/a", "rate_limiter": {"ops": {"size": 2, "refill_time": 1000}}"#;
        let mut drive = drive(rest).unwrap();
        let operations = |config: DriveConfig| config.limits.operations.unwrap().per_second.get();
        assert_eq!((operations(drive.config()), drive.config().limits.bandwidth), (2, None));
        let update =
            |rest: &str| serde_json::from_str::<DriveUpdate>(&format!(r#"{{"drive_id": "a"{rest}}}"#)).unwrap();
        assert_eq!(update(r#", "path_on_host": "/b""#).applied_to(drive.config().limits), None);
        let limiter = r#", "rate_limiter": {"bandwidth": {"size": 5, "refill_time": 1000, "one_time_burst": 9}}"#;
        let limits = update(limiter).applied_to(drive.config().limits).unwrap();
        assert_eq!(
            (limits.operations, limits.bandwidth.unwrap().one_time_burst),
            (drive.config().limits.operations, 9)
        );
        drive.update(&update(limiter));
        assert_eq!(drive.config().limits, limits, "it is shown as it is");
        drive.update(&update(r#", "path_on_host": "/b""#));
        assert_eq!((drive.config().limits, drive.config().path), (limits, "/b".into()));
        assert_eq!(serde_json::to_value(&drive).unwrap()["rate_limiter"]["bandwidth"]["one_time_burst"], 9);
    }
}
