use std::io::Write;

use bellows_memory::ByteSize;
use tempfile::NamedTempFile;

use super::*;
use crate::arch::RootBus;
use crate::command_line::CommandLine;

const BASE: ByteSize = ByteSize::mib(32);

struct Guest {
    memory: GuestMemory,
    layout: Layout,
    buses: Vec<RootBus>,
}

impl Guest {
    fn new(base: ByteSize) -> Self {
        let layout = Layout::new(&layout::spec(base, vec![ByteSize::mib(128)], 40)).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), base.get() as usize)]).unwrap();
        Self { memory, layout, buses: vec![RootBus { number: 0, mmio32: 0xc000_0000..0xd000_0000, mmio64: None }] }
    }

    fn load(&self, kernel: &Path, initramfs: Option<&Path>, command_line: &CommandLine) -> Result<Loaded, BootError> {
        let firmware = Firmware { vcpus: 1, layout: &self.layout, buses: &self.buses, serial: true };
        load(&self.memory, firmware, BootSource { kernel, initramfs, command_line })
    }

    fn word(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn kernel() -> NamedTempFile {
    let mut bytes = crate::arch::x86_64::elf::tests::test_file(&[(0x1000, 0x100_0000, 0x800, 0x10_0000)], 0x100_0000);
    bytes.resize(0x1800, 0xaa);
    file(&bytes)
}

#[test]
fn everything_is_where_the_zero_page_says() {
    let guest = Guest::new(BASE);
    let mut line = CommandLine::new();
    line.set("console", "ttyS0").unwrap();
    let initramfs = file(&[7; 5000]);
    let loaded = guest.load(kernel().path(), Some(initramfs.path()), &line).unwrap();
    assert_eq!(loaded.entry.0, 0x100_0000);

    // Offsets in struct boot_params.
    let page = layout::ZERO_PAGE;
    let (image, bytes) = (guest.word(page + 0x218), guest.word(page + 0x21c));
    assert_eq!((u64::from(image), bytes), (BASE.get() - 8192, 5000));
    assert_eq!(guest.word(image.into()), 0x0707_0707);
    let at = guest.word(page + 0x228);
    let mut text = [0; 14];
    guest.memory.read_slice(&mut text, GuestAddress(at.into())).unwrap();
    assert_eq!(&text, b"console=ttyS0\0");
    let rsdp = u64::from(guest.word(page + 0x70));
    assert_eq!(guest.word(rsdp), u32::from_le_bytes(*b"RSD "));
    assert_eq!(guest.word(layout::RESET_VECTOR), u32::from_le_bytes([0xba, 0x02, 0x06, 0xb0]));
}

#[test]
fn the_memory_map_has_all_base_memory_and_no_window() {
    let layout = Layout::new(&layout::spec(ByteSize::gib(4), vec![ByteSize::gib(1)], 40)).unwrap();
    let map = memory_map(&layout, 0xe000_0000..0xe010_0000);
    use MemoryKind::{Acpi, Reserved, Usable};
    assert_eq!(
        map,
        [
            (0..0xa_0000, Usable),
            (0xa_0000..0xe_0000, Reserved),
            (0xe_0000..0x10_0000, Acpi),
            (0x10_0000..3 << 30, Usable),
            (0xe000_0000..0xe010_0000, Reserved),
            (4 << 30..5 << 30, Usable),
        ]
    );
}

#[test]
fn a_bzimage_says_where_its_initramfs_may_end_and_how_long_its_command_line_is() {
    let header = setup_header { cmdline_size: 100, ..Default::default() };
    assert_eq!(initramfs_end(3 << 30, Some(0x37ff_ffff)), 0x3800_0000);
    assert_eq!(initramfs_end(1 << 20, Some(0x37ff_ffff)), 1 << 20);
    assert_eq!(initramfs_end(3 << 30, None), 2 << 30);
    assert_eq!((command_line_max(Some(header)), command_line_max(None)), (100, 2047));
    let endless = setup_header { cmdline_size: u32::MAX, ..Default::default() };
    assert_eq!(command_line_max(Some(endless)), 0xffff);
}

#[test]
fn an_error_names_the_file_that_cannot_be_loaded() {
    let guest = Guest::new(BASE);
    let line = CommandLine::new();
    let error = |initramfs: &Path| {
        let error = guest.load(kernel().path(), Some(initramfs), &line).unwrap_err().to_string();
        assert!(error.contains(&initramfs.display().to_string()), "{error}");
        error
    };
    assert!(error(Path::new("/nowhere/initramfs")).contains("cannot read"));
    assert!(error(Path::new("/proc")).contains("not a regular file"));
    assert!(error(file(&[]).path()).contains("is empty"));
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(20 << 20).unwrap();
    assert!(error(large.path()).contains("memory between the kernel and 0x2000000 is 15728640 bytes"));

    let mut long = CommandLine::new();
    long.text(&"x ".repeat(1100)).unwrap();
    let error = guest.load(kernel().path(), None, &long).unwrap_err().to_string();
    assert!(error.contains("2199 bytes, but this kernel reads at most 2047"), "{error}");

    let error = Guest::new(ByteSize::mib(16)).load(kernel().path(), None, &line).unwrap_err().to_string();
    assert!(error.contains("needs memory from 0x1000000 to 0x1100000"), "{error}");
}
