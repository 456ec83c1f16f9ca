//! The life of a VM: it boots, runs, may be paused, and ends.

use std::sync::mpsc;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bellows_memory::Discarder;

use crate::console::Console;
use crate::end::{EndSignal, VmEnd};
use crate::guest::session::Session;
use crate::kind::ErrorKind;
use crate::kvm::{Gate, VcpuPool};
use crate::virtio_bus::VirtioBus;

/// The state of a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// The guest runs, but [`Vm::wait_ready`](crate::Vm::wait_ready) has not returned yet.
    Booting,
    /// The guest runs, and its agent can be called.
    Running,
    /// Neither vCPUs nor devices do anything until [`Vm::resume`](crate::Vm::resume).
    Paused,
    /// It has ended.
    Ended,
}

/// Why a VM was not paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// It is paused already.
    #[error("the VM is paused already")]
    Paused,
    /// It is not paused.
    #[error("the VM is not paused")]
    NotPaused,
    /// It is over.
    #[error("the VM has ended: {0}")]
    Ended(VmEnd),
}

impl LifecycleError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Conflict
    }
}

/// The state at this moment.
pub(crate) fn state(session: &Session) -> Lifecycle {
    let end = session.end();
    match (end.ended(), end.is_paused(), session.is_met()) {
        (Some(_), _, _) => Lifecycle::Ended,
        (None, true, _) => Lifecycle::Paused,
        (None, false, true) => Lifecycle::Running,
        (None, false, false) => Lifecycle::Booting,
    }
}

/// The parts that pause and resume, one call at a time.
pub(crate) struct Pausing<'a> {
    pub(crate) session: &'a Session,
    pub(crate) vcpus: &'a VcpuPool,
    pub(crate) bus: &'a VirtioBus,
    pub(crate) discarder: &'a Discarder,
    pub(crate) turn: MutexGuard<'a, ()>,
}

impl Pausing<'_> {
    /// Pauses the VM: first no further call to the guest begins, then the vCPUs stop, then the devices, which complete requests
    /// in flight; last it waits until unplugged memory has gone back to the host.
    pub(crate) fn pause(self) -> Result<(), LifecycleError> {
        let end = self.session.end();
        running(end)?;
        if end.is_paused() {
            return Err(LifecycleError::Paused);
        }
        end.set_paused(true);
        if !self.vcpus.pause() {
            end.set_paused(false);
            // The end is known: whatever stops the gate sets it first.
            return Err(LifecycleError::Ended(self.session.wait()));
        }
        self.bus.suspend();
        drain(self.discarder);
        tracing::debug!("the VM is paused");
        drop(self.turn);
        Ok(())
    }

    /// Lets a paused VM go on: devices look at their queues once, then the vCPUs run.
    pub(crate) fn resume(self) -> Result<(), LifecycleError> {
        let end = self.session.end();
        running(end)?;
        if !end.is_paused() {
            return Err(LifecycleError::NotPaused);
        }
        self.bus.resume();
        self.vcpus.resume();
        end.set_paused(false);
        self.session.check_clock();
        tracing::debug!("the VM goes on");
        drop(self.turn);
        Ok(())
    }
}

/// Has the guest shut down, or stops it.
pub(crate) fn shutdown(session: &Session, vcpus: &VcpuPool, console: Option<&Console>, timeout: Duration) -> VmEnd {
    session.shutdown(timeout);
    stop(session, vcpus, console)
}

/// Stops the VM at once.
pub(crate) fn stop(session: &Session, vcpus: &VcpuPool, console: Option<&Console>) -> VmEnd {
    let end = session.end();
    end.report(VmEnd::Stopped);
    vcpus.stop();
    console.into_iter().for_each(Console::close);
    end.ended().unwrap_or(VmEnd::Stopped)
}

/// Stops a VM without keeping it alive: once the VM is dropped, nothing is left to stop.
#[derive(Clone)]
pub struct VmStopper {
    end: Arc<EndSignal>,
    gate: Arc<Gate>,
}

impl VmStopper {
    pub(crate) fn new(end: Arc<EndSignal>, gate: Arc<Gate>) -> Self {
        Self { end, gate }
    }

    /// Stops the VM without waiting for it. All calls that wait for the guest end with an error.
    pub fn stop(&self) {
        self.end.report(VmEnd::Stopped);
        self.gate.stop();
    }
}

fn running(end: &EndSignal) -> Result<(), LifecycleError> {
    end.ended().map_or(Ok(()), |end| Err(LifecycleError::Ended(end)))
}

/// Waits until all memory that was unplugged by now is freed.
fn drain(discarder: &Discarder) {
    let (done, is_done) = mpsc::channel();
    let queued = discarder.queue().run(move || {
        // Where the VM is dropped meanwhile, no caller waits.
        let _ = done.send(());
    });
    if queued.is_ok() {
        let _ = is_done.recv();
    }
}
