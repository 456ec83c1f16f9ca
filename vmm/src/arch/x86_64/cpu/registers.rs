//! Register state for the 64-bit entry of the Linux boot protocol (`Documentation/arch/x86/boot.rst`): long mode, low
//! memory mapped onto itself, flat segments, RSI at the zero page, interrupts off.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::super::layout;
use bellows_memory::GuestMemory;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Segment selectors that the boot protocol names.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Present, accessed, executable and readable, 64-bit.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Present, accessed, writable, 4 GiB.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Present, busy TSS.
const TASK: u64 = 0x008f_8b00_0000_ffff;

/// The descriptor table: two empty descriptors, then one per selector above.
const GDT: [u64; 5] = [0, 0, CODE, DATA, TASK];

/// Writes the tables that the boot vCPU starts on: descriptors, and pages that map the first GiB onto itself.
pub(crate) fn write_boot_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |at: u64, entries: &mut dyn Iterator<Item = u64>| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        memory.write_slice(&bytes, GuestAddress(at))
    };
    table(layout::GDT.start, &mut GDT.into_iter())?;
    table(layout::IDT.start, &mut [0].into_iter())?;
    table(layout::PML4, &mut [layout::PDPT | PRESENT_WRITABLE].into_iter())?;
    table(layout::PDPT, &mut [layout::PD | PRESENT_WRITABLE].into_iter())?;
    table(layout::PD, &mut (0..512).map(|page: u64| page << 21 | LARGE | PRESENT_WRITABLE))
}

/// Sets the boot vCPU's registers to enter the kernel at `entry`.
pub(crate) fn set_boot_state(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut system = vcpu.get_sregs()?;
    long_mode(&mut system);
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        // Bit 1 is always set.
        rflags: 2,
        ..Default::default()
    })?;
    // The x87 control word and MXCSR as after FNINIT and reset.
    vcpu.set_fpu(&kvm_bindings::kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
}

fn long_mode(system: &mut kvm_sregs) {
    system.gdt.base = layout::GDT.start;
    system.gdt.limit = (size_of_val(&GDT) - 1) as u16;
    system.idt.base = layout::IDT.start;
    system.idt.limit = (size_of::<u64>() - 1) as u16;
    system.cs = segment(CODE, BOOT_CS);
    for data in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss] {
        *data = segment(DATA, BOOT_DS);
    }
    system.tr = segment(TASK, BOOT_TSS);
    system.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    system.cr3 = layout::PML4;
    system.cr4 = CR4_PAE;
    system.efer = EFER_LONG_MODE | EFER_LONG_MODE_ACTIVE;
}

/// Takes a segment descriptor apart (Intel SDM vol. 3A, 3.4.5). All of ours have base 0.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bits = |from: u32, count: u32| ((descriptor >> from) & ((1 << count) - 1)) as u8;
    let limit = (descriptor & 0xffff | (descriptor >> 32) & 0xf_0000) as u32;
    let granularity = bits(55, 1);
    kvm_segment {
        base: 0,
        // In bytes, whatever the granularity.
        limit: if granularity == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granularity,
        unusable: 0,
        padding: 0,
    }
}

/// Sets the local APIC's two pins as firmware leaves them: LINT0 passes on the PIC's interrupts, LINT1 is NMI.
pub(crate) fn set_local_apic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4;
    const MODE_EXTINT: u32 = 7;
    let mut apic = vcpu.get_lapic()?;
    for (register, mode) in [(LINT0, MODE_EXTINT), (LINT1, MODE_NMI)] {
        let bytes = apic.regs[register..register + 4].iter().map(|byte| *byte as u8);
        let mut value = [0; 4];
        value.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        // Bits 8 to 10 are the delivery mode.
        let value = u32::from_le_bytes(value) & !0x700 | mode << 8;
        for (to, from) in apic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *to = from as _;
        }
    }
    vcpu.set_lapic(&apic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_the_boot_protocol() {
        let mut system = kvm_sregs::default();
        long_mode(&mut system);
        let code = system.cs;
        assert_eq!((code.selector, code.l, code.db, code.g, code.present, code.s), (0x10, 1, 0, 1, 1, 1));
        assert_eq!((code.type_, code.limit), (0xb, u32::MAX));
        let data = system.ss;
        assert_eq!((data.selector, data.type_, data.l, data.db, data.limit), (0x18, 3, 0, 1, u32::MAX));
        assert_eq!((system.tr.type_, system.tr.s), (0xb, 0));
        assert_eq!(system.gdt.limit, 39);
        const { assert!(layout::GDT.start + size_of_val(&GDT) as u64 <= layout::IDT.start) };
    }

    #[test]
    fn the_first_gib_is_mapped_onto_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_boot_tables(&memory).unwrap();
        for address in [0u64, 0x100_0000, 0x3fff_f000] {
            let entry = |table: u64, shift: u32| -> u64 {
                memory.read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8)).unwrap()
            };
            let pdpt = entry(layout::PML4, 39) & !0xfff;
            let pd = entry(pdpt, 30) & !0xfff;
            let page = entry(pd, 21);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!(page & !0x1f_ffff | address & 0x1f_ffff, address);
        }
        assert_eq!(memory.read_obj::<u64>(GuestAddress(layout::GDT.start + 0x10)).unwrap(), CODE);
    }
}
