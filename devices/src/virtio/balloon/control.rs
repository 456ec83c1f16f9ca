//! The host's control of a balloon: it sets targets, starts runs of hinting, and reads what came back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bellows_memory::ByteSize;

use super::hinting::Hinting;
use super::report::Report;
use super::shared::Shared;
use super::wire::{F_FREE_PAGE_HINT, PAGE_SHIFT};

/// The host's control of a balloon. Cheap to clone; usable whether or not a driver has bound.
#[derive(Clone)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
    features: u64,
}

impl BalloonHandle {
    pub(super) const fn new(shared: Arc<Shared>, features: u64) -> Self {
        Self { shared, features }
    }

    /// Sets the target: the driver allocates memory, and gives it to the host, until the balloon has this size, or takes memory
    /// back. It does so in its own time, and without an end while the guest has too little: [`BalloonHandle::wait`].
    ///
    /// # Errors
    /// [`BalloonError::Target`]: the size is invalid.
    pub fn set_target(&self, target: ByteSize) -> Result<(), BalloonError> {
        let pages = pages(target, self.shared.base)?;
        self.shared.configure(|state| state.num_pages = pages);
        Ok(())
    }

    /// Sets how often the driver is asked for statistics.
    ///
    /// # Errors
    /// The balloon has no statistics, or the interval is 0, which does not turn them off.
    pub fn set_polling_interval(&self, seconds: u16) -> Result<(), BalloonError> {
        if self.shared.state().polling_interval_s == 0 {
            return Err(BalloonError::NoStatistics);
        }
        if seconds == 0 {
            return Err(BalloonError::PollingInterval);
        }
        self.shared.change(|state| state.polling_interval_s = seconds);
        self.shared.arm().map_err(BalloonError::Timer)
    }

    /// Starts a run of free page hinting, in place of one that goes on. With `acknowledge_on_stop` the guest may use its free
    /// pages again as soon as it has named all; otherwise after [`BalloonHandle::stop_hinting`].
    ///
    /// A driver may use a page again before the host has seen that it was named. The host then discards a page that is in
    /// use. Linux does so when it runs short of memory during a run.
    ///
    /// # Errors
    /// The balloon has no hinting, or no driver that takes part in it has bound.
    pub fn start_hinting(&self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        self.check_hinting()?;
        if self.shared.state().accepted & F_FREE_PAGE_HINT == 0 {
            return Err(BalloonError::NoDriver);
        }
        self.shared.change_run(|hinting| hinting.start(acknowledge_on_stop));
        Ok(())
    }

    /// Ends the run of free page hinting: when this returns no page is discarded any more, and the guest may use those that it
    /// named.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        self.check_hinting()?;
        self.shared.change_run(Hinting::stop);
        Ok(())
    }

    /// Where the balloon stands.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.state().report()
    }

    /// Waits until the report is as wanted.
    ///
    /// # Errors
    /// It is not after `timeout`, or the VM has ended.
    pub fn wait(&self, timeout: Duration, wanted: impl Fn(&Report) -> bool) -> Result<Report, BalloonError> {
        let found = self.shared.wait(timeout, |report, ended| match wanted(report) {
            true => Some(Ok(*report)),
            false => ended.then_some(Err(BalloonError::Ended)),
        });
        found.unwrap_or_else(|| Err(BalloonError::Late { waited: timeout, report: Box::new(self.report()) }))
    }

    /// Wakes all threads that wait: the guest does nothing any more.
    pub fn end(&self) {
        self.shared.change(|state| state.ended = true);
    }

    /// Checks that the balloon has free page hinting.
    ///
    /// # Errors
    /// It has not.
    pub fn check_hinting(&self) -> Result<(), BalloonError> {
        if self.features & F_FREE_PAGE_HINT == 0 { Err(BalloonError::NoHinting) } else { Ok(()) }
    }
}

/// `target` in pages of a balloon that may have up to `base`.
///
/// # Errors
/// [`BalloonError::Target`].
pub(super) fn pages(target: ByteSize, base: ByteSize) -> Result<u32, BalloonError> {
    let pages = u32::try_from(target.get() >> PAGE_SHIFT).ok();
    let whole = target.is_multiple_of(ByteSize::bytes(1 << PAGE_SHIFT)) && target <= base;
    pages.filter(|_| whole).ok_or(BalloonError::Target { target, base })
}

/// Why a balloon did not do what the host asked for.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// No balloon has this size.
    #[error("a balloon of {target}: expected a multiple of 4 KiB and at most the {base} of base memory")]
    Target {
        /// The size.
        target: ByteSize,
        /// The largest.
        base: ByteSize,
    },
    /// The driver is never asked for statistics.
    #[error("the balloon has no statistics: expected a `stats_polling_interval_s` in its configuration")]
    NoStatistics,
    /// No interval.
    #[error("a polling interval of 0 s: expected at least 1 s, for statistics cannot be turned off while the VM runs")]
    PollingInterval,
    /// The guest is never asked for free pages.
    #[error("the balloon has no free page hinting: expected `free_page_hinting` in its configuration")]
    NoHinting,
    /// The guest cannot be asked for free pages.
    #[error("no driver of the guest has taken up free page hinting")]
    NoDriver,
    /// The system has no timer.
    #[error("cannot set the timer of the balloon's statistics")]
    Timer(#[source] io::Error),
    /// Time is up.
    #[error("the balloon is not as wanted after {waited:?}: it has {} of a target of {}", report.actual, report.target)]
    Late {
        /// How long.
        waited: Duration,
        /// Where it stands.
        report: Box<Report>,
    },
    /// The guest does nothing any more.
    #[error("the VM has ended")]
    Ended,
}
