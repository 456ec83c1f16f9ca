use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_secs(60);

/// Interrupts of a run with a VM, with a stand-in for the end of this process.
fn interrupts(kill_limit: Duration, exit: fn(i32)) -> Interrupts {
    let shared = Shared { kill_limit, stop_limit: Duration::ZERO, exit, ..Shared::default() };
    shared.state.lock().unwrap().booting = 1;
    Interrupts { shared: Arc::new(shared) }
}

/// Interrupts, and the signals that their program gets.
fn program(limit: Duration) -> (Interrupts, PassingOn, Receiver<Signal>) {
    let interrupts = interrupts(SOON, |_| {});
    let (sender, signals) = mpsc::channel();
    let passing = interrupts.pass_on(limit, move |signal| {
        let _ = sender.send(signal);
    });
    (interrupts, passing, signals)
}

#[test]
fn a_program_gets_the_signal_and_then_is_killed() {
    for signal in ENDING {
        let (interrupts, _passing, signals) = program(Duration::ZERO);
        interrupts.receive(signal);
        let got = [signals.recv_timeout(SOON), signals.recv_timeout(SOON)];
        assert!(got.contains(&Ok(signal)) && got.contains(&Ok(Signal::SIGKILL)), "{got:?}");
        assert_eq!(interrupts.received(), None, "the exit code is the program's");
    }
}

#[test]
fn a_program_that_ends_in_time_is_not_killed() {
    let (interrupts, passing, signals) = program(SOON);
    interrupts.receive(Signal::SIGTERM);
    assert_eq!(signals.recv_timeout(SOON), Ok(Signal::SIGTERM));
    drop(passing);
    // The threads release it without another signal.
    assert_eq!(signals.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected));
    assert_eq!(interrupts.received(), None);
}

#[test]
fn a_second_signal_stops_the_vm_at_once() {
    let (interrupts, _passing, signals) = program(SOON);
    interrupts.receive(Signal::SIGINT);
    assert_eq!(interrupts.received(), None);
    interrupts.receive(Signal::SIGINT);
    assert_eq!(interrupts.received(), Some(2));
    assert_eq!(signals.recv_timeout(SOON), Ok(Signal::SIGINT));
    assert!(signals.try_recv().is_err());
}

#[test]
fn other_signals_end_nothing() {
    let (interrupts, passing, signals) = program(Duration::ZERO);
    for signal in OTHERS {
        for _ in 0..2 {
            interrupts.receive(signal);
            assert_eq!(signals.recv_timeout(SOON), Ok(signal));
        }
    }
    drop(passing);
    assert_eq!(signals.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected));
    assert_eq!(interrupts.received(), None);
}

#[test]
fn a_guest_that_does_not_listen_delays_no_second_signal() {
    let interrupts = interrupts(SOON, |_| {});
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let _passing = interrupts.pass_on(SOON, move |_| {
        let _ = released.lock().unwrap().recv();
    });
    interrupts.receive(Signal::SIGTERM);
    interrupts.receive(Signal::SIGTERM);
    assert_eq!(interrupts.received(), Some(15));
    drop(release);
}

#[test]
fn before_a_program_runs_a_signal_ends_the_run() {
    let interrupts = interrupts(SOON, |_| panic!("it ends by itself"));
    interrupts.receive(Signal::SIGHUP);
    assert_eq!(interrupts.received(), Some(1));
}

/// Unread output, or a guest that hangs.
#[test]
fn a_run_that_hangs_is_ended() {
    static CODE: Mutex<Option<i32>> = Mutex::new(None);
    let interrupts = interrupts(Duration::ZERO, |code| *CODE.lock().unwrap() = Some(code));
    let _passing = interrupts.pass_on(Duration::ZERO, |_| {});
    interrupts.receive(Signal::SIGTERM);
    let start = Instant::now();
    while CODE.lock().unwrap().is_none() && start.elapsed() < SOON {
        thread::yield_now();
    }
    assert_eq!((*CODE.lock().unwrap(), interrupts.received()), (Some(143), Some(15)));
}

#[test]
fn nohup_is_heard() {
    assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
    assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
    assert!(!ignores_hangup(""));
}
