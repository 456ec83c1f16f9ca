//! The file systems in memory that an instance can write to, and their capacities.
//!
//! A write to a full one fails with `ENOSPC`. So that this happens before programs run out of memory, file systems get only
//! part of the instance's memory, and their inodes, which the kernel keeps in base memory, fit its limit there.

use crate::placement::Placement;

/// Base memory that one file takes: inode and directory entry of tmpfs, and those of overlayfs above them. An empty one with a
/// name below 40 bytes takes 1861 (test `inode_cost` in `guest/kernel`). With a longer name it takes up to 512 more, but
/// overlayfs's half of that is reclaimed before a process is killed for it.
pub const INODE_BYTES: u64 = 1920;
/// Inodes of `/dev`: devices, links, and some of a program's own.
const DEVICE_INODES: u64 = 256;

/// The capacity of a tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of file data.
    pub bytes: u64,
    /// Files, folders and links.
    pub inodes: u64,
}

impl Capacity {
    /// Never zero: to tmpfs, 0 means no limit.
    fn of(bytes: u64, inodes: u64) -> Self {
        Self { bytes: bytes.max(1), inodes: inodes.max(1) }
    }

    /// The mount options that set it.
    pub fn options(self) -> [String; 2] {
        [format!("size={}", self.bytes), format!("nr_inodes={}", self.inodes)]
    }
}

/// The file systems that an instance can write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacities {
    /// Below the overlay: the root file system.
    pub scratch: Capacity,
    /// `/dev/shm`.
    pub shared: Capacity,
    /// `/dev`.
    pub devices: Capacity,
}

impl Capacities {
    /// Those of an instance with `memory` bytes for its programs and `base` bytes of base memory.
    ///
    /// The root file system holds half of `memory`, `/dev/shm` a quarter. With a private node, inodes take none of that: they
    /// may have all but three sixteenths of `base`, which is at most `memory` there. Elsewhere one limit, `memory`, covers
    /// both, and inodes may have a fifth of it.
    pub fn within(placement: Placement, memory: u64, base: u64) -> Self {
        let base = base.min(memory);
        let (scratch, shared) = (base / 4 * 3, base / 16);
        let (scratch, shared) = match placement {
            Placement::Private(_) => (scratch, shared),
            Placement::Base | Placement::Policy(_) => (scratch.min(memory / 16 * 3), shared.min(memory / 64)),
        };
        Self {
            scratch: Capacity::of(memory / 2, scratch / INODE_BYTES),
            shared: Capacity::of(memory / 4, shared / INODE_BYTES),
            devices: Capacity::of(memory / 64, DEVICE_INODES),
        }
    }
}

#[cfg(test)]
mod tests {
    use bellows_protocol::values::{MIN_BASE_LIMIT, Node};

    use super::*;
    use crate::base_memory::BaseMemory;

    const MIB: u64 = 1 << 20;

    fn all(capacities: Capacities) -> [Capacity; 3] {
        [capacities.scratch, capacities.shared, capacities.devices]
    }

    fn bytes(capacities: Capacities) -> u64 {
        all(capacities).iter().map(|capacity| capacity.bytes).sum()
    }

    fn inode_bytes(capacities: Capacities) -> u64 {
        all(capacities).iter().map(|capacity| capacity.inodes * INODE_BYTES).sum()
    }

    #[test]
    fn full_file_systems_leave_memory_to_programs() {
        let node = Node::try_from(1).unwrap();
        for memory in [MIN_BASE_LIMIT, 120 * MIB, 128 * MIB, 1008 * MIB, 1 << 40] {
            for base in [MIN_BASE_LIMIT, 47 * MIB, 300 * MIB, 1 << 36] {
                let capacities = Capacities::within(Placement::Private(node), memory, base);
                assert!(bytes(capacities) < memory / 5 * 4, "{capacities:?}");
                assert!(inode_bytes(capacities) < base.min(memory), "{capacities:?}");
                for placement in [Placement::Base, Placement::Policy(node)] {
                    let capacities = Capacities::within(placement, memory, base);
                    assert!(inode_bytes(capacities) < base, "{capacities:?}");
                    // The smallest limit cannot leave much.
                    assert!(bytes(capacities) + inode_bytes(capacities) <= memory + MIB / 2, "{capacities:?}");
                }
            }
        }
    }

    /// Base memory of 512 MiB, of which the kernel leaves 430, and a partition of 1 GiB.
    #[test]
    fn a_hundred_thousand_files_fit_by_default() {
        let base = std::sync::Arc::new(BaseMemory::new(430 * MIB));
        base.divide(1, 1024 * MIB);
        let claim = base.claim(None, true).unwrap();
        let node = Node::try_from(1).unwrap();
        let capacities = Capacities::within(Placement::Private(node), 1024 * MIB, claim.bytes());
        assert!(capacities.scratch.inodes >= 100_000 && capacities.scratch.bytes >= 100_000 * 4096, "{capacities:?}");
    }

    #[test]
    fn the_smallest_memory_still_gives_limits() {
        for memory in [0, 1, 63, 100_000] {
            let capacities = Capacities::within(Placement::Base, memory, MIN_BASE_LIMIT);
            for capacity in all(capacities) {
                assert!(capacity.bytes > 0 && capacity.inodes > 0, "{capacities:?}");
            }
        }
    }

    #[test]
    fn capacities_are_mount_options() {
        assert_eq!(Capacity { bytes: 4096, inodes: 7 }.options(), ["size=4096", "nr_inodes=7"]);
    }
}
