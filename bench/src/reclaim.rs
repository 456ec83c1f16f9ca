//! `bench reclaim`: time until the memory of an ended instance is back with the host.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// How a guest keeps the memory of its instances apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It does not: one virtio-mem device for all, in one movable zone.
    Shared,
    /// A device and a NUMA node for each, by the means of every kernel.
    Stock,
    /// The guest memory extension.
    Extension,
    /// A peer: QEMU's virtio-mem, one device for all.
    QemuMem,
    /// A peer: QEMU's virtio-balloon.
    QemuBalloon,
}

impl Mode {
    /// Those of Bellows, in the order of a round.
    pub const OURS: [Self; 3] = [Self::Shared, Self::Stock, Self::Extension];
    /// Those of QEMU.
    pub const PEERS: [Self; 2] = [Self::QemuMem, Self::QemuBalloon];

    /// Whether it is a peer's. Peers do not report the times of their steps.
    pub fn is_peer(self) -> bool {
        Self::PEERS.contains(&self)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shared => "shared",
            Self::Stock => "stock",
            Self::Extension => "extension",
            Self::QemuMem => "qemu-mem",
            Self::QemuBalloon => "qemu-balloon",
        })
    }
}

/// The neighbour's activity meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// It holds its memory.
    Quiet,
    /// It holds its memory, and allocates, reads files and forks all the time.
    Busy,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet",
            Self::Busy => "busy",
        })
    }
}

/// A group of measurements, in which modes take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// Whether the guest's kernel zeroes pages that it hands out (`init_on_alloc`).
    pub init_on_alloc: bool,
    /// Memory that is plugged and unplugged, in MiB. The instance fills three quarters of it.
    pub size_mib: u64,
    /// The neighbour's activity.
    pub load: Load,
}

/// The number of further samples of a group and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The group.
    #[serde(flatten)]
    pub group: Group,
    /// The mode.
    pub mode: Mode,
    /// Their number.
    pub samples: u32,
    /// How many of them measure the neighbour's speed, which takes a while: only the first ones.
    pub watched: u32,
}

/// One plug, instance and unplug: a line of the program's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The group.
    #[serde(flatten)]
    pub group: Group,
    /// The mode.
    pub mode: Mode,
    /// Whether the memory was parked in the guest before.
    pub parked: bool,
    /// From the request until the guest had accepted the memory.
    pub plug: Duration,
    /// Cost of the whole call, if time is counted.
    pub plug_cost: Option<Cost>,
    /// Until an instance could use it.
    pub usable: Duration,
    /// From the end of the instance's processes until the agent had removed it, its page cache included.
    pub remove: Duration,
    /// From the call until the guest could no longer reach the memory.
    pub unplug: Duration,
    /// Cost of the whole call, if time is counted, with the agent's counts of pages before and after.
    pub unplug_cost: Option<Cost>,
    /// The guest's part of it, by the guest's clock.
    pub guest: Duration,
    /// Of `unplug`, changing memory slots.
    pub slots: Duration,
    /// Freeing the memory on the host, after `unplug`.
    pub discard: Duration,
    /// Time that the vCPUs' threads ran during `unplug`, and until the guest's driver was done.
    pub vcpus: Duration,
    /// Pages migrated meanwhile, by reason.
    pub migrated: BTreeMap<String, u64>,
    /// Pages zeroed for the unplug.
    pub zeroed: u64,
    /// Bytes that went back to the host.
    pub discarded: u64,
    /// Bytes that the guest kept although it should have given them back.
    pub left: u64,
    /// The neighbour's progress.
    pub neighbour: Option<Neighbour>,
}

impl Sample {
    /// All pages migrated.
    pub fn migrated_pages(&self) -> u64 {
        self.migrated.values().sum()
    }
}

/// The work of a busy neighbour in three equal times, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// In the two in which nothing else happened.
    pub before: [f64; 2],
    /// In the one that began with the unplug.
    pub reclaim: f64,
}

impl Neighbour {
    /// The share of its speed that it lost, from 0 to 1; less than 0 if it was faster.
    pub fn slowdown(&self) -> f64 {
        1.0 - 2.0 * self.reclaim / (self.before[0] + self.before[1])
    }

    /// The same between the two times in which nothing happened.
    pub fn a_a(&self) -> f64 {
        1.0 - self.before[1] / self.before[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_got_half_as_much_done_lost_half() {
        let neighbour = Neighbour { before: [90.0, 110.0], reclaim: 50.0 };
        assert_eq!(neighbour.slowdown(), 0.5);
        assert!((neighbour.a_a() + 2.0 / 9.0).abs() < 1e-9);
    }

    #[test]
    fn wanted_samples_are_flat_json() {
        let group = Group { init_on_alloc: false, size_mib: 2048, load: Load::Busy };
        let wanted = Wanted { group, mode: Mode::Extension, samples: 200, watched: 20 };
        let json = serde_json::to_string(&wanted).unwrap();
        assert!(json.contains(r#""size_mib":2048,"load":"busy","mode":"extension","samples":200"#), "{json}");
        assert_eq!(serde_json::from_str::<Wanted>(&json).unwrap(), wanted);
    }
}
