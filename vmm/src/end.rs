//! The end of a VM, on which all waiters wait, and whether the VM is paused before it.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bellows_memory::sync::{Condvar, Mutex};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::causes::chain;
use crate::kvm::ExitReason;
use crate::last_lines::GuestPanic;

/// How a VM ended.
#[derive(Clone, Debug)]
pub enum VmEnd {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset. If its kernel panicked, it has not said so on a console.
    Reset,
    /// The guest's kernel panicked.
    Panicked(GuestPanic),
    /// The host stopped it.
    Stopped,
    /// A vCPU or a device failed.
    Failed(Arc<dyn Error + Send + Sync>),
}

/// A triple fault of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a vCPU met a triple fault")]
pub struct TripleFault;

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest switched itself off"),
            Self::Reset => f.write_str("the guest reset itself (its kernel may have panicked)"),
            Self::Panicked(panic) => panic.fmt(f),
            Self::Stopped => f.write_str("the host stopped it"),
            Self::Failed(error) => f.write_str(&chain(&**error)),
        }
    }
}

impl From<ExitReason> for VmEnd {
    fn from(reason: ExitReason) -> Self {
        match reason {
            ExitReason::Shutdown => Self::PoweredOff,
            ExitReason::Reset => Self::Reset,
            ExitReason::Panic(panic) => Self::Panicked(panic),
            ExitReason::TripleFault => Self::Failed(Arc::new(TripleFault)),
            ExitReason::Error(error) => Self::Failed(error.into()),
        }
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// The single record of the end of a VM. The first end stands.
pub(crate) struct EndSignal {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable from the end of the VM on.
    event: EventFd,
    paused: AtomicBool,
    pauses: AtomicU64,
}

#[derive(Default)]
struct State {
    end: Option<VmEnd>,
    hooks: Vec<Hook>,
}

impl EndSignal {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            event,
            paused: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
        }))
    }

    /// Records the end and runs the hooks on this thread.
    pub(crate) fn report(&self, end: VmEnd) {
        let hooks = {
            let mut state = self.state.lock();
            if state.end.is_some() {
                return;
            }
            tracing::info!(%end, "the VM has ended");
            state.end = Some(end);
            std::mem::take(&mut state.hooks)
        };
        if let Err(error) = self.event.write(1) {
            tracing::error!(%error, "cannot signal the end of the VM");
        }
        self.changed.notify_all();
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Records whether the VM is paused.
    pub(crate) fn set_paused(&self, paused: bool) {
        if paused {
            self.pauses.fetch_add(1, Ordering::SeqCst);
        }
        self.paused.store(paused, Ordering::SeqCst);
        // With the lock, so that no thread is between its look and its wait.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// Whether the VM is paused or pausing: then no call to the guest may begin.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// How often the VM was paused.
    pub(crate) fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::SeqCst)
    }

    /// Waits while the VM is paused, or until it ends.
    pub(crate) fn await_running(&self) {
        let mut state = self.state.lock();
        while state.end.is_none() && self.is_paused() {
            state = self.changed.wait(state);
        }
    }

    /// The end, if the VM has ended.
    pub(crate) fn ended(&self) -> Option<VmEnd> {
        self.state.lock().end.clone()
    }

    /// Waits for the end; `None` if the VM still runs after `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<VmEnd> {
        let start = Instant::now();
        let mut state = self.state.lock();
        while state.end.is_none() {
            state = match timeout {
                None => self.changed.wait(state),
                Some(timeout) => {
                    let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())?;
                    self.changed.wait_timeout(state, left)
                }
            };
        }
        state.end.clone()
    }

    /// Runs `hook` at the end, or now if the VM has ended. A hook must not block.
    pub(crate) fn on_end(&self, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.hooks.push(Box::new(hook));
        } else {
            drop(state);
            hook();
        }
    }
}

impl AsFd for EndSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn who_waits_for_a_paused_vm_goes_on_with_it_or_with_its_end() {
        for ends in [false, true] {
            let signal = EndSignal::new().unwrap();
            signal.await_running();
            signal.set_paused(true);
            let waiter = std::thread::spawn({
                let signal = signal.clone();
                move || signal.await_running()
            });
            if ends {
                signal.report(VmEnd::Stopped)
            } else {
                signal.set_paused(false)
            }
            waiter.join().unwrap();
            assert_eq!(signal.pauses(), 1);
        }
    }

    #[test]
    fn the_first_end_stands_and_reaches_every_waiter() {
        let signal = EndSignal::new().unwrap();
        assert!(signal.wait(Some(Duration::ZERO)).is_none());
        let heard = Arc::new(AtomicU32::new(0));
        let count = {
            let heard = heard.clone();
            move || {
                heard.fetch_add(1, Ordering::SeqCst);
            }
        };
        signal.on_end(count.clone());
        let waiter = std::thread::spawn({
            let signal = signal.clone();
            move || signal.wait(None)
        });
        signal.report(ExitReason::TripleFault.into());
        signal.report(VmEnd::Stopped);
        assert!(matches!(waiter.join().unwrap(), Some(VmEnd::Failed(_))));
        assert!(signal.ended().unwrap().to_string().contains("triple fault"));
        signal.on_end(count);
        assert_eq!(heard.load(Ordering::SeqCst), 2);
    }
}
