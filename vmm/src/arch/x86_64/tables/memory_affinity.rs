//! SRAT and SLIT: which memory and which vCPUs belong together, and how far apart domains are (ACPI 6.5, 5.2.16 and
//! 5.2.17). Linux makes a node of every proximity domain that it finds here.

use bellows_memory::layout::Layout;

/// Flags of a memory affinity entry.
const ENABLED: u32 = 1;
const HOT_PLUGGABLE: u32 = 2;

/// All vCPUs and all base memory in domain 0; each partition window, hot-pluggable, in the domain of its number. Base memory
/// has to be covered to the last byte, or Linux throws the whole table away.
pub(super) fn srat(vcpus: u16, layout: &Layout) -> Vec<u8> {
    const LOCAL_APIC: u8 = 0;
    let mut body = Vec::new();
    // A reserved field that has to be 1, and another.
    body.extend(1_u32.to_le_bytes());
    body.extend([0; 8]);
    for id in (0..vcpus).map(|id| id.to_le_bytes()[0]) {
        // Domain 0 (low byte), APIC id.
        body.extend([LOCAL_APIC, 16, 0, id]);
        body.extend(ENABLED.to_le_bytes());
        // No SAPIC EID, domain 0 (high bytes), clock domain 0.
        body.extend([0; 8]);
    }
    for range in layout.base() {
        body.extend(memory(0, range.start().0, range.bytes(), ENABLED));
    }
    for window in layout.windows() {
        let range = window.range();
        body.extend(memory(window.id().get().into(), range.start().0, range.bytes(), ENABLED | HOT_PLUGGABLE));
    }
    super::table(*b"SRAT", 3, &body)
}

fn memory(domain: u32, start: u64, bytes: u64, flags: u32) -> Vec<u8> {
    const MEMORY: u8 = 1;
    let mut entry = vec![MEMORY, 40];
    entry.extend(domain.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(start.to_le_bytes());
    entry.extend(bytes.to_le_bytes());
    entry.extend([0; 4]);
    entry.extend(flags.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// Distances: 10 within a domain; base memory is nearer to every partition than another partition is, so that memory falls
/// back there and not into a neighbour.
pub(super) fn slit(layout: &Layout) -> Vec<u8> {
    const LOCAL: u8 = 10;
    const BASE_TO_PARTITION: u8 = 20;
    const BETWEEN_PARTITIONS: u8 = 40;
    let domains = layout.windows().len() + 1;
    let mut body = (domains as u64).to_le_bytes().to_vec();
    body.extend((0..domains).flat_map(|from| (0..domains).map(move |to| (from, to))).map(|(from, to)| {
        if from == to {
            LOCAL
        } else if from == 0 || to == 0 {
            BASE_TO_PARTITION
        } else {
            BETWEEN_PARTITIONS
        }
    }));
    super::table(*b"SLIT", 1, &body)
}
