use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use super::gate::{Entry, Gate};
use super::kick::Kick;

/// What a vCPU's thread does, with `run` for the guest.
fn vcpu(gate: &Gate, vcpu: &Kick, mut run: impl FnMut()) {
    let mut finished = true;
    loop {
        match gate.enter(vcpu, finished) {
            Entry::Guest => {
                run();
                finished = false;
                gate.leave(vcpu);
            }
            Entry::Finish => {
                finished = true;
                gate.leave(vcpu);
            }
            Entry::Park => {
                assert!(finished);
                gate.park();
            }
            Entry::Stop => return,
        }
    }
}

/// Threads that pass the gate without end, as vCPUs do, each counting up while inside.
struct Runners {
    gate: Arc<Gate>,
    inside: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Runners {
    fn start(count: usize) -> Self {
        let gate = Arc::new(Gate::new());
        let inside = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|_| {
                let (gate, inside) = (gate.clone(), inside.clone());
                let kick = Arc::new(Kick::default());
                gate.register(kick.clone());
                thread::spawn(move || {
                    vcpu(&gate, &kick, || {
                        inside.fetch_add(1, Ordering::SeqCst);
                    });
                })
            })
            .collect();
        Self { gate, inside, threads }
    }

    /// Checks that nothing runs while `then` does.
    fn still(&self, then: impl FnOnce()) {
        let before = self.inside.load(Ordering::SeqCst);
        then();
        for _ in 0..50 {
            thread::yield_now();
        }
        assert_eq!(self.inside.load(Ordering::SeqCst), before);
    }

    /// Waits until something runs again.
    fn go_on(&self) {
        let before = self.inside.load(Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
    }

    fn stop(self) {
        self.gate.stop();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn no_vcpu_is_inside_while_it_is_closed() {
    let runners = Runners::start(3);
    for _ in 0..200 {
        let closed = runners.gate.close();
        let before = runners.inside.load(Ordering::SeqCst);
        for _ in 0..50 {
            thread::yield_now();
        }
        assert_eq!(runners.inside.load(Ordering::SeqCst), before);
        drop(closed);
        while runners.inside.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
    }
    runners.stop();
}

#[test]
fn two_closers_take_turns_and_one_may_close_twice() {
    let runners = Runners::start(2);
    let busy = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let _outer = runners.gate.close();
                    let _inner = runners.gate.close();
                    assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                    busy.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    runners.stop();
}

#[test]
fn a_vcpu_closes_it_from_its_own_exit_while_another_thread_does() {
    let runners = Runners::start(1);
    let gate = runners.gate.clone();
    let vcpu = Arc::new(Kick::default());
    gate.register(vcpu.clone());
    let (done, wait) = mpsc::channel();
    let exiting = thread::spawn(move || {
        for _ in 0..500 {
            assert_eq!(gate.enter(&vcpu, true), Entry::Guest);
            gate.leave(&vcpu);
            drop(gate.close());
        }
        done.send(()).unwrap();
    });
    while wait.try_recv().is_err() {
        drop(runners.gate.close());
    }
    exiting.join().unwrap();
    runners.stop();
}

#[test]
fn stopping_ends_vcpus_that_wait_at_the_closed_gate() {
    let runners = Runners::start(2);
    let closed = runners.gate.close();
    runners.gate.stop();
    for thread in runners.threads {
        thread.join().unwrap();
    }
    drop(closed);
    let late = Kick::default();
    assert_eq!(runners.gate.enter(&late, true), Entry::Stop, "a vCPU that comes after the stop is turned away");
}

#[test]
fn a_pause_lasts_until_any_thread_ends_it() {
    let runners = Runners::start(3);
    for _ in 0..200 {
        assert!(runners.gate.pause());
        runners.still(|| ());
        thread::scope(|scope| {
            scope.spawn(|| runners.gate.resume());
        });
        runners.go_on();
    }
    runners.stop();
}

#[test]
fn a_pause_begins_again_before_all_have_woken() {
    let runners = Runners::start(3);
    for _ in 0..500 {
        assert!(runners.gate.pause());
        runners.gate.resume();
        assert!(runners.gate.pause());
        runners.still(|| ());
        runners.gate.resume();
    }
    runners.go_on();
    runners.stop();
}

#[test]
fn a_closer_neither_waits_for_the_pause_nor_ends_it() {
    let runners = Runners::start(2);
    for _ in 0..200 {
        let closed = runners.gate.close();
        thread::scope(|scope| {
            let pausing = scope.spawn(|| runners.gate.pause());
            runners.still(|| ());
            // A vCPU parks only when the closer is done: it may have an exit to finish, which reaches guest memory.
            drop(closed);
            assert!(pausing.join().unwrap());
        });
        runners.still(|| drop(runners.gate.close()));
        runners.gate.resume();
        runners.go_on();
    }
    runners.stop();
}

#[test]
fn stopping_ends_a_pause() {
    let runners = Runners::start(2);
    assert!(runners.gate.pause());
    runners.gate.stop();
    runners.threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!runners.gate.pause(), "no vCPU is left to park");
}

#[test]
fn a_vcpu_finishes_its_exit_before_it_parks() {
    let gate = Arc::new(Gate::new());
    let kick = Arc::new(Kick::default());
    gate.register(kick.clone());
    assert_eq!(gate.enter(&kick, true), Entry::Guest);
    thread::scope(|scope| {
        let pausing = scope.spawn(|| gate.pause());
        while !gate.closed.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        gate.leave(&kick);
        assert_eq!(gate.enter(&kick, false), Entry::Finish);
        assert!(kick.is_inside(), "a closer waits for what it does to guest memory");
        gate.leave(&kick);
        assert_eq!(gate.enter(&kick, true), Entry::Park);
        assert!(!pausing.is_finished());
        let parked = scope.spawn(|| gate.park());
        assert!(pausing.join().unwrap());
        gate.resume();
        parked.join().unwrap();
        assert_eq!(gate.enter(&kick, true), Entry::Guest);
    });
}
