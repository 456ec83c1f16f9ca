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
    /// A fork that prints a line, from the request until the line is there.
    ForkFirstLine,
    /// 2 GiB of which an ended instance filled 256 MiB, from when the guest is told to unplug them until it cannot reach them.
    Unplug,
    /// The same, from the request until the host has them back.
    Reclaim,
    /// 2 GiB that the guest has parked, from the request until an instance can use them: the whole call, with the agent's checks.
    ParkedPlug,
    /// Of that, from when the guest is told until it has accepted them.
    ParkedPlugAccepted,
    /// As `Unplug`, of memory that nobody has touched: without KVM's work to take pages away that the guest had.
    UnplugUntouched,
    /// The same as `ParkedPlug` with `echo` in a container there, by one call: until its exit code.
    PlugAndEcho,
    /// An image of one small layer into an empty store in memory.
    Import,
}

impl Operation {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 13] = [
        Self::Boot,
        Self::FirstPlug,
        Self::Echo,
        Self::Python,
        Self::Fork,
        Self::ForkFirstLine,
        Self::Unplug,
        Self::Reclaim,
        Self::ParkedPlug,
        Self::ParkedPlugAccepted,
        Self::UnplugUntouched,
        Self::PlugAndEcho,
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
            Self::Fork => "fork",
            Self::ForkFirstLine => "fork-first-line",
            Self::Unplug => "unplug",
            Self::Reclaim => "reclaim",
            Self::ParkedPlug => "parked-plug",
            Self::ParkedPlugAccepted => "parked-plug-accepted",
            Self::UnplugUntouched => "unplug-untouched",
            Self::PlugAndEcho => "plug-and-echo",
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
