//! What a device, its handler and the host's handle share: the disk and its rate limit, which the host may change.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_disk::Disk;
use bellows_memory::sync::{Condvar, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::{BlockStatistics, Counters};
use crate::virtio::limits::RateLimit;

pub(super) struct Shared {
    /// What requests have done, in all of the device's life.
    pub(super) counters: Arc<Counters>,
    wanted: Mutex<Wanted>,
    /// Notified when `taken` changes.
    taken: Condvar,
    /// Signalled when the host has changed something; `None` for a device that the host does not control.
    changed: Option<EventFd>,
}

/// What the device is to do.
struct Wanted {
    disk: Arc<dyn Disk>,
    limit: RateLimit,
    /// Exchanges of the disk so far.
    exchanges: u64,
    /// Those that the driver was told of.
    told: u64,
    /// Those that the handler has taken over, if there is one.
    taken: Option<u64>,
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, limit: RateLimit, changed: Option<EventFd>) -> Self {
        let wanted = Wanted { disk, limit, exchanges: 0, told: 0, taken: None };
        Self { counters: Arc::default(), wanted: Mutex::new(wanted), taken: Condvar::new(), changed }
    }

    /// The event by which the host tells of a change.
    pub(super) fn event() -> io::Result<EventFd> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
    }

    /// The event of changes, to listen to.
    pub(super) const fn changed(&self) -> Option<&EventFd> {
        self.changed.as_ref()
    }

    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        self.wanted.lock().disk.clone()
    }

    pub(super) fn limit(&self) -> RateLimit {
        self.wanted.lock().limit
    }

    /// Changes with the configuration.
    pub(super) fn generation(&self) -> u8 {
        self.wanted.lock().exchanges as u8
    }

    /// Whether the driver has yet to be told of a disk.
    pub(super) fn has_news(&self) -> bool {
        let wanted = self.wanted.lock();
        wanted.told < wanted.exchanges
    }

    /// The driver has yet to be told of the disk.
    pub(super) fn set_news(&self) {
        self.wanted.lock().exchanges += 1;
    }

    /// Nothing is news to a driver that begins.
    pub(super) fn forget_news(&self) {
        let mut wanted = self.wanted.lock();
        wanted.told = wanted.exchanges;
    }

    /// What the handler is to take over.
    pub(super) fn take(&self) -> Changes {
        let mut wanted = self.wanted.lock();
        let exchanges = wanted.exchanges;
        let news = std::mem::replace(&mut wanted.told, exchanges) < exchanges;
        Changes { disk: wanted.disk.clone(), limit: wanted.limit, exchanges, news }
    }

    /// The handler has taken over so many exchanges, or there is none any more.
    pub(super) fn taken(&self, exchanges: Option<u64>) {
        self.wanted.lock().taken = exchanges;
        self.taken.notify_all();
    }

    /// Sets the limit without telling the handler.
    pub(super) fn set_limit(&self, limit: RateLimit) {
        self.wanted.lock().limit = limit;
    }
}

/// What a handler takes over.
pub(super) struct Changes {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) limit: RateLimit,
    pub(super) exchanges: u64,
    /// Whether the driver is to be told of the disk.
    pub(super) news: bool,
}

/// Why a disk cannot take the place of another.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the disk is {}: expected one that is {}, as before", kind(*.read_only), kind(!*.read_only))]
pub struct ReplaceError {
    read_only: bool,
}

const fn kind(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "writable" }
}

/// The host's side of a device, while that exists and after. Cheap to clone.
#[derive(Clone)]
pub struct BlockHandle {
    pub(super) shared: Arc<Shared>,
}

impl BlockHandle {
    /// The rate limit.
    #[must_use]
    pub fn limit(&self) -> RateLimit {
        self.shared.limit()
    }

    /// What the guest's requests have done so far.
    #[must_use]
    pub fn statistics(&self) -> BlockStatistics {
        self.shared.counters.statistics()
    }

    /// Changes the rate limit. What a limit had saved up stays, as far as the new one allows.
    pub fn set_limit(&self, limit: RateLimit) {
        self.shared.set_limit(limit);
        self.signal();
    }

    /// Puts `disk` in the place of the one that the device has. A request that is in progress finishes on the old disk, and the next
    /// is for the new one. The driver is told that the size may have changed. What it was offered stays: a discard fails as unsupported
    /// where only the old disk knew it.
    ///
    /// Returns whether the device lets go of the old disk within `timeout`; if not, it does after that request.
    ///
    /// # Errors
    /// One of the two disks is read-only and the other is not. Nothing has changed.
    pub fn replace(&self, disk: Arc<dyn Disk>, timeout: Duration) -> Result<bool, ReplaceError> {
        let read_only = disk.read_only();
        let mut wanted = self.shared.wanted.lock();
        if wanted.disk.read_only() != read_only {
            return Err(ReplaceError { read_only });
        }
        wanted.exchanges += 1;
        let exchanges = wanted.exchanges;
        let old = std::mem::replace(&mut wanted.disk, disk);
        drop(wanted);
        drop(old);
        self.signal();
        let deadline = Instant::now() + timeout;
        let mut wanted = self.shared.wanted.lock();
        while wanted.taken.is_some_and(|taken| taken < exchanges) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            wanted = self.shared.taken.wait_timeout(wanted, left);
        }
        Ok(true)
    }

    fn signal(&self) {
        if let Some(changed) = self.shared.changed() {
            // If this fails, the event is signalled already.
            let _ = changed.write(1);
        }
    }
}
