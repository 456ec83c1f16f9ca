//! Fixed guest-physical addresses, ports and interrupt lines of the machine.
//!
//! Below 1 MiB lies what boot needs; the top of the 32-bit space belongs to the interrupt controllers and KVM itself.

use std::ops::Range;

/// Global descriptor table of the boot vCPU.
pub(crate) const GDT: u64 = 0x500;
/// Interrupt descriptor table of the boot vCPU: one empty entry.
pub(crate) const IDT: u64 = 0x540;
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
/// What the boot page tables map: the kernel has to lie below.
pub(crate) const BOOT_MAPPED: u64 = 1 << 30;
/// The kernel command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, its final zero included.
pub(crate) const COMMAND_LINE_BYTES: usize = 0x1_0000;
/// Conventional memory ends here.
pub(crate) const LOW_MEMORY_END: u64 = 0xa_0000;
/// Where ACPI tables lie, the RSDP first; kernels leave this range alone.
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..RESET_VECTOR;
/// Where a CPU goes on reset, in real mode. A kernel that can't reset the machine otherwise jumps here.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where extended memory begins.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;

/// The 32-bit range from here to 4 GiB belongs to interrupt controllers and to KVM: neither RAM nor device memory.
pub const RESERVED_32: Range<u64> = 0xfec0_0000..0x1_0000_0000;
/// I/O APIC registers.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers, as every vCPU sees its own.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM uses on Intel hosts for its real-mode identity map.
pub(crate) const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages that KVM uses on Intel hosts for a task state segment.
pub(crate) const TSS: u64 = IDENTITY_MAP + 0x1000;

/// Interrupt lines of the I/O APIC: GSIs from 0.
pub(crate) const IO_APIC_LINES: u32 = 24;

/// First I/O port of the first serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Interrupt line (GSI) of the first serial port; edge-triggered, active high.
pub const COM1_GSI: u32 = 4;

/// The most vCPUs a machine has: MSI destinations are 8 bits wide without interrupt remapping, and 255 is broadcast.
pub const MAX_VCPUS: u16 = 255;
