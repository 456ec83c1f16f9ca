//! What the parts of a balloon share: the guest's configuration space, the host's controls and the queues' handler.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_memory::ByteSize;
use bellows_memory::sync::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::timerfd::TimerFd;

use super::hinting::Hinting;
use super::report::{Discards, Report};
use super::statistics::MemoryStatistics;
use super::wire::PAGE_SHIFT;
use crate::interrupt::Interrupt;
use crate::virtio::driver::Driver;

/// Shared by one device, its handles and its handler.
pub(super) struct Shared {
    driver: Driver,
    /// Size of base memory.
    pub(super) base: ByteSize,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while a page that the guest has named is discarded, and when the host ends or replaces the run: the guest may use
    /// the page again from then on. Locked before the state.
    run: Mutex<()>,
    /// Expires when statistics are due. It is armed anew instead of read, so that no thread waits for it.
    timer: Mutex<TimerFd>,
}

/// What changes.
#[derive(Default)]
pub(super) struct State {
    /// Counts changes of anything here.
    changes: u64,
    /// Counts changes of the configuration by the host.
    pub(super) generation: u8,
    /// The target in pages.
    pub(super) num_pages: u32,
    /// Pages in the balloon, by the driver's account.
    pub(super) actual: u32,
    pub(super) hinting: Hinting,
    /// Features that the driver accepted; 0 without a driver.
    pub(super) accepted: u64,
    /// Seconds between statistics; 0 for none.
    pub(super) polling_interval_s: u16,
    pub(super) statistics: MemoryStatistics,
    /// When the driver last reported statistics.
    pub(super) reported: Option<Instant>,
    pub(super) discarded: Discards,
    /// The guest does nothing any more.
    pub(super) ended: bool,
}

impl Shared {
    pub(super) fn new(base: ByteSize, num_pages: u32, polling_interval_s: u16) -> io::Result<Self> {
        let state = State { num_pages, polling_interval_s, ..State::default() };
        Ok(Self {
            driver: Driver::default(),
            base,
            state: Mutex::new(state),
            changed: Condvar::new(),
            run: Mutex::default(),
            timer: Mutex::new(TimerFd::new()?),
        })
    }

    /// The state, to look at.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the state, and wakes the threads that wait for that.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        state.changes = state.changes.wrapping_add(1);
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Changes what the host says in the configuration, and notifies the driver.
    pub(super) fn configure(&self, change: impl FnOnce(&mut State)) {
        self.change(|state| {
            change(state);
            state.reconfigured();
        });
        self.driver.config_changed();
    }

    /// Changes the run of hinting, while no page of it is being discarded.
    pub(super) fn change_run(&self, change: impl FnOnce(&mut Hinting)) {
        {
            let _run = self.run.lock();
            self.change(|state| {
                change(&mut state.hinting);
                state.reconfigured();
            });
        }
        self.driver.config_changed();
    }

    /// Takes a command of the guest about hinting, which the host may answer by one of its own.
    pub(super) fn guest_command(&self, command: u32) {
        let answered = self.change(|state| {
            let answered = state.hinting.command(command);
            if answered {
                state.reconfigured();
            }
            answered
        });
        if answered {
            self.driver.config_changed();
        }
    }

    /// A driver has bound, or the device goes on.
    pub(super) fn activated(&self, interrupt: Arc<dyn Interrupt>, features: u64) {
        self.driver.set(Some(interrupt));
        self.change(|state| state.accepted = features);
    }

    /// The driver is gone, and with it the pages of its balloon.
    pub(super) fn reset(&self) {
        self.driver.set(None);
        self.change(|state| {
            (state.actual, state.accepted) = (0, 0);
            (state.statistics, state.reported) = (MemoryStatistics::default(), None);
            state.hinting.reset();
        });
    }

    /// Does `work` on a page that the guest has named, unless the run that it belongs to is over.
    pub(super) fn in_run<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let _run = self.run.lock();
        let takes_pages = self.state.lock().hinting.takes_pages();
        takes_pages.then(work)
    }

    /// Has `look` look at the report, and at whether the guest has ended, after each change until it sees what it looks for, for
    /// `timeout` at most. No lock is held meanwhile: it may do as it likes.
    pub(super) fn wait<T>(&self, timeout: Duration, look: impl Fn(&Report, bool) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut seen = None;
        loop {
            let mut state = self.state.lock();
            while seen == Some(state.changes) {
                let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero())?;
                state = self.changed.wait_timeout(state, left);
            }
            seen = Some(state.changes);
            let (report, ended) = (state.report(), state.ended);
            drop(state);
            if let Some(found) = look(&report, ended) {
                return Some(found);
            }
        }
    }

    /// The timer of the statistics, to listen to.
    pub(super) fn timer(&self) -> MutexGuard<'_, TimerFd> {
        self.timer.lock()
    }

    /// Lets the timer expire once, in an interval's time.
    pub(super) fn arm(&self) -> io::Result<()> {
        let interval = Duration::from_secs(self.state.lock().polling_interval_s.into());
        Ok(self.timer.lock().reset(interval, None)?)
    }
}

impl State {
    /// The host has changed the configuration.
    fn reconfigured(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    pub(super) fn report(&self) -> Report {
        let bytes = |pages: u32| ByteSize::bytes(u64::from(pages) << PAGE_SHIFT);
        Report {
            target: bytes(self.num_pages),
            actual: bytes(self.actual),
            statistics: self.statistics,
            statistics_age: self.reported.map(|reported| reported.elapsed()),
            polling_interval_s: self.polling_interval_s,
            hinting: self.hinting.status(),
            discarded: self.discarded,
        }
    }
}
