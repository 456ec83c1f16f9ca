//! `bench counted`: a short set of operations whose cost is counted and held by bounds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// Memory that is plugged and unplugged.
pub const PARTITION_MIB: u64 = 2048;

/// How much of it an instance fills before it is unplugged.
pub const FILLED_MIB: u64 = 256;

/// An operation that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// From the request for a VM until its guest can be called.
    Boot,
    /// 2 GiB that the guest has never had, until an instance can use them.
    FirstPlug,
    /// `echo` in a container, from the request to its exit code.
    Echo,
    /// `python3 -c pass`, in the same way.
    Python,
    /// 2 GiB of which an instance filled 256 MiB and has ended: the whole call, with what the agent counts around it.
    Unplug,
    /// Of that, from the request until the guest cannot reach them.
    UnplugAlone,
    /// Until the host has them back.
    Discard,
    /// 2 GiB that the guest has parked, until an instance can use them: the whole call, with what the agent checks after it.
    ParkedPlug,
    /// Of that, from the request until the guest has accepted them.
    ParkedPlugAlone,
    /// An image of one small layer into an empty store in memory.
    Import,
}

impl Operation {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 10] = [
        Self::Boot,
        Self::FirstPlug,
        Self::Echo,
        Self::Python,
        Self::Unplug,
        Self::UnplugAlone,
        Self::Discard,
        Self::ParkedPlug,
        Self::ParkedPlugAlone,
        Self::Import,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Boot => "boot",
            Self::FirstPlug => "first-plug",
            Self::Echo => "echo",
            Self::Python => "python",
            Self::Unplug => "unplug",
            Self::UnplugAlone => "unplug-alone",
            Self::Discard => "discard",
            Self::ParkedPlug => "parked-plug",
            Self::ParkedPlugAlone => "parked-plug-alone",
            Self::Import => "import",
        })
    }
}

/// A line of what the program prints: one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Which.
    pub operation: Operation,
    /// What it cost.
    #[serde(flatten)]
    pub cost: Cost,
}
