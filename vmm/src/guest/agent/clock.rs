//! Keeps the guest's wall clock with the host's.
//!
//! A guest sets its clock from KVM when it boots, and from then on counts the processor's ticks by itself. It misses every
//! correction of the host's clock: seconds a day from NTP, and the whole step when the host's clock is set or the host slept.
//! So the host looks at the guest's clock now and then, and whenever its own clock was set, and has the agent correct it. A
//! look is a call; its round-trip time bounds its precision. (KVM's `ptp_kvm` is more precise, but needs a host clock that
//! counts by the TSC, and a driver and a daemon in the guest.)
//!
//! The guest's answers affect only its own clock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bellows_protocol::agent::{ClockRequest, ClockResponse};
use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use protobuf::Message;

/// Time from one look to the next. No computer's clock drifts by 100 ms in it: that would be 0.3 %.
const PERIOD: Duration = Duration::from_secs(30);
/// Time until the next look after a failed one.
const RETRY: Duration = Duration::from_secs(1);
/// Most looks in a row; a slow look tells little.
const MAX_LOOKS: u32 = 8;
/// Most steps in a row: a guest may ignore them.
const MAX_STEPS: u32 = 3;
/// A look with this bound of error is good enough.
const CERTAIN: Duration = Duration::from_millis(5);
/// The largest lag that needs no correction.
const SMALL: Duration = Duration::from_millis(1);
/// The largest lag that the guest's kernel makes up for within a period: it slews its clock by 500 ppm.
const NEAR: Duration = Duration::from_millis(15);

/// The host's clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Nanoseconds since 1970.
    real: i64,
    steady: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        let real = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { real: nanoseconds(real), steady: Instant::now() }
    }
}

/// How far the guest's clock is behind the host's, in nanoseconds, within a bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Lag {
    nanoseconds: i64,
    uncertainty: Duration,
}

impl Lag {
    /// Computes it from the guest's clock at a time between two moments; `None` if the host's clock was set between them.
    fn between(sent: Moment, received: Moment, guest: i64) -> Option<Self> {
        let way = received.steady.saturating_duration_since(sent.steady);
        let set = received.real.saturating_sub(sent.real).saturating_sub(nanoseconds(way));
        if set.unsigned_abs() > SMALL.as_nanos() as u64 {
            return None;
        }
        let middle = sent.real.saturating_add(nanoseconds(way / 2));
        Some(Self { nanoseconds: middle.saturating_sub(guest), uncertainty: way / 2 })
    }

    fn size(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.unsigned_abs())
    }
}

/// The next step towards a right clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Look,
    /// Add this number of nanoseconds, slowly.
    Slew(i64),
    /// Add this number of nanoseconds at once.
    Step(i64),
    Nothing,
}

/// Looks in a row, and the decision from them.
#[derive(Debug, Default)]
struct Round {
    looks: u32,
    steps: u32,
    best: Option<Lag>,
    /// The clock is being slewed: its lag needs no further correction.
    slewing: bool,
}

impl Round {
    /// Takes the result of a look.
    fn judge(&mut self, lag: Option<Lag>) -> Next {
        if self.slewing {
            return Next::Nothing;
        }
        self.looks += 1;
        self.best = [self.best, lag].into_iter().flatten().min_by_key(|lag| lag.uncertainty);
        let certain = self.best.is_some_and(|best| best.uncertainty <= CERTAIN);
        if !certain && self.looks < MAX_LOOKS {
            return Next::Look;
        }
        match self.best {
            Some(best) if best.size() <= best.uncertainty.max(SMALL) => Next::Nothing,
            Some(best) if best.size() <= NEAR => {
                self.slewing = true;
                Next::Slew(best.nanoseconds)
            }
            Some(best) if self.steps < MAX_STEPS => {
                // Looks from before the step are void.
                *self = Self { steps: self.steps + 1, ..Self::default() };
                Next::Step(best.nanoseconds)
            }
            _ => Next::Nothing,
        }
    }
}

/// Looks after the clock of one guest. The caller makes the calls.
pub(super) struct ClockKeeper {
    timer: Arc<Timer>,
    round: Round,
    sent: Moment,
    /// Whether a failure of the guest was logged.
    complained: bool,
}

/// Readable when [`ClockKeeper::due`] has something to say.
impl AsFd for ClockKeeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl ClockKeeper {
    /// Begins when `timer` is set.
    pub(super) fn new(timer: Arc<Timer>) -> Self {
        Self { timer, round: Round::default(), sent: Moment::now(), complained: false }
    }

    /// The call that begins a round.
    pub(super) fn due(&mut self) -> ClockRequest {
        self.timer.clear();
        self.timer.set(PERIOD);
        self.round = Round::default();
        self.look()
    }

    /// Takes note that a call could not be made: the next round comes soon.
    pub(super) fn put_off(&mut self) {
        self.timer.set(RETRY);
    }

    /// The next call of a round, if there is one, from the answer to the last.
    pub(super) fn answered(&mut self, answer: Result<&[u8], String>) -> Option<ClockRequest> {
        let received = Moment::now();
        let clock = answer.and_then(|bytes| ClockResponse::parse_from_bytes(bytes).map_err(|error| error.to_string()));
        let guest = match clock {
            Ok(clock) => clock.realtime_ns,
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(error = super::shown(&error), "cannot keep the guest's clock right");
                }
                return None;
            }
        };
        let next = self.round.judge(Lag::between(self.sent, received, guest));
        tracing::trace!(?next, guest, "looked at the guest's clock");
        match next {
            Next::Look => Some(self.look()),
            Next::Slew(nanoseconds) => Some(self.correct(nanoseconds, false)),
            Next::Step(nanoseconds) => {
                tracing::debug!(nanoseconds, "the guest's clock is set");
                Some(self.correct(nanoseconds, true))
            }
            Next::Nothing => None,
        }
    }

    fn look(&mut self) -> ClockRequest {
        self.correct(0, false)
    }

    fn correct(&mut self, correction_ns: i64, step: bool) -> ClockRequest {
        self.sent = Moment::now();
        ClockRequest { correction_ns, step, ..Default::default() }
    }
}

/// Goes off by the host's wall clock, and whenever that is set. Not set at first. Any thread may set it.
pub(super) struct Timer(TimerFd);

impl Timer {
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?))
    }

    /// Rearms its descriptor after it went off.
    fn clear(&self) {
        // It may not have gone off after all: there is no other error.
        let _ = self.0.wait();
    }

    /// Goes off once, after `after`, or before that when the clock is set.
    pub(super) fn set(&self, after: Duration) {
        // A clock from before 1970 is about to be set.
        let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_add(after);
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.0.set(Expiration::OneShot(time.into()), flags) {
            // The clock has been set since the timer was set last, which is what the timer was to tell.
            Ok(()) | Err(Errno::ECANCELED) => {}
            Err(error) => tracing::warn!(%error, "cannot set the timer of the guest's clock"),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "clock_test.rs"]
mod tests;
