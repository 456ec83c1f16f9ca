//! The gate in front of `KVM_RUN`: vCPUs pass it to enter the guest. A thread that *closes* it waits until no vCPU is inside,
//! and soon opens it again itself. *Pausing* lasts from one call to another, from any thread: then every vCPU has also finished
//! its last exit, so that its registers are those between two instructions.
//!
//! A vCPU that answers an exit outside the guest counts as outside, however long its device takes: so a device may close
//! the gate from a vCPU's own thread, and no two closers can wait for each other's vCPU. The gate can be closed while the VM is
//! paused.
//!
//! The way in and the way out take no lock while the gate is open. Correctness rests on one order, all sequentially
//! consistent: a vCPU says "inside" and then looks at the gate; a closer closes the gate and then looks for vCPUs inside. So
//! either the vCPU sees the gate closed, or the closer sees the vCPU inside and kicks it out.

use std::marker::PhantomData;
use std::sync::PoisonError;

use super::kick::Kick;
use super::sync::{Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering, ThreadId, thread};

/// Keeps vCPUs out of the guest: for a moment, for a pause, or for good. One per VM.
pub struct Gate {
    /// [`State::is_closed`], for vCPUs that pass.
    pub(super) closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closer: Option<ThreadId>,
    /// How often `closer` has closed it.
    depth: usize,
    paused: bool,
    /// vCPUs that wait for the end of the pause.
    parked: usize,
    stopping: bool,
    vcpus: Vec<Arc<Kick>>,
}

/// Keeps the gate closed until dropped. Stays on the thread that closed it.
pub struct Closed<'a> {
    gate: &'a Gate,
    same_thread: PhantomData<*const ()>,
}

/// The next step of a vCPU at the gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    /// Enter the guest, then [`Gate::leave`].
    Guest,
    /// Finish the last exit without executing the guest's code, then [`Gate::leave`] and come again.
    Finish,
    /// [`Gate::park`], then come again.
    Park,
    /// End: the VM stops.
    Stop,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { closed: AtomicBool::new(false), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Closes the gate: when this returns no vCPU executes guest code, and none will until the guard is dropped. Waits for
    /// another closer to finish; the same thread may close it again.
    ///
    /// A vCPU leaves the guest in microseconds, unless it waits for a page of a file that backs guest memory: then it
    /// leaves when the page has arrived. Storage that hangs blocks the closer for as long.
    pub fn close(&self) -> Closed<'_> {
        let me = thread::current().id();
        let mut state = self.state();
        if state.closer != Some(me) {
            while state.closer.is_some() {
                state = self.wait(state);
            }
            state.closer = Some(me);
            self.shut(&state);
            while state.vcpus.iter().any(|vcpu| vcpu.is_inside()) {
                state = self.wait(state);
            }
        }
        state.depth += 1;
        Closed { gate: self, same_thread: PhantomData }
    }

    /// Pauses the VM until [`Gate::resume`]: when this returns, every vCPU is parked. `false` if the VM stops instead.
    ///
    /// Not for a vCPU's own thread, which would wait for itself.
    pub(crate) fn pause(&self) -> bool {
        let mut state = self.state();
        state.paused = true;
        self.shut(&state);
        while state.parked < state.vcpus.len() && !state.stopping {
            state = self.wait(state);
        }
        !state.stopping
    }

    /// Ends the pause.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        self.reopen(&state);
    }

    /// Closes the gate for good: every vCPU thread ends the next time it comes to it. Does not wait.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        self.shut(&state);
        self.changed.notify_all();
    }

    /// Registers a vCPU. Its thread comes to the gate sooner or later.
    pub(crate) fn register(&self, vcpu: Arc<Kick>) {
        self.state().vcpus.push(vcpu);
    }

    /// Waits until the vCPU may do something. `finished`: it has finished its last exit.
    pub(crate) fn enter(&self, vcpu: &Kick, finished: bool) -> Entry {
        loop {
            vcpu.set_inside(true);
            if !self.closed.load(Ordering::SeqCst) {
                return Entry::Guest;
            }
            vcpu.set_inside(false);
            let mut state = self.state();
            self.changed.notify_all();
            while state.closer.is_some() && !state.stopping {
                state = self.wait(state);
            }
            match (state.stopping, state.paused, finished) {
                (true, _, _) => return Entry::Stop,
                (false, true, true) => return Entry::Park,
                (false, true, false) => {
                    // No closer is there, and a later one sees this vCPU: both hold the lock.
                    vcpu.set_inside(true);
                    return Entry::Finish;
                }
                (false, false, _) => {}
            }
        }
    }

    /// Records that a vCPU has left the guest.
    pub(crate) fn leave(&self, vcpu: &Kick) {
        vcpu.set_inside(false);
        if self.closed.load(Ordering::SeqCst) {
            let _state = self.state();
            self.changed.notify_all();
        }
    }

    /// Waits for the end of the pause, or of the VM. The vCPU counts as parked meanwhile.
    pub(crate) fn park(&self) {
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.paused && !state.stopping {
            state = self.wait(state);
        }
        state.parked -= 1;
    }

    /// Shows vCPUs the closed gate, and kicks out those inside.
    fn shut(&self, state: &State) {
        self.closed.store(state.is_closed(), Ordering::SeqCst);
        state.vcpus.iter().filter(|vcpu| vcpu.is_inside()).for_each(|vcpu| vcpu.kick());
    }

    /// Shows vCPUs whether the gate is still closed.
    fn reopen(&self, state: &State) {
        self.closed.store(state.is_closed(), Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_closed(&self) -> bool {
        self.closer.is_some() || self.paused || self.stopping
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.depth -= 1;
        if state.depth == 0 {
            state.closer = None;
            self.gate.reopen(&state);
        }
    }
}
