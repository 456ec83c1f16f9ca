//! Statistics of the guest's memory, VIRTIO 1.2 section 5.5.6.4, with the tags that Linux has added since.

use serde::Serialize;
use vm_memory::ByteValued as _;

use super::wire::VirtioBalloonStat;

/// Bytes of a buffer that are looked at: four times what there are tags for.
pub const MAX_BYTES: usize = 64 * size_of::<VirtioBalloonStat>();

/// What a driver has reported of its guest's memory: its word, on which nothing on the host depends. `None` is what it has not
/// reported yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct MemoryStatistics {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Other page faults; Linux counts all here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes that the guest has, plugged partitions included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes that new programs could have without swapping: an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages allocated from the guest's pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that the guest's pool had not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Bytes scanned in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Bytes scanned by tasks that waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Bytes reclaimed in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Bytes reclaimed by tasks that waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

impl MemoryStatistics {
    /// Takes what a buffer of the driver holds. What it leaves out keeps its value; tags that are not known, and a piece of
    /// an entry at the end, are left aside.
    pub fn update(&mut self, buffer: &[u8]) {
        for bytes in buffer.chunks_exact(size_of::<VirtioBalloonStat>()) {
            let mut entry = VirtioBalloonStat::default();
            entry.as_mut_slice().copy_from_slice(bytes);
            if let Some(field) = self.field(entry.tag.to_native()) {
                *field = Some(u64::from_le_bytes(entry.val));
            }
        }
    }

    /// The value of a tag, `VIRTIO_BALLOON_S_*`.
    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat()
    }

    #[test]
    fn every_tag_has_its_name() {
        let names = [
            "swap_in",
            "swap_out",
            "major_faults",
            "minor_faults",
            "free_memory",
            "total_memory",
            "available_memory",
            "disk_caches",
            "hugetlb_allocations",
            "hugetlb_failures",
            "oom_kill",
            "alloc_stall",
            "async_scan",
            "direct_scan",
            "async_reclaim",
            "direct_reclaim",
        ];
        for (tag, name) in (0..).zip(names) {
            let mut statistics = MemoryStatistics::default();
            statistics.update(&entry(tag, u64::MAX - u64::from(tag)));
            let json = serde_json::to_string(&statistics).unwrap();
            assert_eq!(json, format!("{{\"{name}\":{}}}", u64::MAX - u64::from(tag)));
        }
    }

    #[test]
    fn what_is_left_out_keeps_its_value_and_what_is_unknown_is_left_aside() {
        let mut statistics = MemoryStatistics::default();
        statistics.update(&[entry(4, 7), entry(5, 8)].concat());
        statistics.update(&[entry(16, 1), entry(u16::MAX, 1), entry(4, 9), entry(5, 10)[..9].to_vec()].concat());
        assert_eq!((statistics.free_memory, statistics.total_memory), (Some(9), Some(8)));
        statistics.update(&[]);
        assert_eq!(serde_json::to_string(&statistics).unwrap(), r#"{"free_memory":9,"total_memory":8}"#);
    }
}
