//! `bench layers`: what VMs of one image read from the disk and keep in memory, and how long it takes until a function runs.

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
    /// What is compared with copies.
    pub const OURS: [Self; 4] = [Self::BlkLayers, Self::BlkFlat, Self::PmemLayers, Self::PmemFlat];
    /// All, copies first.
    pub const ALL: [Self; 5] = [Self::Copies, Self::BlkLayers, Self::BlkFlat, Self::PmemLayers, Self::PmemFlat];

    /// The arguments of `bellows run` for it; a copy is no image.
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

/// What the function prints as JSON, in a line of its own, before it waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The guest's page cache of files that have a disk behind them.
    pub cached_bytes: u64,
    /// Memory that the guest's kernel keeps about device memory and base memory: its memory map.
    pub memory_map_bytes: u64,
}

/// A line of what the program prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A function in one of many VMs has answered.
    Answered {
        /// Of which kind of VM.
        way: Way,
        /// Since the first of them was started.
        after: Duration,
    },
    /// All functions of a kind have.
    Together(Together),
    /// A single VM was started, and its function has printed its first line.
    Started(Started),
}

/// Many VMs of one image that all run, after a start with nothing of the image in the host's page cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// How the image reached them.
    pub way: Way,
    /// What was read from the disk in that time.
    pub disk_bytes_read: u64,
    /// From the first start to the last answer.
    pub wall: Duration,
    /// For each VM, the memory of its monitor beside guest memory.
    pub overheads: Vec<Overhead>,
    /// For each VM, what its function answered.
    pub answers: Vec<Answer>,
}

/// From the start of `bellows run` to the first line of the function.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Of the image.
    pub layers: u32,
    /// How it reached the guest.
    pub way: Way,
    /// Nothing of the image was in the host's page cache.
    pub cold: bool,
    /// How long it took.
    pub time: Duration,
}
