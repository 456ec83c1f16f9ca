//! The x86-64 machine over KVM: vCPUs, memory slots, interrupts, firmware tables, boot.
//!
//! What happens in order: [`Host::open`] checks `/dev/kvm`; [`Machine::new`] makes the VM with its in-kernel interrupt
//! controllers; memory goes in through [`Machine::slots`]; [`load`] puts kernel, initramfs and ACPI tables into guest memory;
//! [`VcpuPool::new`] makes the vCPUs and [`VcpuPool::start`] runs them until an [`ExitReason`] is reported.

pub mod acpi;
pub mod boot;
pub mod command_line;
pub mod cpuid;
pub mod doorbells;
mod elf;
pub mod exit;
pub mod gate;
pub mod kernel;
mod kick;
pub mod kvm;
pub mod msi;
mod msrs;
pub mod platform;
mod registers;
mod reset_vector;
pub mod slots;
pub mod statistics;
mod threads;
pub mod vcpu;
pub mod vcpu_pool;
mod zero_page;

pub use acpi::{Acpi, AcpiError, RootBus};
pub use boot::{BootError, BootSource, Loaded, load};
pub use command_line::{CommandLine, CommandLineError};
pub use doorbells::KvmDoorbells;
pub use exit::{ExitNotice, ExitReason, VcpuError};
pub use gate::Gate;
pub use kvm::{Host, HostError, Machine, MachineError};
pub use msi::KvmMsi;
pub use slots::KvmSlots;
pub use statistics::{ExitCounts, VcpuStatistics};
pub use vcpu_pool::{VcpuPool, VcpuPoolError, Vcpus};
