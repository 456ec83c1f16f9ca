use bellows_memory::ByteSize;
use bellows_memory::layout::{Layout, LayoutSpec};

use super::*;

fn layout(base: ByteSize, partitions: usize) -> Layout {
    Layout::new(&layout::spec(base, vec![ByteSize::gib(1); partitions], 46)).unwrap()
}

fn buses(count: u16) -> Vec<RootBus> {
    (0..count)
        .map(|number| {
            let start = 0xc000_0000 + (u32::from(number) << 20);
            let above = (64 << 40) + (u64::from(number) << 30);
            RootBus { number: number as u8, mmio32: start..start + (1 << 20), mmio64: Some(above..above + (1 << 30)) }
        })
        .collect()
}

fn firmware<'a>(vcpus: u16, layout: &'a Layout, buses: &'a [RootBus]) -> Firmware<'a> {
    Firmware { vcpus, layout, buses, serial: true }
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The tables as a kernel finds them: from the RSDP to the XSDT to the others, and the DSDT by way of the FADT.
struct Found {
    bytes: Vec<u8>,
}

impl Found {
    fn at(&self, address: u64) -> &[u8] {
        let from = &self.bytes[(address - layout::ACPI_TABLES.start) as usize..];
        let table = &from[..number(from, 4, 4) as usize];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum of {:?}", &table[..4]);
        table
    }

    fn table(&self, signature: &[u8; 4]) -> &[u8] {
        assert_eq!(&self.bytes[..8], b"RSD PTR ");
        assert_eq!(self.bytes[..20].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(self.bytes[..36].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = self.at(number(&self.bytes, 24, 8));
        assert_eq!(&xsdt[..4], b"XSDT");
        if signature == b"DSDT" {
            return self.at(number(self.table(b"FACP"), 140, 8));
        }
        let mut tables = xsdt[36..].chunks(8).map(|entry| self.at(number(entry, 0, 8)));
        tables.find(|table| &table[..4] == signature).unwrap()
    }
}

fn found(firmware: &Firmware<'_>) -> Found {
    Found { bytes: build(firmware).unwrap() }
}

#[test]
fn a_kernel_finds_every_table() {
    let (layout, buses) = (layout(ByteSize::mib(256), 2), buses(3));
    let found = found(&firmware(4, &layout, &buses));
    for signature in [b"FACP", b"APIC", b"MCFG", b"SRAT", b"SLIT", b"DSDT"] {
        assert_eq!(&found.table(signature)[..4], signature);
    }
    let fadt = found.table(b"FACP");
    assert_ne!(number(fadt, 112, 4) & 1 << 20, 0, "hardware-reduced");
    let register = |at: usize| (fadt[at], number(fadt, at + 4, 8));
    assert_eq!([register(116), register(244), register(256)], [(1, 0x602), (1, 0x600), (1, 0x601)]);
    let mcfg = found.table(b"MCFG");
    assert_eq!((number(mcfg, 44, 8), mcfg[54], mcfg[55]), (0xe000_0000, 0, 2));
}

#[test]
fn every_vcpu_has_a_local_apic() {
    let (layout, buses) = (layout(ByteSize::mib(256), 0), buses(1));
    let found = found(&firmware(3, &layout, &buses));
    let madt = found.table(b"APIC");
    assert_eq!(number(madt, 36, 4), 0xfee0_0000);
    let ids: Vec<_> = madt[44..68].chunks(8).map(|entry| (entry[0], entry[1], entry[3], entry[4])).collect();
    assert_eq!(ids, [(0, 8, 0, 1), (0, 8, 1, 1), (0, 8, 2, 1)]);
    assert_eq!((madt[68], madt[69], number(madt, 72, 4), madt.len()), (1, 12, 0xfec0_0000, 80));
}

#[test]
fn memory_is_covered_and_partitions_are_domains() {
    let (layout, buses) = (layout(ByteSize::gib(4), 2), buses(1));
    let found = found(&firmware(2, &layout, &buses));
    let srat = found.table(b"SRAT");
    assert_eq!(number(srat, 36, 4), 1);
    assert_eq!((srat[48], srat[49], srat[51], srat[64], srat[67]), (0, 16, 0, 0, 1));
    // Domain, start, length, flags.
    let memory: Vec<_> = srat[48 + 2 * 16..]
        .chunks(40)
        .map(|entry| (number(entry, 2, 4), number(entry, 8, 8), number(entry, 16, 8), number(entry, 28, 4)))
        .collect();
    let window = |index: usize| layout.windows()[index].range();
    assert_eq!(
        memory,
        [
            (0, 0, 3 << 30, 1),
            (0, 4 << 30, 1 << 30, 1),
            (1, window(0).start().0, 1 << 30, 3),
            (2, window(1).start().0, 1 << 30, 3),
        ]
    );
    let slit = found.table(b"SLIT");
    assert_eq!(number(slit, 36, 8), 3);
    assert_eq!(slit[44..], [10, 20, 20, 20, 10, 40, 20, 40, 10]);
}

#[test]
fn base_memory_grows_in_its_own_domain() {
    let spec = layout::spec(ByteSize::gib(1), vec![ByteSize::gib(1)], 46);
    let layout = Layout::new(&LayoutSpec { growth: ByteSize::gib(2), ..spec }).unwrap();
    let buses = buses(1);
    let found = found(&firmware(1, &layout, &buses));
    let growth = &found.table(b"SRAT")[48 + 16 + 40..][..40];
    let start = layout.growth().unwrap().range().start().0;
    assert_eq!((number(growth, 2, 4), number(growth, 8, 8), number(growth, 16, 8)), (0, start, 2 << 30));
    assert_eq!(number(growth, 28, 4), 3, "enabled, hot-pluggable");
    assert_eq!(number(found.table(b"SLIT"), 36, 8), 2, "no domain of its own");
}

#[test]
fn the_largest_machine_fits() {
    let (layout, buses) = (layout(ByteSize::gib(4), bellows_memory::layout::MAX_PARTITIONS), buses(256));
    let found = found(&firmware(layout::MAX_VCPUS, &layout, &buses));
    let room = layout::ACPI_TABLES.end - layout::ACPI_TABLES.start;
    assert!(found.bytes.len() as u64 <= room, "{} of {room}", found.bytes.len());
    assert_eq!(number(found.table(b"SLIT"), 36, 8), 256);
}

#[test]
fn host_bridges_have_their_addresses() {
    let (layout, buses) = (layout(ByteSize::mib(256), 0), buses(2));
    let dsdt = found(&firmware(1, &layout, &buses)).table(b"DSDT").to_vec();
    let has = |part: &[u8]| dsdt.windows(part.len()).any(|window| window == part);
    assert!(has(b"PC00") && has(b"PC01") && !has(b"PC02") && has(b"COM1") && has(b"ECAM") && has(b"_S5_"));
    // Minimum and maximum of bus 1's 32-bit window: a DWord address space descriptor.
    assert!(has(&[0, 0, 0x10, 0xc0, 0xff, 0xff, 0x1f, 0xc0]));
    let quiet = Firmware { serial: false, ..firmware(1, &layout, &buses) };
    let dsdt = found(&quiet).table(b"DSDT").to_vec();
    assert!(!dsdt.windows(4).any(|window| window == b"COM1"));
}

#[test]
fn invalid_buses_are_refused() {
    let layout = layout(ByteSize::mib(256), 0);
    let error = |buses: &[RootBus]| build(&firmware(1, &layout, buses)).unwrap_err().to_string();
    assert!(error(&[]).contains("0 root buses"));
    assert!(error(&buses(2)[1..]).contains("root bus number 1 at place 0"));
    let mut empty = buses(1);
    empty[0].mmio32 = 0xc000_0000..0xc000_0000;
    assert!(error(&empty).contains("0xc0000000..0xc0000000"));
}
