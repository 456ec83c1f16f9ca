//! Counters of an interface's traffic.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Traffic of an interface in both directions, as the guest sees it, since the device was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct NetStatistics {
    /// From the host to the guest.
    pub received: Traffic,
    /// From the guest to the host.
    pub transmitted: Traffic,
}

/// Traffic in one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// Packets delivered. One that is to be segmented counts once.
    pub packets: u64,
    /// Bytes delivered, with the link header, without the header of virtio.
    pub bytes: u64,
    /// Packets dropped because something was wrong with them, or with the buffers for them.
    pub malformed: u64,
    /// Packets dropped because the other side did not take them: the TAP failed or is gone, or the packet is larger than the guest
    /// can take.
    pub dropped: u64,
}

/// The counters of one direction, which one thread counts up and others read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    malformed: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    /// A packet of `bytes` bytes was delivered.
    pub(super) fn delivered(&self, bytes: u64) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A packet was dropped for what it is.
    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// A packet was dropped because nobody took it.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            packets: read(&self.packets),
            bytes: read(&self.bytes),
            malformed: read(&self.malformed),
            dropped: read(&self.dropped),
        }
    }
}
