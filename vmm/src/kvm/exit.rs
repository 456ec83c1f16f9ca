//! The reasons for the end of a VM, and their report.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gate::Gate;
use crate::last_lines::GuestPanic;

/// Why a VM ended by itself.
#[derive(Debug)]
pub enum ExitReason {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asked for a reset. Bellows does not restart it.
    Reset,
    /// The same, after a panic of its kernel.
    Panic(GuestPanic),
    /// A vCPU met a fault while it handled a fault while it handled a fault.
    TripleFault,
    /// A vCPU or a device failed; the VM cannot go on.
    Error(Box<dyn Error + Send + Sync>),
}

/// Reports the end of the VM; the first reason stands. Cheap to clone.
#[derive(Clone)]
pub struct ExitNotice(Arc<Notice>);

struct Notice {
    gate: Arc<Gate>,
    given: AtomicBool,
    callback: Box<dyn Fn(ExitReason) + Send + Sync>,
}

impl ExitNotice {
    /// `callback` is called once, with the first reason, on the thread that found it (often a vCPU's): it should only
    /// notify, not tear the VM down.
    #[must_use]
    pub fn new(gate: Arc<Gate>, callback: impl Fn(ExitReason) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Notice { gate, given: AtomicBool::new(false), callback: Box::new(callback) }))
    }

    /// Reports that the VM has ended: no vCPU enters the guest again, though one may still be leaving it.
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
}
