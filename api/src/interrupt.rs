//! SIGINT and SIGTERM: the VM that runs is stopped and what it made goes with it; an import ends and leaves nothing behind.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bellows_block::Cancel;
use bellows_vmm::{BuildError, Vm, VmBuilder, VmStopper};
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
    vms: Vec<VmStopper>,
    /// Ends what is being imported.
    import: Option<Cancel>,
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
    pub(crate) fn boot(&self, builder: VmBuilder) -> Result<Vm, BuildError> {
        self.state().booting += 1;
        let vm = builder.boot();
        let mut state = self.state();
        state.booting -= 1;
        if let Ok(vm) = &vm {
            let stopper = vm.stopper();
            if state.received.is_some() {
                stopper.stop();
            }
            state.vms.push(stopper);
        }
        vm
    }

    /// Does what a signal will end through the [`Cancel`].
    pub(crate) fn import<T>(&self, import: impl FnOnce(Cancel) -> T) -> T {
        let cancel = Cancel::default();
        self.state().import = Some(cancel.clone());
        let result = import(cancel);
        self.state().import = None;
        result
    }

    /// The signal that came, if one did.
    pub(crate) fn received(&self) -> Option<u8> {
        self.state().received
    }

    fn receive(&self, signal: u8) {
        let mut state = self.state();
        // Nothing to end, or somebody who does not want to wait for it.
        let idle = state.vms.is_empty() && state.booting == 0 && state.import.is_none();
        if idle || state.received.is_some() {
            std::process::exit(128 + i32::from(signal));
        }
        state.received = Some(signal);
        state.import.iter().for_each(Cancel::cancel);
        // Who waits for the guest now fails, and takes the VMs down.
        state.vms.iter().for_each(VmStopper::stop);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
