//! `bench counted`: a short set of operations whose cost is counted and held against bounds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// Memory that is plugged and unplugged.
pub const PARTITION_MIB: u64 = 2048;

/// Memory of the zygote that a fork is made of.
pub const ZYGOTE_MIB: u64 = 128;

/// The part of it that an instance fills before the unplug.
pub const FILLED_MIB: u64 = 256;

/// An operation that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// From the request for a VM until its guest can be called.
    Boot,
    /// 2 GiB that were never plugged before, until an instance can use them.
    FirstPlug,
    /// `echo` in a container, from the request to its exit code.
    Echo,
    /// `python3 -c pass`, in the same way.
    Python,
    /// The same as a fork of a Python that is ready.
    Fork,
    /// Unplug of 2 GiB of which an ended instance filled 256 MiB: the whole call, with the agent's counting before and after.
    Unplug,
    /// Of that, from the request until the guest cannot reach them.
    UnplugAlone,
    /// Until the host has them back.
    Discard,
    /// 2 GiB that the guest has parked, until an instance can use them: the whole call, with the agent's checks.
    ParkedPlug,
    /// Of that, from the request until the guest has accepted them.
    ParkedPlugAlone,
    /// An image of one small layer into an empty store in memory.
    Import,
}

impl Operation {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 11] = [
        Self::Boot,
        Self::FirstPlug,
        Self::Echo,
        Self::Python,
        Self::Fork,
        Self::Unplug,
        Self::UnplugAlone,
        Self::Discard,
        Self::ParkedPlug,
        Self::ParkedPlugAlone,
        Self::Import,
    ];

    /// Whether its cost is held against a bound. The time of a part ends when the thread that waits for it runs: on the lab's one processor
    /// that is before or after what the guest does next, as the scheduler likes.
    pub fn is_bounded(self) -> bool {
        !matches!(self, Self::UnplugAlone | Self::ParkedPlugAlone)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Boot => "boot",
            Self::FirstPlug => "first-plug",
            Self::Echo => "echo",
            Self::Python => "python",
            Self::Fork => "fork",
            Self::Unplug => "unplug",
            Self::UnplugAlone => "unplug-alone",
            Self::Discard => "discard",
            Self::ParkedPlug => "parked-plug",
            Self::ParkedPlugAlone => "parked-plug-alone",
            Self::Import => "import",
        })
    }
}

/// A line of the program's output: one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The operation.
    pub operation: Operation,
    /// Its cost.
    #[serde(flatten)]
    pub cost: Cost,
}
