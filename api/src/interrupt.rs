//! SIGINT and SIGTERM: the VM that runs is stopped, and what it made goes with it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use bellows_vmm::{BuildError, Vm, VmBuilder};
use nix::sys::signal::{SigSet, Signal};

/// What a signal ends.
#[derive(Clone, Default)]
pub(crate) struct Interrupts {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// VMs are being made or run: they have to be ended first.
    booting: usize,
    vms: Vec<Weak<Vm>>,
    received: Option<u8>,
}

impl Interrupts {
    /// Takes over the two signals for this process. To be called before any other thread is made.
    ///
    /// # Errors
    /// The signals or the thread that waits for them can't be had.
    pub(crate) fn install() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let interrupts = Self::default();
        let state = interrupts.clone();
        thread::Builder::new().name("signals".into()).stack_size(256 << 10).spawn(move || {
            loop {
                match signals.wait() {
                    Ok(signal) => state.receive(signal as u8),
                    Err(nix::Error::EINTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "signals are not heard any more");
                        return;
                    }
                }
            }
        })?;
        Ok(interrupts)
    }

    /// Boots a VM that a signal will stop.
    pub(crate) fn boot(&self, builder: VmBuilder) -> Result<Arc<Vm>, BuildError> {
        self.state().booting += 1;
        let vm = builder.boot().map(Arc::new);
        let mut state = self.state();
        state.booting -= 1;
        if let Ok(vm) = &vm {
            state.vms.push(Arc::downgrade(vm));
            if state.received.is_some() {
                drop(state);
                vm.stop();
            }
        }
        vm
    }

    /// The signal that came, if one did.
    pub(crate) fn received(&self) -> Option<u8> {
        self.state().received
    }

    fn receive(&self, signal: u8) {
        let mut state = self.state();
        let vms: Vec<_> = state.vms.iter().filter_map(Weak::upgrade).collect();
        // Nothing to end, or somebody who does not want to wait for it.
        if (vms.is_empty() && state.booting == 0) || state.received.is_some() {
            std::process::exit(128 + i32::from(signal));
        }
        state.received = Some(signal);
        drop(state);
        vms.iter().for_each(|vm| drop(vm.stop()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
