//! `bench boot`: time until a guest can be called, and the monitor's memory beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cost::Cost;
use super::smaps::Overhead;

/// A monitor that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Monitor {
    /// Ours.
    Bellows,
    /// The peer.
    Qemu,
}

impl Monitor {
    /// Both, in the order of a round.
    pub const ALL: [Self; 2] = [Self::Bellows, Self::Qemu];
}

impl std::fmt::Display for Monitor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bellows => "bellows",
            Self::Qemu => "qemu",
        })
    }
}

/// A line of the program's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// One boot.
    Boot(Boot),
    /// One boot under the kernel's tracer, which slows it down.
    Traced(Traced),
}

/// One boot, from the start of the monitor's process until the host knows that the guest's agent can be called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// The monitor.
    pub monitor: Monitor,
    /// Each monitor boots twice in a round, so that it can be compared with itself: 0 or 1.
    pub turn: usize,
    /// How long it took.
    pub time: Duration,
    /// Its cost, if time is counted.
    pub cost: Option<Cost>,
    /// Memory of the process at that moment.
    pub overhead: Overhead,
}

/// The phases of one boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// The monitor.
    pub monitor: Monitor,
    /// In order; together they make the whole boot.
    pub phases: Vec<Phase>,
}

/// A part of a boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// Exits during it, by the processor's reason.
    pub exits: BTreeMap<String, u64>,
}
