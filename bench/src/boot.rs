//! `bench boot`: time to a guest that can be called, and memory beside it.

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

/// A line of what the program prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// One boot.
    Boot(Boot),
    /// One boot under the eyes of the kernel's tracer, which slows it down.
    Traced(Traced),
}

/// One boot, from the start of the monitor's process until the host knows that the guest's agent can be called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// Whose.
    pub monitor: Monitor,
    /// Each monitor boots twice in a round, so that it can be compared with itself: 0 or 1.
    pub turn: usize,
    /// How long it took.
    pub time: Duration,
    /// What it cost, where time is counted.
    pub cost: Option<Cost>,
    /// Memory of the process then.
    pub overhead: Overhead,
}

/// Where the time of one boot went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// Whose.
    pub monitor: Monitor,
    /// In order; together they are the whole boot.
    pub phases: Vec<Phase>,
}

/// A part of a boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What happens in it.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// How often the guest was left in it, by the processor's reason.
    pub exits: BTreeMap<String, u64>,
}
