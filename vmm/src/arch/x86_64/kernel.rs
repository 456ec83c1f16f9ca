//! Kernel images: what a file is, whether it is whole, and putting it into guest memory.

use std::fs::File;
use std::io::Read;
use std::mem::offset_of;
use std::path::Path;

use bellows_memory::GuestMemory;
use linux_loader::loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::elf;
use super::error::KernelError;
use super::layout;

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Where a vCPU in 64-bit mode enters it.
    pub entry: GuestAddress,
    /// The setup header to hand on: a bzImage's own.
    pub setup_header: Option<setup_header>,
}

/// Program headers must lie within this many bytes, so that one read gets everything to check.
const HEAD_BYTES: u64 = 64 << 10;

const BZIMAGE_HEADER: usize = offset_of!(boot_params, hdr);
const BZIMAGE_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// A bzImage's 64-bit entry, from where it is loaded.
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// A kernel that fits into guest memory, but is not loaded yet.
#[derive(Debug)]
pub(crate) struct KernelImage<'a> {
    path: &'a Path,
    file: File,
    plan: Plan,
}

impl<'a> KernelImage<'a> {
    /// Looks at the kernel in `path`, for low memory that ends at `memory_end`.
    ///
    /// # Errors
    /// The file is not a kernel for this machine, is truncated, or does not fit.
    pub(crate) fn open(path: &'a Path, memory_end: u64) -> Result<Self, KernelError> {
        let read = |source| KernelError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(KernelError::NotAKernel {
                path: path.to_owned(),
                found: "something that is not a regular file".to_owned(),
            });
        }
        let mut head = Vec::new();
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(read)?;
        let plan = plan(path, &head, metadata.len())?;

        let memory_end = memory_end.min(layout::BOOT_MAPPED);
        if plan.start < layout::HIGH_MEMORY || plan.end > memory_end {
            let Plan { start, end, .. } = plan;
            return Err(KernelError::NoRoom { path: path.to_owned(), start, end, to: memory_end });
        }
        Ok(Self { path, file, plan })
    }

    /// End of the memory that the kernel occupies, or will while it starts.
    pub(crate) fn end(&self) -> u64 {
        self.plan.end
    }

    /// Highest address that an initramfs may have, where the kernel says so.
    pub(crate) fn initramfs_max(&self) -> Option<u32> {
        self.plan.initramfs_max
    }

    /// Puts it into memory.
    ///
    /// # Errors
    /// The loader fails although these checks passed.
    pub(crate) fn load(mut self, memory: &GuestMemory) -> Result<Kernel, KernelError> {
        let high_memory = Some(GuestAddress(layout::HIGH_MEMORY));
        let result = match self.plan.format {
            Format::Elf => Elf::load(memory, None, &mut self.file, high_memory),
            Format::BzImage => BzImage::load(memory, None, &mut self.file, high_memory),
        };
        let loaded = result.map_err(|source| KernelError::Load { path: self.path.to_owned(), source })?;
        Ok(Kernel { entry: GuestAddress(self.plan.entry), setup_header: loaded.setup_header })
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Format {
    Elf,
    BzImage,
}

/// Where a kernel will lie.
#[derive(Debug, Eq, PartialEq)]
struct Plan {
    format: Format,
    entry: u64,
    start: u64,
    end: u64,
    initramfs_max: Option<u32>,
}

/// Reads the first bytes of a file of `length` bytes.
fn plan(path: &Path, head: &[u8], length: u64) -> Result<Plan, KernelError> {
    let whole = |expected: u64| {
        if length >= expected {
            return Ok(());
        }
        Err(KernelError::Truncated { path: path.to_owned(), expected, found: length })
    };
    if head.starts_with(b"\x7fELF") {
        let kernel = elf::parse(head).map_err(|source| KernelError::Elf { path: path.to_owned(), source })?;
        whole(kernel.file_bytes)?;
        let (start, end) = (kernel.range.start, kernel.range.end);
        return Ok(Plan { format: Format::Elf, entry: kernel.entry, start, end, initramfs_max: None });
    }
    let Some(header) = bzimage_header(head) else {
        return Err(KernelError::NotAKernel { path: path.to_owned(), found: describe(head) });
    };
    // Version 2.12 brought xloadflags; bit 0 is XLF_KERNEL_64.
    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x20c || flags & 1 == 0 {
        return Err(KernelError::NoEntry64 { path: path.to_owned(), version, flags });
    }
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let setup_bytes = (setup_sectors + 1) * 512;
    // `syssize` counts 16 bytes and rounds up.
    let image_bytes = u64::from(header.syssize) * 16;
    whole((setup_bytes + image_bytes).saturating_sub(15))?;
    let start = u64::from(header.code32_start);
    // It unpacks itself to where it prefers to be, or where it is, whichever is higher.
    let unpacked = header.pref_address.max(start).saturating_add(header.init_size.into());
    let end = unpacked.max(start.saturating_add(length - setup_bytes));
    let initramfs_max = Some(header.initrd_addr_max);
    Ok(Plan { format: Format::BzImage, entry: start + BZIMAGE_ENTRY_64, start, end, initramfs_max })
}

fn bzimage_header(head: &[u8]) -> Option<setup_header> {
    let bytes = head.get(BZIMAGE_HEADER..)?.get(..size_of::<setup_header>())?;
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(bytes);
    let magic = header.header;
    (magic == BZIMAGE_MAGIC).then_some(header)
}

/// Names the kinds of file that people pass by mistake.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 8] = [
        (b"\x1f\x8b", "gzip data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"\xfd7zXZ", "xz data"),
        (b"0707", "a cpio archive (an initramfs?)"),
        (b"!<arch>", "an ar archive (a Debian package?)"),
        (b"#!", "a script"),
        (b"MZ\0\0zimg", "an EFI zboot image (the kernel packed in it can be booted)"),
        (b"MZ", "an EFI program without a Linux setup header"),
    ];
    if head.is_empty() {
        return "an empty file".to_owned();
    }
    known.iter().find(|(magic, _)| head.starts_with(magic)).map_or_else(
        || format!("a file that begins with {:02x?}", &head[..head.len().min(8)]),
        |(_, name)| (*name).to_owned(),
    )
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
