//! How a VM is brought to its end.

use std::sync::Arc;
use std::time::Duration;

use crate::console::Console;
use crate::end::{EndSignal, VmEnd};
use crate::kvm::Gate;
use crate::vm::Vm;

/// Has the guest switch itself off, or stops it.
pub(crate) fn shutdown(vm: &Vm, timeout: Duration) -> VmEnd {
    vm.session.shutdown(timeout);
    stop(vm)
}

/// Stops the VM at once.
pub(crate) fn stop(vm: &Vm) -> VmEnd {
    let end = vm.session.end();
    end.report(VmEnd::Stopped);
    vm.vcpus.stop();
    vm.console.iter().for_each(Console::close);
    end.ended().unwrap_or(VmEnd::Stopped)
}

/// Stops a VM without keeping it: once the VM is dropped there is nothing left to stop.
#[derive(Clone)]
pub struct VmStopper {
    end: Arc<EndSignal>,
    gate: Arc<Gate>,
}

impl VmStopper {
    pub(crate) fn new(end: Arc<EndSignal>, gate: Arc<Gate>) -> Self {
        Self { end, gate }
    }

    /// Stops the VM and does not wait for that. All that waits for the guest ends with an error.
    pub fn stop(&self) {
        self.end.report(VmEnd::Stopped);
        self.gate.stop();
    }
}
