//! ACPI tables: they tell the guest kernel about CPUs, memory nodes and PCI buses (ACPI 6.5).
//!
//! The platform is "hardware-reduced": no SCI, no fixed power-management registers, no PIC or timer for the kernel to
//! find. Proximity domain 0 is base memory with all vCPUs; each partition window is a domain of its own.

mod dsdt;
mod memory_affinity;
mod processors;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use bellows_devices::legacy::PowerPorts;

use super::error::AcpiError;
use super::layout;
use crate::arch::{Firmware, RootBus};

/// The maker of the tables.
const OEM: [u8; 6] = *b"BELLOW";
/// The OEM table ID; the same in all tables.
const OEM_TABLE: [u8; 8] = *b"BELLOWS ";
const OEM_REVISION: u32 = 1;

/// Makes the tables as they lie in [`layout::ACPI_TABLES`], the RSDP first.
///
/// # Errors
/// The description is invalid; the error names the value.
pub(crate) fn build(firmware: &Firmware<'_>) -> Result<Vec<u8>, AcpiError> {
    check(firmware.buses)?;
    let mut tables = Tables { bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.push(&dsdt::build(firmware));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    let named = [
        fadt(dsdt),
        processors::madt(firmware.vcpus),
        mcfg(firmware.buses),
        memory_affinity::srat(firmware.vcpus, firmware.layout),
        memory_affinity::slit(firmware.layout),
    ];
    for table in named {
        xsdt.add_entry(tables.push(&table));
    }
    let xsdt = tables.push(&serialise(&xsdt));
    let mut bytes = tables.bytes;
    bytes[..Rsdp::len()].copy_from_slice(&serialise(&Rsdp::new(OEM, xsdt)));
    let room = layout::ACPI_TABLES.end - layout::ACPI_TABLES.start;
    if bytes.len() as u64 > room {
        return Err(AcpiError::TooLarge { bytes: bytes.len(), room });
    }
    Ok(bytes)
}

/// The addresses of all buses' configuration space.
pub(crate) fn ecam(buses: &[RootBus]) -> Range<u64> {
    layout::ECAM.start..layout::ECAM.start + layout::ECAM_PER_BUS * buses.len() as u64
}

fn check(buses: &[RootBus]) -> Result<(), AcpiError> {
    if !(1..=256).contains(&buses.len()) {
        return Err(AcpiError::BusCount(buses.len()));
    }
    for (place, bus) in buses.iter().enumerate() {
        let number = bus.number;
        if usize::from(number) != place {
            return Err(AcpiError::BusNumber { number, place });
        }
        let mmio32 = u64::from(bus.mmio32.start)..u64::from(bus.mmio32.end);
        for range in [Some(mmio32), bus.mmio64.clone()].into_iter().flatten() {
            if range.is_empty() {
                return Err(AcpiError::EmptyRange { number, start: range.start, end: range.end });
            }
        }
    }
    Ok(())
}

fn fadt(dsdt: u64) -> Vec<u8> {
    /// No VGA, no PCI ASPM, no CMOS clock; without bits 0 and 1 there are no other legacy devices and no 8042 either.
    const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;
    let register = |offset: u64| {
        let port = u64::from(layout::POWER_PORT) + offset;
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION).dsdt_64(dsdt);
    let flags = [
        Flags::HwReducedAcpi,
        Flags::ResetRegSup,
        Flags::Wbinvd,
        // A set bit says that the button or clock alarm is *not* fixed hardware.
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::FixRtc,
        Flags::Headless,
    ];
    for flag in flags {
        table = table.flag(flag);
    }
    table = table.preferred_pm_profile(PmProfile::EnterpriseServer);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.reset_reg = register(PowerPorts::RESET);
    table.reset_value = PowerPorts::RESET_VALUE;
    table.sleep_control_reg = register(PowerPorts::SLEEP_CONTROL);
    table.sleep_status_reg = register(PowerPorts::SLEEP_STATUS);
    table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    serialise(&table.finalize())
}

fn mcfg(buses: &[RootBus]) -> Vec<u8> {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    // At most 256 buses, numbered from 0, as checked.
    let last = (buses.len() - 1) as u8;
    table.add_ecam(layout::ECAM.start, 0, 0, last);
    serialise(&table)
}
/// Tables one after another, from the start of [`layout::ACPI_TABLES`] on.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table at a multiple of 16 and says at which address it is.
    fn push(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = layout::ACPI_TABLES.start + self.bytes.len() as u64;
        self.bytes.extend(table);
        at
    }
}

fn serialise(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table of ours that `acpi_tables` has no type for.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;
