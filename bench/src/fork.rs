//! `bench fork`: what a further Python costs in time and memory, as a container of its own and as a fork of a zygote.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cost::Cost;

/// Memory of each partition: the zygote's, and those of instances.
pub const PARTITION_MIB: u64 = 128;

/// How an instance starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `python3 -c ...` in a container.
    Container,
    /// The same as a fork of a zygote that has imported its modules.
    Fork,
}

impl Way {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 2] = [Self::Container, Self::Fork];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Container => "container",
            Self::Fork => "fork",
        })
    }
}

/// A line of the program's output: one instance, which stays and does nothing after its first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How it started.
    pub way: Way,
    /// The number of its VM, and its own in there, both from 0.
    pub vm: usize,
    /// See `vm`.
    pub number: usize,
    /// From the request for its memory and its process, by one call, until its first line has come.
    pub time: Duration,
    /// The same, if time is counted.
    pub cost: Option<Cost>,
    /// What the host holds of the partitions' memory then, in bytes.
    pub partition_bytes: u64,
    /// The same of the guest's other memory.
    pub base_bytes: u64,
}
