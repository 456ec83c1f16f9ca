//! How reports write durations in JSON: numbers of milliseconds, to the microsecond (`#[serde(with = "milliseconds")]`).
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Serialize)]
//! struct Report {
//!     #[serde(rename = "boot_ms", with = "bellows_vmm::milliseconds")]
//!     boot: Duration,
//! }
//!
//! let report = Report { boot: Duration::from_micros(1500) };
//! assert_eq!(serde_json::to_string(&report)?, r#"{"boot_ms":1.5}"#);
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de};

/// Writes a duration.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(number(*time))
}

/// Writes a duration, or `null`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_option<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(number).serialize(serializer)
}

/// Reads a duration.
///
/// # Errors
/// It is not a number, or it is negative or too large.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(deserializer)? / 1e3).map_err(de::Error::custom)
}

fn number(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
