//! The DSDT: PCI host bridges, the range of ECAM, the serial port and how to switch off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};
use bellows_devices::legacy::PowerPorts;

use super::super::layout;
use super::{ecam, serialise};
use crate::arch::{Firmware, RootBus};

pub(super) fn build(firmware: &Firmware<'_>) -> Vec<u8> {
    let mut devices: Vec<u8> = firmware.buses.iter().flat_map(host_bridge).collect();
    devices.extend(reserved_for_ecam(firmware.buses));
    if firmware.serial {
        devices.extend(serial_port());
    }
    let mut body = Scope::raw("_SB_".into(), devices);
    let off: [&dyn Aml; 4] = [&PowerPorts::SLEEP_TYPE_OFF, &0_u8, &0_u8, &0_u8];
    body.extend(serialise(&Name::new("_S5_".into(), &Package::new(off.to_vec()))));
    super::table(*b"DSDT", 2, &body)
}

/// A root bus: its number, and the addresses that its devices can have. Devices interrupt by message only, so there is no
/// routing table.
fn host_bridge(bus: &RootBus) -> Vec<u8> {
    let number = usize::from(bus.number);
    let bus_range = AddressSpace::new_bus_number(u16::from(bus.number), u16::from(bus.number));
    let memory_32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        bus.mmio32.start,
        // Not empty, as checked.
        bus.mmio32.end - 1,
        None,
    );
    let memory_64 = bus.mmio64.as_ref().map(|range| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, range.end - 1, None)
    });

    let mut resources: Vec<&dyn Aml> = vec![&bus_range, &memory_32];
    if let Some(range) = &memory_64 {
        resources.push(range);
    }
    let express = EISAName::new("PNP0A08");
    let compatible = EISAName::new("PNP0A03");
    let resources = ResourceTemplate::new(resources);
    serialise(&Device::new(
        format!("PC{number:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &express),
            &Name::new("_CID".into(), &compatible),
            &Name::new("_UID".into(), &number),
            &Name::new("_SEG".into(), &0_u8),
            &Name::new("_BBN".into(), &number),
            // Node 0: where all vCPUs are.
            &Name::new("_PXM".into(), &0_u8),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

/// Linux believes the MCFG only if the range is a motherboard's resource as well.
fn reserved_for_ecam(buses: &[RootBus]) -> Vec<u8> {
    let range = ecam(buses);
    let below_4g = u32::try_from(range.start).ok().zip(u32::try_from(range.end).ok());
    let low = below_4g.map(|(start, end)| Memory32Fixed::new(true, start, end - start));
    let high = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, range.end - 1, None);
    let resource: &dyn Aml = match &low {
        Some(low) => low,
        None => &high,
    };
    serialise(&Device::new(
        "ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![resource])),
        ],
    ))
}

fn serial_port() -> Vec<u8> {
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_LINE);
    serialise(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}
