//! How much of a private node the driver can withhold at once: whole free pageblocks, less what it leaves to the node's user.
//!
//! The driver is asked for no more: it would look for it again and again, and move memory together, which wakes the guest.

/// Pages of a pageblock, which is what the driver withholds: 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// The order of a free list with blocks of that size.
const BLOCK_ORDER: u32 = BLOCK_PAGES.trailing_zeros();
const PAGE_BYTES: u64 = 4096;

/// The bytes, by `/proc/buddyinfo` (free blocks of each order) and `/proc/zoneinfo` (free pages and the high watermark).
///
/// A pageblock is withheld while more than the watermark and another pageblock are free (`can_spare` in the kernel).
pub fn spare(lists: &str, zones: &str, node: u32) -> u64 {
    let blocks: u64 = lists.lines().filter_map(|line| free_blocks(line, node)).sum();
    let above = pages(zones, node, "pages free").saturating_sub(pages(zones, node, "high"));
    blocks.min(above.saturating_sub(1) / BLOCK_PAGES).saturating_mul(BLOCK_PAGES * PAGE_BYTES)
}

/// Whole free pageblocks in a line of `Node 1, zone  Movable  12 7 ... 3`: counts by order.
fn free_blocks(line: &str, node: u32) -> Option<u64> {
    let (zone, counts) = line.split_once(", zone")?;
    if zone.strip_prefix("Node")?.trim().parse() != Ok(node) {
        return None;
    }
    // The zone's name comes first.
    let counts = counts.split_whitespace().skip(1).zip(0..).skip(BLOCK_ORDER as usize);
    let blocks = |(count, order): (&str, u32)| {
        let blocks = 1_u64.checked_shl(order - BLOCK_ORDER)?;
        Some(count.parse::<u64>().ok()?.saturating_mul(blocks))
    };
    Some(counts.filter_map(blocks).fold(0, u64::saturating_add))
}

/// The sum of a figure of all zones of a node, in pages. Each zone begins with `Node 1, zone  Movable`.
fn pages(zones: &str, node: u32, name: &str) -> u64 {
    let mut ours = false;
    let mut sum = 0_u64;
    for line in zones.lines() {
        if let Some(zone) = line.strip_prefix("Node") {
            ours = zone.split(',').next().and_then(|number| number.trim().parse().ok()) == Some(node);
        } else if let (true, Some(value)) = (ours, line.trim_start().strip_prefix(name))
            && value.starts_with(' ')
        {
            sum = sum.saturating_add(value.trim().parse().unwrap_or(0));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 free pages in small blocks, three pageblocks, and two blocks of two pageblocks.
    const LISTS: &str = "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      2\n\
                         Node 1, zone  Movable      8      0      8      0      0      0      0      0      0      3      2\n\
                         Node 11, zone  Movable      0      0      0      0      0      0      0      0      0      9      9\n";

    fn zones(free: u64, high: u64) -> String {
        format!(
            "Node 0, zone      DMA\n  pages free     99999\n        high     7\nNode 1, zone  Movable\n  pages free     {free}\n        \
             boost    0\n        min      10\n        low      12\n        high     {high}\n        spanned  32768\n    \
             nr_free_pages {free}\n  pagesets\n    cpu: 0\n              count:    3\n              high:     64\n\
             Node 11, zone  Movable\n  pages free     5\n        high     5\n"
        )
    }

    #[test]
    fn whole_pageblocks_are_spare() {
        let free = 7 * 512 + 40;
        assert_eq!(spare(LISTS, &zones(free, 20), 1), 7 << 21);
        assert_eq!(spare(LISTS, &zones(free, 39), 1), 7 << 21);
        // The kernel withholds while more than a pageblock is free above the watermark.
        assert_eq!(spare(LISTS, &zones(free, 40), 1), 6 << 21);
        assert_eq!(spare(LISTS, &zones(free, 3000), 1), 1 << 21);
        assert_eq!(spare(LISTS, &zones(free, 1 << 30), 1), 0);
    }

    #[test]
    fn other_nodes_and_malformed_text_count_for_nothing() {
        assert_eq!(spare(LISTS, &zones(9999, 1), 2), 0);
        assert_eq!(spare(LISTS, "", 1), 0);
        assert_eq!(spare("", &zones(9999, 1), 1), 0);
        assert_eq!(
            spare("Node 1, zone\nNode x, zone Movable 1\nNode 1\n", "Node 1, zone\n pages free x\nhigh\n", 1),
            0
        );
    }
}
