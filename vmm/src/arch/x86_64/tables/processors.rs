//! The MADT: local APICs, one per vCPU, and the I/O APIC (ACPI 6.5, 5.2.12).

use super::super::layout;

/// A MADT for vCPUs 0 to `vcpus` - 1; at most [`layout::MAX_VCPUS`].
pub(super) fn madt(vcpus: u16) -> Vec<u8> {
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const ENABLED: u32 = 1;
    /// No 8259 for the kernel to care for.
    const NO_PIC: u32 = 0;
    let mut body = Vec::new();
    body.extend(layout::LOCAL_APIC.to_le_bytes());
    body.extend(NO_PIC.to_le_bytes());
    for id in (0..vcpus).map(|id| id.to_le_bytes()[0]) {
        // Processor UID and APIC id are the same number.
        body.extend([LOCAL_APIC, 8, id, id]);
        body.extend(ENABLED.to_le_bytes());
    }
    // I/O APIC 0, whose lines are GSIs from 0 on.
    body.extend([IO_APIC, 12, 0, 0]);
    body.extend(layout::IO_APIC.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    super::table(*b"APIC", 6, &body)
}
