//! What differs from one architecture to another: the rest of the monitor knows the architecture by this module alone.
//!
//! An architecture is a folder with these names in it:
//!
//! | name | what it is |
//! |---|---|
//! | `layout` | the address map: where RAM, device memory, ports and interrupt lines are, and the [`LayoutSpec`] made from it |
//! | `load` | puts a kernel, its initramfs and the firmware's tables into memory |
//! | `cpu` | the setup of a vCPU, its error details, and its state |
//! | `vm` | the rest of a VM in KVM, beside memory: interrupt controllers, timers, their state |
//! | `interrupts` | routes of interrupt lines and messages |
//! | `legacy` | devices at fixed addresses: power, serial port |
//! | `trial` | the guest of a host's trial: its code, and what it does where |
//! | `PARAMETERS`, `FLAGS`, `CONSOLE` | kernel parameters with and without a value, and the name of the serial port |
//! | `PROGRAM_COUNTER` | the architecture's name for it |
//!
//! [`LayoutSpec`]: bellows_memory::LayoutSpec

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bellows_devices::bus::Bus;
use bellows_memory::layout::Layout;
use vm_memory::GuestAddress;

use crate::command_line::CommandLine;

mod error;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as current;

pub use current::error::BootError;
pub use current::layout;
pub use current::load;
pub(crate) use current::{CONSOLE, FLAGS, PARAMETERS, PROGRAM_COUNTER, cpu, interrupts, legacy, trial, vm};
pub use error::StateError;

/// The devices of a VM, by how vCPUs reach them. Cheap to clone.
#[derive(Clone)]
pub struct Buses {
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// Devices on I/O ports, where the architecture has them.
    pub ports: Arc<Bus>,
}

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

/// What the firmware tells the guest's kernel.
#[derive(Clone, Copy, Debug)]
pub struct Firmware<'a> {
    /// Number of vCPUs, which count from 0.
    pub vcpus: u16,
    /// Base memory and partition windows.
    pub layout: &'a Layout,
    /// The root buses, in order of their numbers, from 0 without a gap.
    pub buses: &'a [RootBus],
    /// The machine has a serial port.
    pub serial: bool,
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSource<'a> {
    /// The kernel: an ELF `vmlinux`, or what the architecture boots beside that.
    pub kernel: &'a Path,
    /// The initramfs, handed to the kernel as it is.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: &'a CommandLine,
}

/// A guest ready to run.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Where the first vCPU enters the kernel.
    pub entry: GuestAddress,
}
