//! SRAT and SLIT: which memory and which vCPUs belong together, and how far apart domains are (ACPI 6.5, 5.2.16 and
//! 5.2.17). Linux makes a node of every proximity domain that it finds here.

use bellows_memory::layout::Layout;
use bellows_memory::{AddressRange, wire};
use vm_memory::{ByteValued as _, Le32, Le64};

/// All vCPUs and all base memory in domain 0, with the window that it may grow into; each partition window, hot-pluggable, in
/// the domain of its number. The table must cover base memory to the last byte, or Linux ignores all of it.
pub(super) fn srat(vcpus: u16, layout: &Layout) -> Vec<u8> {
    let mut body = Srat { table_revision: 1.into(), reserved: [0; 8] }.as_slice().to_vec();
    for id in (0..vcpus).map(|id| id.to_le_bytes()[0]) {
        body.extend_from_slice(ProcessorLocalApicAffinity::new(id).as_slice());
    }
    for range in layout.base() {
        body.extend_from_slice(MemoryAffinity::new(0, range, ENABLED).as_slice());
    }
    for window in layout.growth().iter().chain(layout.windows()) {
        let domain = window.id().get().into();
        body.extend_from_slice(MemoryAffinity::new(domain, window.range(), ENABLED | HOT_PLUGGABLE).as_slice());
    }
    super::table(*b"SRAT", 3, &body)
}

/// Flags of an affinity structure.
const ENABLED: u32 = 1;
const HOT_PLUGGABLE: u32 = 2;

wire! {
    /// The table behind its header.
    struct Srat {
        /// Has to be 1.
        table_revision: Le32,
        reserved: [u8; 8],
    }

    /// Processor local APIC affinity structure (5.2.16.1).
    struct ProcessorLocalApicAffinity {
        type_: u8,
        length: u8,
        proximity_domain_low: u8,
        apic_id: u8,
        flags: Le32,
        local_sapic_eid: u8,
        proximity_domain_high: [u8; 3],
        clock_domain: Le32,
    }

    /// Memory affinity structure (5.2.16.2).
    struct MemoryAffinity {
        type_: u8,
        length: u8,
        /// Not aligned, so not a number.
        proximity_domain: [u8; 4],
        reserved: [u8; 2],
        base_address: Le64,
        memory_length: Le64,
        reserved_2: [u8; 4],
        flags: Le32,
        reserved_3: [u8; 8],
    }
}

impl ProcessorLocalApicAffinity {
    /// In domain 0.
    fn new(apic_id: u8) -> Self {
        Self { type_: 0, length: size_of::<Self>() as u8, apic_id, flags: ENABLED.into(), ..Default::default() }
    }
}

impl MemoryAffinity {
    fn new(domain: u32, range: AddressRange, flags: u32) -> Self {
        Self {
            type_: 1,
            length: size_of::<Self>() as u8,
            proximity_domain: domain.to_le_bytes(),
            base_address: range.start().0.into(),
            memory_length: range.bytes().into(),
            flags: flags.into(),
            ..Default::default()
        }
    }
}

/// Distances: 10 within a domain; base memory is nearer to a partition than any other partition is, so allocations fall
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
