//! The formats of reports: JSON for machines, round figures for people.

use bellows_memory::ByteSize;
use serde::Serialize;

use crate::error::CliError;
use crate::output::print;

/// Prints a report over several lines.
pub(crate) fn print_json(report: &impl Serialize) -> Result<(), CliError> {
    print(json(report)?)
}

/// Prints a report on one line, which a reader finds among others.
pub(crate) fn print_json_line(report: &impl Serialize) -> Result<(), CliError> {
    print(serde_json::to_string(report).map_err(CliError::Report)?)
}

/// A report in JSON, over several lines.
pub(crate) fn json(report: &impl Serialize) -> Result<String, CliError> {
    serde_json::to_string_pretty(report).map_err(CliError::Report)
}

/// `bytes` as a round figure.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => ByteSize::bytes(bytes).to_string(),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
