//! Why the state of a VM was not saved or restored.

use std::io;

/// Why the state of a VM could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Only a paused vCPU has a state to save or restore.
    #[error("the vCPUs are not paused")]
    Running,
    /// The state is that of another VM.
    #[error("the state has {found} vCPUs: expected {expected}")]
    Vcpus {
        /// How many it has.
        found: usize,
        /// How many the VM has.
        expected: usize,
    },
    /// KVM refused.
    #[error("cannot {action} the {component}")]
    Kvm {
        /// "save" or "restore".
        action: &'static str,
        /// Which part.
        component: &'static str,
        /// What KVM answered.
        #[source]
        source: io::Error,
    },
    /// KVM does not know a register.
    #[error("KVM does not take MSR {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
    },
}
