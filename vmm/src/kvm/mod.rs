//! KVM: the VM, its memory slots, interrupts and doorbells, and the vCPUs that run in it.
//!
//! In order: [`Host::open`] checks `/dev/kvm`; [`Machine::new`] makes the VM with its in-kernel interrupt controllers; memory
//! goes in through [`Machine::slots`]; [`VcpuPool::new`] makes the vCPUs and [`VcpuPool::start`] runs them until an
//! [`ExitReason`] is reported.

mod doorbells;
mod error;
mod exit;
mod gate;
#[cfg(test)]
mod gate_model;
#[cfg(test)]
mod gate_test;
mod kick;
mod machine;
mod msi;
mod slots;
mod statistics;
mod sync;
mod threads;
mod vcpu;
mod vcpu_pool;

pub use error::{HostError, MachineError, VcpuError, VcpuPoolError};
pub use exit::{ExitNotice, ExitReason};
pub use gate::Gate;
pub use machine::{Host, Machine, needs_capability};
pub use statistics::ExitCounts;
pub use vcpu_pool::{VcpuPool, Vcpus};
