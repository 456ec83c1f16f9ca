//! Why the state of a VM was not saved or restored.

use std::io;

/// Why the state of a VM could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Only a paused vCPU has a state to save or restore.
    #[error("the vCPUs are not paused")]
    Running,
    /// The VM has another number of vCPUs.
    #[error("the state has {found} vCPUs: expected {expected}")]
    Vcpus {
        /// vCPUs in the state.
        found: usize,
        /// vCPUs of the VM.
        expected: usize,
    },
    /// KVM refused.
    #[error("cannot {action} the {component}")]
    Kvm {
        /// "save" or "restore".
        action: &'static str,
        /// Which part.
        component: &'static str,
        /// KVM's error.
        #[source]
        source: io::Error,
    },
    /// KVM refused part of a state, and then part of the one that was there before.
    #[error("part of the state was restored, and the state before cannot be restored either ({undo})")]
    Torn {
        /// Why the state was not restored.
        #[source]
        source: Box<StateError>,
        /// Why the state before was not.
        undo: Box<StateError>,
    },
    /// KVM does not know a register.
    #[error("KVM does not take MSR {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
    },
}

impl StateError {
    /// What a restore that failed half-way comes to, once `put_back` has restored what was there before.
    pub(crate) fn undo(self, put_back: impl FnOnce() -> Result<(), Self>) -> Self {
        match put_back() {
            Ok(()) => self,
            Err(undo) => Self::Torn { source: Box::new(self), undo: Box::new(undo) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_that_cannot_be_undone_says_both_reasons() {
        let refused = |index| StateError::Msr { index };
        assert!(matches!(refused(1).undo(|| Ok(())), StateError::Msr { index: 1 }));
        let torn = refused(1).undo(|| Err(refused(2)));
        assert!(torn.to_string().ends_with("cannot be restored either (KVM does not take MSR 0x2)"), "{torn}");
        let source = std::error::Error::source(&torn).unwrap();
        assert_eq!(source.to_string(), "KVM does not take MSR 0x1");
    }
}
