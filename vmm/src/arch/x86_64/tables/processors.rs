//! The MADT: local APICs, one per vCPU, and the I/O APIC (ACPI 6.5, 5.2.12).

use bellows_memory::wire;
use vm_memory::{ByteValued as _, Le32};

use super::super::layout;

/// A MADT for vCPUs 0 to `vcpus` - 1; at most [`layout::MAX_VCPUS`].
pub(super) fn madt(vcpus: u16) -> Vec<u8> {
    /// No 8259 for the kernel to care for.
    const NO_PIC: u32 = 0;
    let madt = Madt { local_interrupt_controller_address: layout::LOCAL_APIC.into(), flags: NO_PIC.into() };
    let mut body = madt.as_slice().to_vec();
    for id in (0..vcpus).map(|id| id.to_le_bytes()[0]) {
        body.extend_from_slice(ProcessorLocalApic::new(id).as_slice());
    }
    body.extend_from_slice(IoApic::new().as_slice());
    super::table(*b"APIC", 6, &body)
}

wire! {
    /// The table behind its header.
    struct Madt {
        local_interrupt_controller_address: Le32,
        flags: Le32,
    }

    /// Processor local APIC structure (5.2.12.2).
    struct ProcessorLocalApic {
        type_: u8,
        length: u8,
        acpi_processor_uid: u8,
        apic_id: u8,
        flags: Le32,
    }

    /// I/O APIC structure (5.2.12.3).
    struct IoApic {
        type_: u8,
        length: u8,
        io_apic_id: u8,
        reserved: u8,
        io_apic_address: Le32,
        global_system_interrupt_base: Le32,
    }
}

impl ProcessorLocalApic {
    /// An enabled processor, whose UID is its APIC ID.
    fn new(id: u8) -> Self {
        const ENABLED: u32 = 1;
        Self { type_: 0, length: size_of::<Self>() as u8, acpi_processor_uid: id, apic_id: id, flags: ENABLED.into() }
    }
}

impl IoApic {
    /// I/O APIC 0, whose lines are GSIs from 0 on.
    fn new() -> Self {
        let io_apic_address = layout::IO_APIC.into();
        Self { type_: 1, length: size_of::<Self>() as u8, io_apic_address, ..Default::default() }
    }
}
