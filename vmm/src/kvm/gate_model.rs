//! A model of the gate: the same source over shuttle's locks and atomics, which try many orders of their steps. A vCPU stays
//! in the guest until it is kicked, so a lost kick shows as a thread that never ends.

#[allow(clippy::duplicate_mod, reason = "the model is of the source itself")]
#[allow(dead_code, reason = "scenarios use a part of it")]
#[path = "gate.rs"]
mod gate;

/// See [`super::sync`].
mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(super) use shuttle::thread::{self, ThreadId};
}

/// See [`super::kick`].
mod kick {
    use super::sync::{AtomicBool, Ordering};

    /// A vCPU that leaves the guest when it is kicked.
    #[derive(Default)]
    pub(crate) struct Kick {
        inside: AtomicBool,
        kicked: AtomicBool,
        /// The vCPU executes code or finishes an exit; one that is about to look at the gate also says "inside".
        executes: AtomicBool,
    }

    impl Kick {
        pub(super) fn kick(&self) {
            self.kicked.store(true, Ordering::SeqCst);
        }

        pub(super) fn forget(&self) {
            self.kicked.store(false, Ordering::SeqCst);
        }

        pub(super) fn set_executes(&self, executes: bool) {
            self.executes.store(executes, Ordering::SeqCst);
        }

        pub(super) fn executes(&self) -> bool {
            self.executes.load(Ordering::SeqCst)
        }

        pub(super) fn is_kicked(&self) -> bool {
            self.kicked.load(Ordering::SeqCst)
        }

        pub(super) fn is_inside(&self) -> bool {
            self.inside.load(Ordering::SeqCst)
        }

        pub(super) fn set_inside(&self, inside: bool) {
            self.inside.store(inside, Ordering::SeqCst);
        }
    }
}

use gate::{Entry, Gate};
use kick::Kick;
use sync::{Arc, thread};

/// Schedules of each kind.
const SCHEDULES: usize = 1000;
/// Most preemptions of a thread in the schedules that look for rare orders.
const DEPTH: usize = 3;

fn explore(scenario: fn()) {
    shuttle::check_random(scenario, SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, DEPTH);
}

/// Starts a vCPU.
fn start(gate: &Arc<Gate>) -> (Arc<Kick>, thread::JoinHandle<()>) {
    let kick = Arc::new(Kick::default());
    gate.register(kick.clone());
    let thread = thread::spawn({
        let (gate, kick) = (gate.clone(), kick.clone());
        move || run(&gate, &kick)
    });
    (kick, thread)
}

/// What a vCPU's thread does.
fn run(gate: &Gate, kick: &Kick) {
    let mut finished = true;
    loop {
        kick.forget();
        match gate.enter(kick, finished) {
            Entry::Guest => {
                kick.set_executes(true);
                while !kick.is_kicked() {
                    thread::yield_now();
                }
                finished = false;
                kick.set_executes(false);
                gate.leave(kick);
            }
            Entry::Finish => {
                kick.set_executes(true);
                finished = true;
                kick.set_executes(false);
                gate.leave(kick);
            }
            Entry::Park => gate.park(),
            Entry::Stop => return,
        }
    }
}

#[test]
fn a_pause_finds_every_vcpu_outside_and_lets_all_go_on() {
    explore(|| {
        let gate = Arc::new(Gate::new());
        let vcpus = [start(&gate), start(&gate)];
        for _ in 0..2 {
            assert!(gate.pause());
            assert!(vcpus.iter().all(|(kick, _)| !kick.executes()));
            thread::yield_now();
            assert!(vcpus.iter().all(|(kick, _)| !kick.executes()));
            gate.resume();
        }
        gate.stop();
        vcpus.into_iter().for_each(|(_, thread)| thread.join().unwrap());
    });
}

#[test]
fn a_closer_and_a_pause_do_not_wait_for_each_other() {
    explore(|| {
        let gate = Arc::new(Gate::new());
        let (kick, vcpu) = start(&gate);
        let closer = thread::spawn({
            let (gate, kick) = (gate.clone(), kick.clone());
            move || {
                let closed = gate.close();
                assert!(!kick.executes());
                thread::yield_now();
                assert!(!kick.executes());
                drop(closed);
            }
        });
        assert!(gate.pause());
        gate.resume();
        closer.join().unwrap();
        gate.stop();
        vcpu.join().unwrap();
    });
}

#[test]
fn a_stop_ends_a_pause_that_has_begun() {
    explore(|| {
        let gate = Arc::new(Gate::new());
        let (_, vcpu) = start(&gate);
        let pausing = thread::spawn({
            let gate = gate.clone();
            move || gate.pause()
        });
        gate.stop();
        vcpu.join().unwrap();
        pausing.join().unwrap();
    });
}
