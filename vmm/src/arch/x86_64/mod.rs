//! x86-64: where things lie, what a vCPU starts with, the firmware's tables, and how a kernel gets into memory.

mod boot;
pub(crate) mod cpu;
mod elf;
pub mod error;
pub(crate) mod interrupts;
mod kernel;
pub mod layout;
pub(crate) mod legacy;
mod reset_vector;
mod tables;
pub(crate) mod trial;
pub(crate) mod vm;
mod zero_page;

pub use boot::load;

/// Kernel parameters that every guest on this architecture gets: name and value.
pub(crate) const PARAMETERS: &[(&str, &str)] = &[
    // A reboot ends the VM by the reset register that ACPI names.
    ("reboot", "acpi"),
    // The clock comes from the hypervisor: nothing to measure against or to distrust.
    ("tsc", "reliable"),
    // The kernel would probe further ports in vain. With 0 ports the guest has no console, and its kernel then starts the
    // agent with closed standard descriptors; a Rust program aborts on those before `/dev/null` exists.
    ("8250.nr_uarts", "1"),
];

/// The same without a value.
pub(crate) const FLAGS: &[&str] = &["no_timer_check"];

/// The kernel's name for the serial port.
pub(crate) const CONSOLE: &str = "ttyS0";

/// The architecture's name of the program counter, for errors.
pub(crate) const PROGRAM_COUNTER: &str = "RIP";
