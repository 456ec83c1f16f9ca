use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// Turns at a number, and how often the device was woken.
fn turns() -> (Arc<Turns<u32>>, Arc<AtomicU32>) {
    let (turns, woken) = (Arc::new(Turns::new(0)), Arc::new(AtomicU32::new(0)));
    let count = woken.clone();
    turns.set_waker(Some(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })));
    (turns, woken)
}

#[test]
fn a_thread_that_looks_does_not_wait_for_the_turn() {
    let (turns, _) = turns();
    let turn = turns.take();
    turn.with(|number| *number += 1);
    assert_eq!(turns.look(|number| *number), 1);
    let free = turns.wait(Duration::ZERO, |_, moment| Some(moment.free), |_| unreachable!());
    assert!(!free);
    drop(turn);
    assert!(turns.wait(Duration::ZERO, |_, moment| Some(moment.free), |_| unreachable!()));
}

#[test]
fn a_device_that_meets_a_turn_is_woken_when_it_ends() {
    let (turns, woken) = turns();
    let turn = turns.take();
    assert!(turns.try_take().is_none());
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    drop(turn);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    drop(turns.try_take().unwrap());
    drop(turns.take());
    assert_eq!(woken.load(Ordering::SeqCst), 1, "once for each request that was put off");
}

#[test]
fn a_device_that_puts_itself_off_is_woken() {
    let (turns, woken) = turns();
    let turn = turns.try_take().unwrap();
    turn.put_off();
    drop(turn);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
}

#[test]
fn a_thread_that_waits_comes_before_the_device() {
    let (turns, woken) = turns();
    let turn = turns.take();
    let (sender, taken) = mpsc::channel();
    let other = {
        let turns = turns.clone();
        thread::spawn(move || {
            let turn = turns.take();
            sender.send(()).unwrap();
            drop(turn);
        })
    };
    while turns.waiting() == 0 {
        thread::yield_now();
    }
    assert!(turns.try_take().is_none());
    drop(turn);
    taken.recv_timeout(SOON).unwrap();
    other.join().unwrap();
    assert_eq!(woken.load(Ordering::SeqCst), 1, "by the last of them");
    assert!(turns.try_take().is_some());
}

#[test]
fn a_new_driver_does_not_hear_of_what_was_put_off_before() {
    let (turns, woken) = turns();
    let turn = turns.take();
    assert!(turns.try_take().is_none());
    turns.set_waker(None);
    drop(turn);
    assert_eq!(woken.load(Ordering::SeqCst), 0);
}

#[test]
fn a_wait_ends_with_the_time_or_the_guest() {
    let (turns, _) = turns();
    let wait = |turns: &Turns<u32>, limit| turns.wait(limit, |_, moment| moment.ended.then_some("ended"), |_| "late");
    assert_eq!(wait(&turns, Duration::from_millis(1)), "late");
    let waiting = {
        let turns = turns.clone();
        thread::spawn(move || turns.wait(SOON, |_, moment| moment.ended.then_some("ended"), |_| "late"))
    };
    turns.end();
    assert_eq!(waiting.join().unwrap(), "ended");
}
