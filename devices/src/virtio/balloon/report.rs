//! What the host sees of a balloon.

use std::time::Duration;

use bellows_memory::ByteSize;
use serde::Serialize;

use super::hinting::HintingStatus;
use super::statistics::MemoryStatistics;

/// Where a balloon stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// The size that it is to have.
    pub target: ByteSize,
    /// Its size by the driver's account.
    pub actual: ByteSize,
    /// The guest's memory by the driver's account.
    pub statistics: MemoryStatistics,
    /// The time since the driver last reported them; `None` if it never has.
    pub statistics_age: Option<Duration>,
    /// Seconds between statistics; 0 without them.
    pub polling_interval_s: u16,
    /// The last run of free page hinting.
    pub hinting: HintingStatus,
    /// What has gone back to the host so far.
    pub discarded: Discards,
}

/// Memory that a balloon has given back to the host, by cause. A page that came back, was touched and came back again
/// counts twice.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Discards {
    /// Bytes that the driver put into the balloon.
    #[serde(rename = "inflated_bytes")]
    pub inflated: ByteSize,
    /// Bytes that it reported as free.
    #[serde(rename = "reported_bytes")]
    pub reported: ByteSize,
    /// Bytes that it named in runs of hinting.
    #[serde(rename = "hinted_bytes")]
    pub hinted: ByteSize,
    /// Ranges and requests that changed nothing: they named other memory than whole pages of base memory, or were malformed.
    pub refused: u64,
}
