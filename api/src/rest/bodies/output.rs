//! `/serial`, `/logger` and `/metrics`: where output goes.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bellows_vmm::SerialOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limiter::{self, Bucket};
use crate::rest::fault::Fault;

/// The serial console.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serial {
    serial_out_path: Option<PathBuf>,
    rate_limiter: Option<Bucket>,
}

impl Serial {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        limiter::check_bucket(self.rate_limiter)
    }

    /// Standard output unless a file is named.
    pub(crate) fn config(&self) -> SerialOutput {
        self.serial_out_path.clone().map_or(SerialOutput::Stdout, SerialOutput::File)
    }
}

/// The log of the monitor.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) level: Option<Level>,
    pub(crate) show_level: Option<bool>,
    pub(crate) show_log_origin: Option<bool>,
    pub(crate) module: Option<String>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, PartialEq, Serialize)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return Err(format!("{text:?} is not a level: expected Off, Error, Warn, Info, Debug or Trace")),
        })
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where metrics go.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    pub(crate) metrics_path: PathBuf,
}

/// Opens a file once, so that a request that names one that is missing is refused, and not the boot. Does not wait for the other
/// end of a pipe.
pub(super) fn openable(field: &str, path: &Path, write: bool) -> Result<(), Fault> {
    let opened = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path);
    opened.map(drop).map_err(|error| {
        let access = if write { "read and write" } else { "read" };
        Fault::value(field, format!("`{}`", path.display()), format!("a file that Bellows can {access}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_firecrackers_names() {
        for (text, level) in
            [("Warning", Level::Warn), ("warn", Level::Warn), ("ERROR", Level::Error), ("Off", Level::Off)]
        {
            assert_eq!(text.parse(), Ok(level));
        }
        let logger = serde_json::from_str::<Logger>(r#"{"level": "loud"}"#).unwrap_err().to_string();
        assert!(logger.contains("\"loud\" is not a level"), "{logger}");
    }

    #[test]
    fn the_console_is_standard_output_unless_a_file_is_named() {
        assert_eq!(Serial::default().config(), SerialOutput::Stdout);
        let serial: Serial = serde_json::from_str(r#"{"serial_out_path": "c.log"}"#).unwrap();
        serial.check().unwrap();
        assert_eq!(serial.config(), SerialOutput::File("c.log".into()));
        let limited = r#"{"rate_limiter": {"size": 5, "refill_time": 1}}"#;
        assert!(serde_json::from_str::<Serial>(limited).unwrap().check().is_err());
    }
}
