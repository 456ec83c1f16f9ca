//! The guest's wall clock. The kernel sets it when it boots; from then on the host, the only one to know its own clock, keeps
//! it right: see `bellows_vmm`.

use nix::time::{ClockId, clock_gettime};

use crate::error::{AgentError, Result};
use crate::sys;

const NANOSECONDS: i64 = 1_000_000_000;

/// A correction of the clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Correction {
    /// Nothing.
    None,
    /// Add this number of nanoseconds at once.
    Step(i64),
    /// Add this number of microseconds slowly: `adjtime(3)`, 500 in each second.
    Slew(i64),
}

impl Correction {
    /// By `nanoseconds`.
    #[must_use]
    pub fn new(nanoseconds: i64, step: bool) -> Self {
        match (nanoseconds, step) {
            (0, _) => Self::None,
            (nanoseconds, true) => Self::Step(nanoseconds),
            (nanoseconds, false) => Self::Slew(nanoseconds / 1000),
        }
    }

    /// As `adjtimex(2)` takes it.
    pub(crate) fn requests(self) -> Vec<libc::timex> {
        let nothing = sys::no_adjustment();
        let slew = |microseconds| libc::timex { modes: libc::ADJ_OFFSET_SINGLESHOT, offset: microseconds, ..nothing };
        match self {
            Self::None => Vec::new(),
            Self::Slew(microseconds) => vec![slew(microseconds)],
            Self::Step(nanoseconds) => {
                // The part below a second counts up, with ADJ_NANO in nanoseconds.
                let time = libc::timeval {
                    tv_sec: nanoseconds.div_euclid(NANOSECONDS),
                    tv_usec: nanoseconds.rem_euclid(NANOSECONDS),
                };
                let step = libc::timex { modes: libc::ADJ_SETOFFSET | libc::ADJ_NANO, time, ..nothing };
                // The step includes the rest of an earlier slew.
                vec![slew(0), step]
            }
        }
    }
}

/// Corrects the clock.
///
/// # Errors
/// The kernel refused: for example because the clock would stand before 1970.
pub fn correct(correction: Correction) -> Result<()> {
    for request in correction.requests() {
        sys::adjust_clock(request).map_err(AgentError::system("adjtimex"))?;
    }
    if let Correction::Step(nanoseconds) = correction {
        tracing::info!(nanoseconds, "the clock was set");
    }
    Ok(())
}

/// The clock's time: nanoseconds since 1970.
///
/// # Errors
/// The kernel refused, or the time does not fit.
pub fn now() -> Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).map_err(AgentError::system("clock_gettime"))?;
    let nanoseconds = time.tv_sec().checked_mul(NANOSECONDS).and_then(|seconds| seconds.checked_add(time.tv_nsec()));
    nanoseconds.ok_or_else(|| AgentError::Malformed { what: "the clock".into(), text: time.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_is_encoded_for_the_kernel() {
        assert!(Correction::new(0, true).requests().is_empty());
        let slew = Correction::new(-1_500_000, false).requests();
        assert_eq!((slew.len(), slew[0].modes, slew[0].offset), (1, libc::ADJ_OFFSET_SINGLESHOT, -1500));
        for (nanoseconds, seconds, rest) in [
            (1_500_000_000, 1, 500_000_000),
            (-1, -1, 999_999_999),
            (-2_000_000_000, -2, 0),
            (i64::MIN, -9_223_372_037, 145_224_192),
        ] {
            let step = Correction::new(nanoseconds, true).requests();
            assert_eq!((step[0].modes, step[0].offset), (libc::ADJ_OFFSET_SINGLESHOT, 0));
            assert_eq!(step[1].modes, libc::ADJ_SETOFFSET | libc::ADJ_NANO);
            assert_eq!((step[1].time.tv_sec, step[1].time.tv_usec), (seconds, rest));
        }
    }

    #[test]
    fn the_clock_reads_as_that_of_the_library() {
        let before = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let now = u128::try_from(now().unwrap()).unwrap();
        let after = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        assert!((before..=after).contains(&now));
    }
}
