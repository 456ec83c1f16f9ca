//! ACPI tables: what the guest kernel learns of CPUs, memory nodes and PCI buses (ACPI 6.5).
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
use bellows_memory::layout::Layout;

/// Who made the tables.
const OEM: [u8; 6] = *b"BELLOW";
/// Which tables; the same in all of them.
const OEM_TABLE: [u8; 8] = *b"BELLOWS ";
const OEM_REVISION: u32 = 1;

/// Bytes of ECAM per bus: 32 devices of 8 functions, 4 KiB each (PCI Express base specification, 7.2.2).
const ECAM_PER_BUS: u64 = 1 << 20;

/// Ports that end the VM.
#[derive(Clone, Copy, Debug)]
pub struct PortRegisters {
    /// Port where `reset_value` resets the machine.
    pub reset: u16,
    /// See `reset`.
    pub reset_value: u8,
    /// Sleep control register: [`SLEEP_POWER_OFF`] written here switches the machine off.
    pub sleep_control: u16,
    /// Sleep status register: reads as zero.
    pub sleep_status: u16,
}

/// Sleep type of S5, "soft off".
const SLEEP_TYPE_OFF: u8 = 5;
/// What the guest writes to the sleep control register to switch itself off: `SLP_TYP` (bits 4:2) and `SLP_EN` (bit 5).
pub const SLEEP_POWER_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;

/// A PCI root bus and the addresses its devices can have.
#[derive(Clone, Debug)]
pub struct RootBus {
    /// Bus number.
    pub number: u8,
    /// Below 4 GiB.
    pub mmio32: Range<u32>,
    /// Anywhere; often above all memory.
    pub mmio64: Option<Range<u64>>,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Acpi<'a> {
    /// Number of vCPUs; APIC ids count from 0.
    pub vcpus: u16,
    /// Base memory and partition windows.
    pub layout: &'a Layout,
    /// Where the configuration space of bus 0 begins.
    pub ecam: u64,
    /// The root buses, in order of their numbers, from 0 without a gap.
    pub buses: &'a [RootBus],
    /// Ports that end the VM.
    pub ports: PortRegisters,
    /// There is a serial port at [`super::platform::COM1_PORT`].
    pub serial: bool,
}

/// Why there are no tables for a description.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AcpiError {
    /// Bus numbers have to start at 0 and have no gap: ECAM is one range.
    #[error("root bus number {number} at place {place}: expected {place}")]
    BusNumber {
        /// The number found.
        number: u8,
        /// The number expected.
        place: usize,
    },
    /// No bus, or more than a segment has.
    #[error("{0} root buses: expected 1 to 256")]
    BusCount(usize),
    /// A bus whose devices could have no addresses.
    #[error("root bus {number} has the empty address range {start:#x}..{end:#x}")]
    EmptyRange {
        /// The bus.
        number: u8,
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
}

impl Acpi<'_> {
    /// The addresses of all buses' configuration space.
    #[must_use]
    pub fn ecam(&self) -> Range<u64> {
        self.ecam..self.ecam + ECAM_PER_BUS * self.buses.len() as u64
    }

    /// Makes the tables, the RSDP first, and places them: `place` says where that many bytes go.
    ///
    /// # Errors
    /// The description makes no sense; the error names the value.
    pub(crate) fn build(&self, place: impl FnOnce(u64) -> u64) -> Result<(u64, Vec<u8>), AcpiError> {
        self.check()?;
        let unlinked = [
            processors::madt(self.vcpus),
            self.mcfg(),
            memory_affinity::srat(self.vcpus, self.layout),
            memory_affinity::slit(self.layout),
        ];
        let dsdt = dsdt::build(self);
        let tables = unlinked.len() + 1;
        let fixed = aligned(Rsdp::len()) + aligned(XSDT_HEADER + 8 * tables) + aligned(FADT_BYTES);
        let bytes = fixed + unlinked.iter().chain([&dsdt]).map(|table| aligned(table.len())).sum::<usize>();
        let at = place(bytes as u64);

        // RSDP, XSDT, FADT, DSDT, the others: each at a multiple of 16.
        let mut blob = Blob { at, bytes: Vec::with_capacity(bytes) };
        let xsdt_at = at + aligned(Rsdp::len()) as u64;
        blob.push(&serialise(&Rsdp::new(OEM, xsdt_at)));
        let fadt_at = xsdt_at + aligned(XSDT_HEADER + 8 * tables) as u64;
        let dsdt_at = fadt_at + aligned(FADT_BYTES) as u64;
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        xsdt.add_entry(fadt_at);
        let mut next = dsdt_at + aligned(dsdt.len()) as u64;
        for table in &unlinked {
            xsdt.add_entry(next);
            next += aligned(table.len()) as u64;
        }
        blob.push(&serialise(&xsdt));
        blob.push(&self.fadt(dsdt_at));
        blob.push(&dsdt);
        unlinked.iter().for_each(|table| blob.push(table));
        Ok((at, blob.bytes))
    }

    fn check(&self) -> Result<(), AcpiError> {
        if !(1..=256).contains(&self.buses.len()) {
            return Err(AcpiError::BusCount(self.buses.len()));
        }
        for (place, bus) in self.buses.iter().enumerate() {
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

    fn fadt(&self, dsdt: u64) -> Vec<u8> {
        /// No VGA, no PCI ASPM, no CMOS clock; without bits 0 and 1 there are no other legacy devices and no 8042 either.
        const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;
        let register = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
        let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION).dsdt_64(dsdt);
        let flags = [
            Flags::HwReducedAcpi,
            Flags::ResetRegSup,
            Flags::Wbinvd,
            // Buttons and clock alarms, where set, are *not* fixed hardware.
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
        table.reset_reg = register(self.ports.reset);
        table.reset_value = self.ports.reset_value;
        table.sleep_control_reg = register(self.ports.sleep_control);
        table.sleep_status_reg = register(self.ports.sleep_status);
        table.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
        serialise(&table.finalize())
    }

    fn mcfg(&self) -> Vec<u8> {
        let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
        // At most 256 buses, numbered from 0, as checked.
        let last = (self.buses.len() - 1) as u8;
        table.add_ecam(self.ecam, 0, 0, last);
        serialise(&table)
    }
}

/// Bytes of an XSDT without entries.
const XSDT_HEADER: usize = 36;
const FADT_BYTES: usize = 276;

/// Tables one after another from address `at` on.
struct Blob {
    at: u64,
    bytes: Vec<u8>,
}

impl Blob {
    fn push(&mut self, table: &[u8]) {
        self.bytes.extend(table);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        debug_assert!(self.at.is_multiple_of(16));
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
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
#[path = "acpi_test.rs"]
mod tests;
