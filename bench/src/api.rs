//! `bench api`: what requests to a VM cost, and what the same questions to a peer do.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cost::Cost;

/// A request, from before it is sent until all of its answer has come, but where another end is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// `GET /`, by a client that stays connected.
    Get,
    /// The same by one that connects for it.
    ConnectAndGet,
    /// `GET /vm/config`.
    GetConfig,
    /// `GET /instances`, of one.
    GetInstances,
    /// `GET /metrics/prometheus`.
    GetFigures,
    /// `PUT /instances/{id}`, in a parked partition: until the command runs.
    Start,
    /// The same request, until the first byte of its function's output has come.
    FirstByte,
    /// `DELETE /instances/{id}`: until the host has its memory back.
    Remove,
    /// QEMU's `query-status` over QMP, by a client that stays connected.
    QmpStatus,
    /// The same by one that connects for it.
    QmpConnectAndStatus,
}

impl Call {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 10] = [
        Self::Get,
        Self::ConnectAndGet,
        Self::GetConfig,
        Self::GetInstances,
        Self::GetFigures,
        Self::Start,
        Self::FirstByte,
        Self::Remove,
        Self::QmpStatus,
        Self::QmpConnectAndStatus,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET /",
            Self::ConnectAndGet => "connect, GET /",
            Self::GetConfig => "GET /vm/config",
            Self::GetInstances => "GET /instances",
            Self::GetFigures => "GET /metrics/prometheus",
            Self::Start => "PUT /instances/{id}",
            Self::FirstByte => "PUT to first byte of output",
            Self::Remove => "DELETE /instances/{id}",
            Self::QmpStatus => "QEMU: query-status",
            Self::QmpConnectAndStatus => "QEMU: connect, query-status",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line of the program's output: one call, or the mean of several that came one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The call.
    pub call: Call,
    /// How long it took.
    pub time: Duration,
    /// Its cost, if time is counted.
    pub cost: Option<Cost>,
    /// Parts of it that the answer tells, in milliseconds: `plug` is the partition's.
    #[serde(default)]
    pub parts_ms: Vec<(String, f64)>,
}
