use std::sync::{Condvar, Mutex};

use bellows_protocol::agent_ttrpc::Agent;
use ttrpc::TtrpcContext;

use super::*;
use crate::guest::agent::fixture::Fixture;

const MS: i64 = 1_000_000;
const DAY: i64 = 24 * 3600 * 1000 * MS;
const LONG: Duration = Duration::from_secs(60);

fn lag(milliseconds: i64, uncertainty: u64) -> Option<Lag> {
    Some(Lag { nanoseconds: milliseconds * MS, uncertainty: Duration::from_millis(uncertainty) })
}

fn moment(start: Moment, real: i64, steady: u64) -> Moment {
    Moment { real: start.real + real, steady: start.steady + Duration::from_nanos(steady) }
}

#[test]
fn a_look_tells_as_much_as_its_time_allows() {
    let sent = Moment::now();
    let received = moment(sent, 10 * MS, 10 * MS as u64);
    let between = |guest: i64| Lag::between(sent, received, guest);
    assert_eq!(between(sent.real + 5 * MS), lag(0, 5));
    assert_eq!(between(sent.real + 5 * MS - DAY), lag(DAY / MS, 5));
    assert_eq!(between(sent.real + 8 * MS), lag(-3, 5));
    // Arbitrary answers of a guest do no harm.
    assert!(between(i64::MIN).unwrap().nanoseconds > 0 && between(i64::MAX).unwrap().nanoseconds < 0);
}

#[test]
fn a_clock_that_is_set_during_a_look_makes_it_worthless() {
    let sent = Moment::now();
    for set in [DAY, -DAY, 3 * MS] {
        assert_eq!(Lag::between(sent, moment(sent, 10 * MS + set, 10 * MS as u64), sent.real), None, "{set}");
    }
    assert!(Lag::between(sent, moment(sent, 10 * MS + 1000, 10 * MS as u64), sent.real).is_some(), "it was slewed");
}

#[test]
fn a_precise_look_decides_at_once() {
    for (lag, next) in [
        (lag(0, 2), Next::Nothing),
        (lag(-2, 2), Next::Nothing),
        (lag(3, 2), Next::Slew(3 * MS)),
        (lag(-15, 1), Next::Slew(-15 * MS)),
        (lag(16, 1), Next::Step(16 * MS)),
        (lag(-DAY / MS, 5), Next::Step(-DAY)),
    ] {
        assert_eq!(Round::default().judge(lag), next, "{lag:?}");
    }
}

#[test]
fn vague_looks_are_repeated_and_the_best_one_counts() {
    let mut round = Round::default();
    assert_eq!(round.judge(lag(500, 80)), Next::Look);
    assert_eq!(round.judge(None), Next::Look);
    assert_eq!(round.judge(lag(450, 30)), Next::Look);
    assert_eq!(round.judge(lag(600, 90)), Next::Look);
    assert_eq!(round.judge(lag(440, 5)), Next::Step(440 * MS));

    let mut slow = Round::default();
    for _ in 1..MAX_LOOKS {
        assert_eq!(slow.judge(lag(40, 50)), Next::Look);
    }
    assert_eq!(slow.judge(lag(40, 60)), Next::Nothing, "it may be right");
    let mut never = Round::default();
    for _ in 1..MAX_LOOKS {
        assert_eq!(never.judge(None), Next::Look);
    }
    assert_eq!(never.judge(None), Next::Nothing);
}

#[test]
fn a_step_is_looked_at_and_a_slew_is_not() {
    let mut round = Round::default();
    assert_eq!(round.judge(lag(200, 5)), Next::Step(200 * MS));
    assert_eq!(round.judge(lag(4, 1)), Next::Slew(4 * MS));
    assert_eq!(round.judge(lag(4, 1)), Next::Nothing);

    let mut stubborn = Round::default();
    for _ in 0..MAX_STEPS {
        assert_eq!(stubborn.judge(lag(200, 5)), Next::Step(200 * MS));
    }
    assert_eq!(stubborn.judge(lag(200, 5)), Next::Nothing);
}

/// A guest whose clock is wrong.
#[derive(Default)]
struct Wrong {
    /// The lag of its clock in nanoseconds, and the number of looks at it.
    state: Mutex<(i64, u32)>,
    changed: Condvar,
}

impl Agent for Wrong {
    fn clock(&self, _: &TtrpcContext, request: ClockRequest) -> ttrpc::Result<ClockResponse> {
        let mut state = self.state.lock().unwrap();
        state.0 -= request.correction_ns;
        state.1 += 1;
        self.changed.notify_all();
        Ok(ClockResponse { realtime_ns: Moment::now().real - state.0, ..Default::default() })
    }
}

impl Wrong {
    fn wait(&self, until: impl Fn(i64, u32) -> bool) -> (i64, u32) {
        let wrong = |state: &mut (i64, u32)| !until(state.0, state.1);
        let (state, wait) = self.changed.wait_timeout_while(self.state.lock().unwrap(), LONG, wrong).unwrap();
        assert!(!wait.timed_out(), "{state:?}");
        *state
    }
}

#[test]
fn a_guest_that_is_a_day_behind_is_set_right() {
    let fake = Arc::new(Wrong::default());
    fake.state.lock().unwrap().0 = DAY;
    let fixture = Fixture::with_agent(fake.clone());
    let client = fixture.connect().unwrap();
    assert_eq!(fake.state.lock().unwrap().1, 0, "no look before the keeper starts");
    client.keep_clock();
    fake.wait(|behind, _| behind.abs() < 100 * MS);
    // Other calls go on meanwhile.
    assert!(client.inspect_partition(1).is_err());
    // The next round begins when the timer goes off again.
    fake.state.lock().unwrap().0 = -DAY;
    client.keep_clock();
    fake.wait(|behind, _| behind.abs() < 100 * MS);
}

#[test]
fn a_guest_that_has_no_such_call_is_left_alone() {
    struct Old;
    impl Agent for Old {}
    let fixture = Fixture::with_agent(Arc::new(Old));
    let client = fixture.connect().unwrap();
    client.keep_clock();
    for _ in 0..3 {
        assert!(client.inspect_partition(1).is_err());
    }
}
