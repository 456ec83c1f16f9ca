//! x86-64: where things lie, what a vCPU starts with, the firmware's tables, and how a kernel gets into memory.

mod boot;
pub mod cpu;
mod elf;
mod kernel;
pub mod layout;
mod reset_vector;
mod tables;
mod zero_page;

pub use boot::{BootError, BootSource, Loaded, load};
pub use tables::{Acpi, RootBus};
