//! Why a guest could not be put into memory.

use std::io;
use std::path::PathBuf;

use super::layout;
use crate::command_line::CommandLineError;
use crate::kind::ErrorKind;

/// Why a guest could not be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line is invalid.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The machine cannot be described in ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Reading the initramfs failed.
    #[error("cannot read the initramfs `{path}`")]
    ReadInitramfs {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The initramfs is not a regular file, or is empty.
    #[error("the initramfs `{path}` is {found}: expected a cpio archive")]
    NoInitramfs {
        /// The file.
        path: PathBuf,
        /// Its kind.
        found: &'static str,
    },
    /// The initramfs does not fit.
    #[error(
        "no room for the initramfs `{path}` of {bytes} bytes: memory between the kernel and {end:#x} is {room} bytes"
    )]
    NoRoomForInitramfs {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// Bytes of room.
        room: u64,
        /// End of the memory for it.
        end: u64,
    },
    /// Low memory ends before everything that boot needs.
    #[error("{bytes} bytes of base memory are too few: expected at least 2 MiB below 4 GiB, plus the kernel's needs")]
    TooLittleMemory {
        /// Low memory of the guest.
        bytes: u64,
    },
    /// Guest memory does not match the layout.
    #[error("cannot write the {what} to guest memory")]
    Memory {
        /// The part that was being written.
        what: &'static str,
        /// The cause.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

impl BootError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Kernel(error) => error.kind(),
            Self::Acpi(error) => error.kind(),
            Self::ReadInitramfs { source, .. } => ErrorKind::of_file(source),
            Self::CommandLine(_)
            | Self::NoInitramfs { .. }
            | Self::NoRoomForInitramfs { .. }
            | Self::TooLittleMemory { .. } => ErrorKind::Invalid,
            Self::Memory { .. } => ErrorKind::Internal,
        }
    }
}

/// Why a file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading the file failed.
    #[error("cannot read the kernel `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file has another format.
    #[error("`{path}` is not a kernel: expected an ELF vmlinux or an x86 bzImage, found {found}")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// The format that it seems to have.
        found: String,
    },
    /// An ELF file, but not a kernel for this machine.
    #[error("`{path}` is not an x86-64 kernel")]
    Elf {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ElfError,
    },
    /// A bzImage that has no 64-bit entry.
    #[error(
        "the bzImage `{path}` has no 64-bit entry (boot protocol {version:#x}, xloadflags {flags:#x}): expected Linux 3.8 or later, for x86-64"
    )]
    NoEntry64 {
        /// The file.
        path: PathBuf,
        /// Boot protocol version.
        version: u16,
        /// `xloadflags` of its setup header.
        flags: u16,
    },
    /// The file ends early.
    #[error("the kernel `{path}` is truncated: {found} bytes of {expected}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How long it should be.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// The kernel does not fit at its addresses.
    #[error("the kernel `{path}` needs memory from {start:#x} to {end:#x}, but there is memory from {from:#x} to {to:#x}", from = layout::HIGH_MEMORY)]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// First address it needs.
        start: u64,
        /// End of the memory it needs.
        end: u64,
        /// End of the memory it can have.
        to: u64,
    },
    /// The loader failed although the checks passed.
    #[error("cannot load the kernel `{path}`")]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's error.
        #[source]
        source: linux_loader::loader::Error,
    },
}

impl KernelError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } => ErrorKind::of_file(source),
            Self::NotAKernel { .. }
            | Self::Elf { .. }
            | Self::NoEntry64 { .. }
            | Self::Truncated { .. }
            | Self::NoRoom { .. }
            | Self::Load { .. } => ErrorKind::Invalid,
        }
    }
}

/// Why an ELF file is not a kernel for this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ElfError {
    /// The file ends within its headers.
    #[error("it ends within its ELF headers")]
    Short,
    /// Another architecture.
    #[error(
        "it is an ELF file for another machine (class {class}, machine {machine}): expected x86-64 (class 2, machine 62)"
    )]
    Machine {
        /// `EI_CLASS`.
        class: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// A relocatable object, a core file...
    #[error("it is an ELF file of type {0}: expected an executable (type 2)")]
    Type(u16),
    /// Nothing to load, or an entry outside of it.
    #[error("it has no loadable segment at its entry {0:#x}: expected a kernel's physical address")]
    Entry(u64),
    /// A segment whose end is past the end of all addresses.
    #[error("the segment at {0:#x} ends beyond the last address")]
    Segment(u64),
}

/// Why a description cannot be put into tables.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AcpiError {
    /// Bus numbers start at 0 without a gap: ECAM is one range.
    #[error("root bus number {number} at place {place}: expected {place}")]
    BusNumber {
        /// The number found.
        number: u8,
        /// The number expected.
        place: usize,
    },
    /// Too few or too many buses for a segment.
    #[error("{0} root buses: expected 1 to 256")]
    BusCount(usize),
    /// A bus without addresses for its devices.
    #[error("root bus {number} has the empty address range {start:#x}..{end:#x}")]
    EmptyRange {
        /// The bus.
        number: u8,
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
    /// The tables are too large.
    #[error("the ACPI tables have {bytes} bytes: expected at most {room}, so fewer buses or partitions")]
    TooLarge {
        /// Size of the tables.
        bytes: usize,
        /// Room for them.
        room: u64,
    },
}

impl AcpiError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::BusNumber { .. } | Self::BusCount(_) | Self::EmptyRange { .. } => ErrorKind::Internal,
        }
    }
}
