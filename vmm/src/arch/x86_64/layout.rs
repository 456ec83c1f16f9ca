//! The address map: guest-physical addresses, I/O ports and interrupt lines of the machine.
//!
//! ```text
//! 0          1 MiB       3 GiB             3.5 GiB    4 GiB - 20 MiB         4 GiB
//! | boot      | low RAM   | device windows  | ECAM     | interrupt controllers | high RAM | windows of partitions | ...
//! ```
//!
//! The assertions at the end hold the order.

use std::ops::Range;

use bellows_memory::{ByteSize, LayoutSpec};
use vm_memory::GuestAddress;

/// Global descriptor table of the boot vCPU.
pub(crate) const GDT: Range<u64> = 0x500..0x540;
/// Interrupt descriptor table of the boot vCPU: one empty entry.
pub(crate) const IDT: Range<u64> = 0x540..0x548;
/// `struct boot_params`, the "zero page".
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Top of the boot stack; the kernel sets up its own at once.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of the boot vCPU: one page each for PML4, PDPT and PD, which map the first GiB onto itself.
pub(crate) const PML4: u64 = 0x9000;
/// See [`PML4`].
pub(crate) const PDPT: u64 = 0xa000;
/// See [`PML4`].
pub(crate) const PD: u64 = 0xb000;
/// The boot page tables map memory up to here: the kernel has to lie below.
pub(crate) const BOOT_MAPPED: u64 = 1 << 30;
/// The kernel command line, its final zero included.
pub(crate) const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// Conventional memory ends here.
pub(crate) const LOW_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first; kernels leave this range alone.
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..RESET_VECTOR;
/// Where a CPU goes on reset, in real mode. A kernel without another way to reset the machine jumps here.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where extended memory begins.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub(crate) const LOW_RAM_END: u64 = 3 << 30;
/// BARs of devices: [`DEVICE_WINDOW_PER_BUS`] bytes for each root bus.
pub const DEVICE_WINDOWS: Range<u64> = LOW_RAM_END..0xd000_0000;
/// BARs of one bus.
pub const DEVICE_WINDOW_PER_BUS: u64 = 16 << 20;
/// Configuration spaces of all buses of a segment.
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// Configuration spaces of one bus: 32 devices of 8 functions, 4 KiB each (PCI Express base specification, 7.2.2).
pub(crate) const ECAM_PER_BUS: u64 = 1 << 20;
/// From here to 4 GiB lie the interrupt controllers and pages of KVM: neither RAM nor device memory.
pub(crate) const RESERVED_32: Range<u64> = 0xfec0_0000..HIGH_RAM;
/// I/O APIC registers.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers, as every vCPU sees its own.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM uses on Intel hosts for its real-mode identity map.
pub(crate) const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages that KVM uses on Intel hosts for a task state segment.
pub(crate) const TSS: Range<u64> = 0xfeff_d000..0xff00_0000;
/// RAM goes on here.
pub(crate) const HIGH_RAM: u64 = 4 << 30;

/// First I/O port of the first serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// First of the power ports (`bellows_devices::legacy::PowerPorts`).
pub const POWER_PORT: u16 = 0x600;
/// Interrupt line (GSI) of the first serial port; edge-triggered, active high.
pub const SERIAL_LINE: u32 = 4;
/// Interrupt lines of the I/O APIC: GSIs from 0. Messages have the GSIs behind them.
pub(crate) const INTERRUPT_LINES: u32 = 24;

/// The most vCPUs a machine has: MSI destinations are 8 bits wide without interrupt remapping, and 255 is broadcast.
pub(crate) const MAX_VCPUS: u16 = 255;
/// Most root buses: one for each of the [`DEVICE_WINDOWS`].
pub(crate) const MAX_BUSES: u8 = 16;

/// The layout of a guest with `base` memory, which does not grow, and partitions of at most `windows`, in `address_bits` of
/// address space.
#[must_use]
pub fn spec(base: ByteSize, windows: Vec<ByteSize>, address_bits: u8) -> LayoutSpec {
    let (low_limit, hole_end) = (GuestAddress(LOW_RAM_END), GuestAddress(HIGH_RAM));
    LayoutSpec { base, growth: ByteSize::bytes(0), windows, low_limit, hole_end, address_bits }
}

const PAGE: u64 = 4096;

/// Where things are, in order.
const MAP: [Range<u64>; 19] = [
    GDT,
    IDT,
    ZERO_PAGE..ZERO_PAGE + PAGE,
    BOOT_STACK - 0xff0..BOOT_STACK,
    PML4..PML4 + PAGE,
    PDPT..PDPT + PAGE,
    PD..PD + PAGE,
    COMMAND_LINE,
    LOW_MEMORY_END..LOW_MEMORY_END,
    ACPI_TABLES,
    RESET_VECTOR..RESET_VECTOR + 16,
    HIGH_MEMORY..LOW_RAM_END,
    DEVICE_WINDOWS,
    ECAM,
    IO_APIC as u64..IO_APIC as u64 + PAGE,
    LOCAL_APIC as u64..LOCAL_APIC as u64 + PAGE,
    IDENTITY_MAP..IDENTITY_MAP + PAGE,
    TSS,
    HIGH_RAM..HIGH_RAM,
];

const _: () = {
    let mut index = 1;
    while index < MAP.len() {
        assert!(MAP[index].start <= MAP[index].end, "a range ends before it starts");
        assert!(MAP[index - 1].end <= MAP[index].start, "two ranges overlap or are out of order");
        index += 1;
    }
    assert!(ECAM.end <= RESERVED_32.start, "configuration spaces reach into what is reserved");
    assert!(RESERVED_32.start <= IO_APIC as u64, "the interrupt controllers begin before what is reserved");
    assert!(TSS.end <= RESERVED_32.end, "what belongs to KVM ends behind what is reserved");
    assert!(HIGH_MEMORY < BOOT_MAPPED, "the boot page tables map no place for a kernel");
    assert!(BOOT_MAPPED <= LOW_RAM_END, "the boot page tables map more than RAM");
    let windows = DEVICE_WINDOWS.end - DEVICE_WINDOWS.start;
    assert!(MAX_BUSES as u64 * DEVICE_WINDOW_PER_BUS <= windows, "a bus has no room for BARs");
    assert!(ECAM_PER_BUS * 256 == ECAM.end - ECAM.start, "ECAM is not that of 256 buses");
    assert!(COM1_PORT + 8 <= POWER_PORT, "the serial port reaches into the power ports");
    assert!(SERIAL_LINE < INTERRUPT_LINES, "the serial port has no interrupt line");
};
