//! `bench layers`: disk reads and memory of VMs of one image, and the time until a function runs.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::smaps::Overhead;

/// How an image reaches the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Each VM has a raw disk with an ext4 file system of its own, a copy.
    Copies,
    /// Over virtio-blk, a disk for each layer.
    BlkLayers,
    /// Over virtio-blk, one disk.
    BlkFlat,
    /// Over virtio-pmem, a disk for each layer.
    PmemLayers,
    /// Over virtio-pmem, one disk.
    PmemFlat,
}

impl Way {
    /// The ways that are compared with copies.
    pub const OURS: [Self; 4] = [Self::BlkLayers, Self::BlkFlat, Self::PmemLayers, Self::PmemFlat];
    /// All, copies first.
    pub const ALL: [Self; 5] = [Self::Copies, Self::BlkLayers, Self::BlkFlat, Self::PmemLayers, Self::PmemFlat];

    /// The arguments of `bellows run` for it; `None` for a copy, which is not an image.
    pub fn arguments(self) -> Option<[&'static str; 2]> {
        Some(match self {
            Self::Copies => return None,
            Self::BlkLayers => ["--transport=blk", "--shape=layers"],
            Self::BlkFlat => ["--transport=blk", "--shape=flat"],
            Self::PmemLayers => ["--transport=pmem", "--shape=layers"],
            Self::PmemFlat => ["--transport=pmem", "--shape=flat"],
        })
    }

    /// Whether the guest uses the host's page cache in place.
    pub fn is_pmem(self) -> bool {
        matches!(self, Self::PmemLayers | Self::PmemFlat)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Copies => "copies",
            Self::BlkLayers => "blk-layers",
            Self::BlkFlat => "blk-flat",
            Self::PmemLayers => "pmem-layers",
            Self::PmemFlat => "pmem-flat",
        })
    }
}

/// The function's line of JSON, printed before it waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The guest's page cache of files that have a disk behind them.
    pub cached_bytes: u64,
    /// Size of the guest kernel's memory map of device memory and base memory.
    pub memory_map_bytes: u64,
}

/// A line of the program's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A function in one of many VMs has answered.
    Answered {
        /// The kind of VM.
        way: Way,
        /// Since the first of them was started.
        after: Duration,
    },
    /// All functions of a kind have answered.
    Together(Together),
    /// A single VM was started, and its function has printed its first line.
    Started(Started),
}

/// Many VMs of one image that all run, started with a cold page cache of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// How the image reached them.
    pub way: Way,
    /// Bytes read from the disk in that time.
    pub disk_bytes_read: u64,
    /// From the first start to the last answer.
    pub wall: Duration,
    /// For each VM, the memory of its monitor beside guest memory.
    pub overheads: Vec<Overhead>,
    /// For each VM, the answer of its function.
    pub answers: Vec<Answer>,
}

/// From the start of `bellows run` to the first line of the function.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Of the image.
    pub layers: u32,
    /// How it reached the guest.
    pub way: Way,
    /// Whether the host's page cache was cold.
    pub cold: bool,
    /// How long it took.
    pub time: Duration,
}
