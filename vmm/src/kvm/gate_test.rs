use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::*;

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
                let vcpu = Arc::new(Kick::default());
                gate.register(vcpu.clone());
                thread::spawn(move || {
                    while gate.enter(&vcpu) {
                        inside.fetch_add(1, Ordering::SeqCst);
                        gate.leave(&vcpu);
                    }
                })
            })
            .collect();
        Self { gate, inside, threads }
    }

    fn stop(self) {
        self.gate.stop();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn nobody_is_inside_while_it_is_closed() {
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
            assert!(gate.enter(&vcpu));
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
    assert!(!runners.gate.enter(&late), "a vCPU that comes after the stop is turned away");
}
