//! The zero page, `struct boot_params`: how a boot loader tells Linux about memory, command line, initramfs and ACPI
//! (`Documentation/arch/x86/zero-page.rst`).

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

/// What a range of addresses is, in the words of the BIOS memory map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MemoryKind {
    Usable = 1,
    Reserved = 2,
    Acpi = 3,
}

/// The memory map: ranges in order of address.
pub(crate) type MemoryMap = Vec<(Range<u64>, MemoryKind)>;

/// What the zero page says.
pub(crate) struct ZeroPage<'a> {
    pub memory_map: &'a [(Range<u64>, MemoryKind)],
    /// A bzImage's own header; an ELF kernel has none.
    pub setup_header: Option<setup_header>,
    pub command_line: u32,
    pub initramfs: Range<u32>,
    pub rsdp: u64,
}

impl ZeroPage<'_> {
    /// The page itself. The memory map must have at most 128 entries.
    pub(crate) fn build(&self) -> boot_params {
        /// "HdrS": without it an ELF kernel assumes a boot loader of an ancient protocol.
        const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
        /// A boot loader without a number of its own.
        const UNDEFINED_LOADER: u8 = 0xff;
        let mut params = boot_params {
            hdr: self.setup_header.unwrap_or(setup_header {
                header: MAGIC,
                boot_flag: 0xaa55,
                version: 0x20f,
                loadflags: 1,
                kernel_alignment: 0x20_0000,
                ..Default::default()
            }),
            acpi_rsdp_addr: self.rsdp,
            ..Default::default()
        };
        params.hdr.type_of_loader = UNDEFINED_LOADER;
        params.hdr.cmd_line_ptr = self.command_line;
        params.hdr.ramdisk_image = self.initramfs.start;
        params.hdr.ramdisk_size = self.initramfs.end - self.initramfs.start;
        let mut table = params.e820_table;
        for (entry, (range, kind)) in table.iter_mut().zip(self.memory_map) {
            *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: *kind as u32 };
            params.e820_entries += 1;
        }
        params.e820_table = table;
        params
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_was_given() {
        let map = [(0..0xa_0000, MemoryKind::Usable), (0xe_0000..0x10_0000, MemoryKind::Acpi)];
        let page = ZeroPage {
            memory_map: &map,
            setup_header: None,
            command_line: 0x2_0000,
            initramfs: 0x300_0000..0x310_0000,
            rsdp: 0xe_0000,
        };
        let params = page.build();
        let (first, second) = (params.e820_table[0], params.e820_table[1]);
        assert_eq!(params.e820_entries, 2);
        assert_eq!({ first.size }, 0xa_0000);
        assert_eq!(({ second.addr }, { second.size }, { second.r#type }), (0xe_0000, 0x2_0000, 3));
        let header = params.hdr;
        assert_eq!(({ header.header }, { header.boot_flag }), (0x5372_6448, 0xaa55));
        assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x300_0000, 0x10_0000));
        assert_eq!(({ params.acpi_rsdp_addr }, { header.cmd_line_ptr }), (0xe_0000, 0x2_0000));

        let own = setup_header { version: 0x20d, initrd_addr_max: 0x7fff_ffff, ..Default::default() };
        let header = ZeroPage { setup_header: Some(own), ..page }.build().hdr;
        assert_eq!(({ header.version }, { header.initrd_addr_max }), (0x20d, 0x7fff_ffff));
        assert_eq!(({ header.type_of_loader }, { header.cmd_line_ptr }), (0xff, 0x2_0000));
    }
}
