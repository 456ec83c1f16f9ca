//! The balloon's structures and numbers, VIRTIO 1.2 section 5.5, as plain data.

use bellows_memory::wire;
use vm_memory::{Le16, Le32};

wire! {
    /// `struct virtio_balloon_config`.
    pub struct VirtioBalloonConfig {
        /// The target in pages.
        num_pages: Le32,
        /// Pages that the driver says it has put into the balloon. The driver writes it.
        actual: Le32,
        /// The host's command about free page hinting.
        free_page_hint_cmd_id: Le32,
        /// With a feature that is not offered.
        poison_val: Le32,
    }

    /// `struct virtio_balloon_stat`, which is packed.
    pub struct VirtioBalloonStat {
        /// `VIRTIO_BALLOON_S_*`.
        tag: Le16,
        /// A little-endian number.
        val: [u8; 8],
    }
}

/// `VIRTIO_BALLOON_PFN_SHIFT`: the balloon's pages have 4 KiB, whatever the guest's have.
pub const PAGE_SHIFT: u32 = 12;

/// `VIRTIO_BALLOON_F_STATS_VQ`: the driver reports statistics.
pub const F_STATS_VQ: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the driver may take pages back where the guest would kill for want of memory.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`: the driver names free pages when the host asks.
pub const F_FREE_PAGE_HINT: u64 = 1 << 3;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the driver reports free pages as they come.
pub const F_REPORTING: u64 = 1 << 5;

/// `VIRTIO_BALLOON_CMD_ID_STOP`: the guest names no more pages.
pub const CMD_ID_STOP: u32 = 0;
/// `VIRTIO_BALLOON_CMD_ID_DONE`: the guest may use the pages again that it named.
pub const CMD_ID_DONE: u32 = 1;
/// The first of the other numbers, which are runs.
pub const FIRST_RUN: u32 = 2;
