//! How a VM ends, and who hears of it.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gate::Gate;

/// Why a VM ended by itself.
#[derive(Debug)]
pub enum ExitReason {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asked for a reset. Bellows does not restart it.
    Reset,
    /// A vCPU met a fault while it handled a fault while it handled a fault.
    TripleFault,
    /// A vCPU or a device failed; the VM can't go on.
    Error(Box<dyn Error + Send + Sync>),
}

/// How a vCPU failed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM can't emulate what the guest executed; most often an access to memory that is not there, by an instruction too
    /// odd to emulate.
    #[error("vCPU {vcpu}: KVM cannot emulate the instruction at RIP {rip:#x}{}{}", address(*guest_address), bytes(instruction))]
    Emulation {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the instruction.
        rip: u64,
        /// Guest-physical address that it touched, where the host's CPU says so.
        guest_address: Option<u64>,
        /// The instruction's first bytes, where KVM read them.
        instruction: Vec<u8>,
    },
    /// KVM met a state it does not know how to go on from.
    #[error("vCPU {vcpu}: KVM internal error {suberror} at RIP {rip:#x} (data {data:x?})")]
    Internal {
        /// Index of the vCPU.
        vcpu: u16,
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Guest-virtual address of the instruction.
        rip: u64,
        /// What KVM says beyond that.
        data: Vec<u64>,
    },
    /// The CPU refused the guest's state.
    #[error("vCPU {vcpu}: the CPU refused to enter the guest at RIP {rip:#x}, hardware reason {reason:#x}")]
    Entry {
        /// Index of the vCPU.
        vcpu: u16,
        /// What the CPU says.
        reason: u64,
        /// Guest-virtual address of the next instruction.
        rip: u64,
    },
    /// Host memory behind a guest address can't be reached: a file behind it was truncated. (Memory that is broken itself is
    /// another matter: on x86 KVM has the kernel send `SIGBUS` to the process.)
    #[error("vCPU {vcpu}: host memory behind the guest failed at RIP {rip:#x}{}", address(*guest_address))]
    HostMemory {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the instruction.
        rip: u64,
        /// Guest-physical address, where KVM says so.
        guest_address: Option<u64>,
        /// What KVM answered.
        #[source]
        source: io::Error,
    },
    /// `KVM_RUN` failed.
    #[error("vCPU {vcpu}: KVM cannot run it at RIP {rip:#x}")]
    Run {
        /// Index of the vCPU.
        vcpu: u16,
        /// Guest-virtual address of the next instruction.
        rip: u64,
        /// What KVM answered.
        #[source]
        source: io::Error,
    },
    /// An exit that no configuration of ours produces.
    #[error("vCPU {vcpu}: unexpected exit `{exit}` at RIP {rip:#x}")]
    Unexpected {
        /// Index of the vCPU.
        vcpu: u16,
        /// The exit.
        exit: String,
        /// Guest-virtual address of the next instruction.
        rip: u64,
    },
    /// The vCPU's thread could not be set up for kicks.
    #[error("vCPU {vcpu}: its thread cannot take the kick signal")]
    Signal {
        /// Index of the vCPU.
        vcpu: u16,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A device that the vCPU called panicked.
    #[error("vCPU {vcpu}: its thread panicked")]
    Panicked {
        /// Index of the vCPU.
        vcpu: u16,
    },
}

fn address(address: Option<u64>) -> String {
    address.map(|address| format!(", guest-physical address {address:#x}")).unwrap_or_default()
}

fn bytes(instruction: &[u8]) -> String {
    if instruction.is_empty() { String::new() } else { format!(", instruction bytes {instruction:02x?}") }
}

/// Takes the news that the VM has ended; the first reason stands. Cheap to clone.
#[derive(Clone)]
pub struct ExitNotice(Arc<Notice>);

struct Notice {
    gate: Arc<Gate>,
    given: AtomicBool,
    callback: Box<dyn Fn(ExitReason) + Send + Sync>,
}

impl ExitNotice {
    /// `callback` is called once, with the first reason, on the thread that found it (often a vCPU's): it should pass the
    /// news on, not tear the VM down.
    #[must_use]
    pub fn new(gate: Arc<Gate>, callback: impl Fn(ExitReason) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Notice { gate, given: AtomicBool::new(false), callback: Box::new(callback) }))
    }

    /// Says that the VM has ended: no vCPU enters the guest again, though one may still be on its way out.
    pub fn report(&self, reason: ExitReason) {
        self.0.gate.stop();
        if self.0.given.swap(true, Ordering::AcqRel) {
            tracing::debug!(?reason, "the VM has ended already");
        } else {
            (self.0.callback)(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_first_reason_stands() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notice = ExitNotice::new(Arc::new(Gate::new()), {
            let heard = heard.clone();
            move |reason| heard.lock().unwrap().push(format!("{reason:?}"))
        });
        notice.report(ExitReason::Reset);
        notice.clone().report(ExitReason::Shutdown);
        assert_eq!(*heard.lock().unwrap(), ["Reset"]);
    }

    #[test]
    fn an_emulation_error_says_where() {
        let error = VcpuError::Emulation {
            vcpu: 1,
            rip: 0xffff,
            guest_address: Some(0x1_0000_0000),
            instruction: vec![0x0f, 1],
        };
        let text = error.to_string();
        assert!(text.contains("RIP 0xffff") && text.contains("0x100000000") && text.contains("[0f, 01]"), "{text}");
    }
}
