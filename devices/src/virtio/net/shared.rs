//! What a device, its handler and the host's handle share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use bellows_memory::sync::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::{Counters, NetStatistics};
use super::limits::RateLimits;
use super::mac::MacAddress;
use super::wire::S_LINK_UP;

pub(super) struct Shared {
    /// The hardware address, by which messages name the interface.
    mac: MacAddress,
    pub(super) received: Counters,
    pub(super) transmitted: Counters,
    /// The configuration's `status`: the link is up until it is gone for good.
    status: AtomicU16,
    /// Changes with the configuration.
    generation: AtomicU8,
    pub(super) limits: Mutex<RateLimits>,
    /// Signalled when `limits` have changed.
    changed: EventFd,
}

impl Shared {
    pub(super) fn new(mac: MacAddress, limits: RateLimits) -> io::Result<Self> {
        Ok(Self {
            mac,
            received: Counters::default(),
            transmitted: Counters::default(),
            status: AtomicU16::new(S_LINK_UP),
            generation: AtomicU8::new(0),
            limits: Mutex::new(limits),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) const fn mac(&self) -> MacAddress {
        self.mac
    }

    pub(super) fn status(&self) -> u16 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_up(&self) -> bool {
        self.status() & S_LINK_UP != 0
    }

    /// The link is gone. Returns whether that is new.
    pub(super) fn link_down(&self) -> bool {
        let was_up = self.status.swap(0, Ordering::AcqRel) & S_LINK_UP != 0;
        if was_up {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        was_up
    }

    pub(super) fn limits(&self) -> RateLimits {
        *self.limits.lock()
    }

    /// The event of changed limits, to listen to.
    pub(super) const fn changed(&self) -> &EventFd {
        &self.changed
    }
}

/// The host's side of a device, while that exists and after. Cheap to clone.
#[derive(Clone)]
pub struct NetHandle {
    pub(super) shared: Arc<Shared>,
}

impl NetHandle {
    /// The traffic so far.
    #[must_use]
    pub fn statistics(&self) -> NetStatistics {
        NetStatistics { received: self.shared.received.read(), transmitted: self.shared.transmitted.read() }
    }

    /// Whether the host's end of the interface is there. Once gone, it does not come back.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// The rate limits.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.shared.limits()
    }

    /// Changes the rate limits. What a limit had saved up stays, as far as the new one allows.
    pub fn set_limits(&self, limits: RateLimits) {
        *self.shared.limits.lock() = limits;
        // If this fails, the event is signalled already.
        let _ = self.shared.changed.write(1);
    }
}
