//! The gate in front of `KVM_RUN`: vCPUs pass it to enter the guest; whoever closes it waits until none is inside.
//!
//! A vCPU that answers an exit outside the guest counts as outside, however long its device takes: so a device may close
//! the gate from a vCPU's own thread, and no two closers can wait for each other's vCPU.
//!
//! The way in and the way out take no lock while the gate is open. Correctness rests on one order, all sequentially
//! consistent: a vCPU says "inside" and then looks at the gate; a closer closes the gate and then looks who is inside. So
//! either the vCPU sees the gate closed, or the closer sees the vCPU inside and kicks it out.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use super::kick::Kick;

/// What keeps vCPUs out of the guest for a moment, or for good. One per VM.
pub struct Gate {
    /// Closed by a closer, or for good.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closer: Option<ThreadId>,
    /// How often `closer` has closed it.
    depth: usize,
    stopping: bool,
    vcpus: Vec<Arc<Kick>>,
}

/// Keeps the gate closed until dropped. Stays on the thread that closed it.
pub struct Closed<'a> {
    gate: &'a Gate,
    same_thread: PhantomData<*const ()>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { closed: AtomicBool::new(false), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Closes the gate: when this returns no vCPU executes guest code, and none will until the guard is dropped. Waits for
    /// another closer to finish; the same thread may close it again.
    ///
    /// A vCPU leaves the guest in microseconds, but for one that waits for a page of a file that it has as memory: that one
    /// leaves when the page is there. Storage that hangs then holds up the closer for as long.
    pub fn close(&self) -> Closed<'_> {
        let me = thread::current().id();
        let mut state = self.state();
        if state.closer != Some(me) {
            while state.closer.is_some() {
                state = self.wait(state);
            }
            state.closer = Some(me);
            self.closed.store(true, Ordering::SeqCst);
            state.vcpus.iter().filter(|vcpu| vcpu.is_inside()).for_each(|vcpu| vcpu.kick());
            while state.vcpus.iter().any(|vcpu| vcpu.is_inside()) {
                state = self.wait(state);
            }
        }
        state.depth += 1;
        Closed { gate: self, same_thread: PhantomData }
    }

    /// Closes the gate for good: every vCPU thread ends the next time it comes to it. Does not wait.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        self.closed.store(true, Ordering::SeqCst);
        state.vcpus.iter().for_each(|vcpu| vcpu.kick());
        self.changed.notify_all();
    }

    /// Makes a vCPU known to closers.
    pub(crate) fn register(&self, vcpu: Arc<Kick>) {
        self.state().vcpus.push(vcpu);
    }

    /// Lets a vCPU in, once the gate is open. `false`: the VM stops, the vCPU must not enter again.
    pub(crate) fn enter(&self, vcpu: &Kick) -> bool {
        loop {
            vcpu.set_inside(true);
            if !self.closed.load(Ordering::SeqCst) {
                return true;
            }
            vcpu.set_inside(false);
            let mut state = self.state();
            self.changed.notify_all();
            while state.closer.is_some() && !state.stopping {
                state = self.wait(state);
            }
            if state.stopping {
                return false;
            }
        }
    }

    /// Says that a vCPU has left the guest.
    pub(crate) fn leave(&self, vcpu: &Kick) {
        vcpu.set_inside(false);
        if self.closed.load(Ordering::SeqCst) {
            let _state = self.state();
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.depth -= 1;
        if state.depth == 0 {
            state.closer = None;
            self.gate.closed.store(state.stopping, Ordering::SeqCst);
            self.gate.changed.notify_all();
        }
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod tests;
