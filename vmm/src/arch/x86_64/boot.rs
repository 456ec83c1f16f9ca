//! Puts everything that a guest boots from into its memory.

use std::fs::File;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use bellows_memory::GuestMemory;
use bellows_memory::layout::Layout;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::cpu::write_boot_tables;
use super::error::BootError;
use super::kernel::KernelImage;
use super::layout;
use super::reset_vector;
use super::tables;
use super::zero_page::{MemoryKind, MemoryMap, ZeroPage};
use crate::arch::{BootSource, Firmware, Loaded};

/// Highest end of an initramfs if the kernel names no limit: the limit that other kernels name.
const INITRAMFS_END: u64 = 0x8000_0000;
/// Longest command line of an ELF kernel, without the final zero (`COMMAND_LINE_SIZE` of x86).
const ELF_COMMAND_LINE: usize = 2047;
const PAGE: u64 = 4096;

/// Loads kernel, initramfs, command line, ACPI tables, zero page and boot page tables.
///
/// # Errors
/// A file is missing, of the wrong kind or too large; the error names it.
pub fn load(memory: &GuestMemory, firmware: Firmware<'_>, source: BootSource<'_>) -> Result<Loaded, BootError> {
    let low = firmware.layout.low().bytes();
    if low <= layout::HIGH_MEMORY + PAGE {
        return Err(BootError::TooLittleMemory { bytes: low });
    }
    let tables = tables::build(&firmware)?;
    let image = KernelImage::open(source.kernel, low)?;
    let room = image.end()..initramfs_end(low, image.initramfs_max());
    let (kernel, initramfs) = thread::scope(|scope| {
        // Copying these takes most of the time before the guest runs.
        let initramfs = source.initramfs.map(|path| scope.spawn(|| load_initramfs(memory, path, room)));
        let kernel = image.load(memory);
        let initramfs = initramfs.map_or(Ok(0..0), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok::<_, BootError>((kernel?, initramfs?))
    })?;
    let line = source.command_line.render(command_line_max(kernel.setup_header))?;

    let written = |what| move |source| BootError::Memory { what, source };
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE.start)).map_err(written("command line"))?;
    let end = GuestAddress(layout::COMMAND_LINE.start + line.len() as u64);
    memory.write_obj(0u8, end).map_err(written("command line"))?;
    let tables_at = layout::ACPI_TABLES.start;
    memory.write_slice(&tables, GuestAddress(tables_at)).map_err(written("ACPI tables"))?;
    memory.write_slice(&reset_vector::CODE, GuestAddress(layout::RESET_VECTOR)).map_err(written("reset vector"))?;
    write_boot_tables(memory).map_err(written("boot page tables"))?;
    let page = ZeroPage {
        memory_map: &memory_map(firmware.layout, tables::ecam(firmware.buses)),
        setup_header: kernel.setup_header,
        command_line: layout::COMMAND_LINE.start as u32,
        initramfs,
        rsdp: tables_at,
    };
    memory.write_slice(page.build().as_slice(), GuestAddress(layout::ZERO_PAGE)).map_err(written("zero page"))?;
    Ok(Loaded { entry: kernel.entry })
}

fn initramfs_end(low: u64, max: Option<u32>) -> u64 {
    let limit = max.map_or(INITRAMFS_END, |max| u64::from(max) + 1);
    low.min(limit)
}

fn command_line_max(header: Option<setup_header>) -> usize {
    let max = header.map_or(ELF_COMMAND_LINE, |header| header.cmdline_size as usize);
    max.min((layout::COMMAND_LINE.end - layout::COMMAND_LINE.start) as usize - 1)
}

/// Puts an initramfs as high as it goes in `room`.
fn load_initramfs(memory: &GuestMemory, path: &Path, room: Range<u64>) -> Result<Range<u32>, BootError> {
    let Range { start, end } = room;
    let read = |source| BootError::ReadInitramfs { path: path.to_owned(), source };
    let wrong = |found| BootError::NoInitramfs { path: path.to_owned(), found };
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let bytes = metadata.len();
    if !metadata.is_file() {
        return Err(wrong("not a regular file"));
    }
    if bytes == 0 {
        return Err(wrong("empty"));
    }
    let at = end.checked_sub(bytes).map(|at| at & !(PAGE - 1)).filter(|at| *at >= start);
    let no_room =
        || BootError::NoRoomForInitramfs { path: path.to_owned(), bytes, room: end.saturating_sub(start), end };
    let at = at.ok_or_else(no_room)?;
    // Low memory ends below 4 GiB: both ends fit.
    let range = u32::try_from(at).ok().zip(u32::try_from(at + bytes).ok()).map(|(at, end)| at..end);
    let range = range.ok_or_else(no_room)?;
    memory
        .read_exact_volatile_from(GuestAddress(at), &mut file, bytes as usize)
        .map_err(|source| BootError::Memory { what: "initramfs", source })?;
    Ok(range)
}

/// The memory map. Partition windows are not in it: the SRAT announces them.
fn memory_map(layout: &Layout, ecam: Range<u64>) -> MemoryMap {
    use MemoryKind::{Acpi, Reserved, Usable};
    let tables = layout::ACPI_TABLES;
    let mut map = vec![
        (0..layout::LOW_MEMORY_END, Usable),
        (layout::LOW_MEMORY_END..tables.start, Reserved),
        (tables.start..layout::HIGH_MEMORY, Acpi),
        (layout::HIGH_MEMORY..layout.low().bytes(), Usable),
        (ecam, Reserved),
    ];
    map.extend(layout.high().map(|high| (high.start().0..high.end().0, Usable)));
    map.sort_by_key(|(range, _)| range.start);
    map
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
