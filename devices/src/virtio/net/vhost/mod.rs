//! An interface whose packets the host's kernel carries between the guest's queues and a TAP (vhost-net): the monitor sees none of them.
//!
//! From the inside out: [`table`] and [`ring`] are plain data; [`engine`] is what the kernel does for a pair of queues; [`served`] are
//! all pairs of a device, which follow guest memory; [`handler`] does what is left for the event loop.
//!
//! The kernel reaches guest memory by addresses of this process, so what it is told of counts. Two things are told: a table of guest
//! memory, for the buffers of packets, and where the rings are, which it reads and writes without a look at the table. Before memory
//! goes, the table loses it; and if a ring is in there, the queues are served no longer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bellows_memory::GuestView;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::engine::{Engine, Kernel};
use self::served::Served;
use super::wire::feature;

mod engine;
#[cfg(test)]
mod fake;
mod handler;
mod ring;
mod served;
mod table;

pub(super) use self::handler::KernelHandler;

/// Where the module says how many pieces of guest memory it takes.
const LIMIT: &str = "/sys/module/vhost/parameters/max_mem_regions";
/// Its own default, where that cannot be read: in a jail.
const DEFAULT_LIMIT: usize = 64;
/// What `vhost` passes on at most.
const LIBRARY_LIMIT: usize = ::vhost::VHOST_MAX_MEMORY_REGIONS;

/// Features that are the kernel's to serve: all of them are offered.
const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX | feature::MRG_RXBUF;

/// The kernel's part of an interface: open, and with nothing to do yet.
pub struct Vhost {
    pub(super) served: Arc<Served>,
    pairs: usize,
}

/// Why the kernel does not serve an interface.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The kernel has no vhost-net, or the process may not use it.
    #[error("cannot open /dev/vhost-net: expected the module `vhost_net`, and rights to read and write")]
    Open(#[source] io::Error),
    /// It refused to be set up.
    #[error("cannot set {what} of /dev/vhost-net")]
    SetUp {
        /// What was to be set.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It is too old.
    #[error("vhost-net of this host has the features {known:#x}: expected at least {features:#x}")]
    Features {
        /// What it has.
        known: u64,
        /// What is needed.
        features: u64,
    },
    /// Guest memory may come to be in too many pieces.
    #[error(transparent)]
    Pieces(#[from] TooManyPieces),
    /// The system has no descriptor.
    #[error("cannot make the events of vhost-net")]
    Event(#[source] io::Error),
}

/// Guest memory is, or may come to be, in more pieces than the kernel takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "guest memory in {needed} pieces: expected at most {most}, as vhost-net of this host takes (`max_mem_regions` of its module `vhost`)"
)]
pub struct TooManyPieces {
    /// As many as there are, or may come to be.
    pub needed: usize,
    /// As many as the kernel takes.
    pub most: usize,
}

impl Vhost {
    /// Opens vhost-net for `pairs` pairs of queues in `view`, of which there may come to be `pieces` pieces: base memory, and one for each
    /// partition. It belongs to this process.
    ///
    /// # Errors
    /// The kernel does not have it, does not take as many pieces, or is too old.
    pub fn open(pairs: usize, view: &GuestView, pieces: usize) -> Result<Self, VhostError> {
        let most = limit(Path::new(LIMIT));
        if pieces > most {
            return Err(TooManyPieces { needed: pieces, most }.into());
        }
        let engines = (0..pairs).map(|_| Ok(Box::new(Kernel::open(view, FEATURES)?) as Box<dyn Engine>));
        Self::new(engines.collect::<Result<_, VhostError>>()?, most)
    }

    fn new(engines: Vec<Box<dyn Engine>>, most: usize) -> Result<Self, VhostError> {
        let pairs = engines.len();
        Ok(Self { served: Arc::new(Served::new(engines, most).map_err(VhostError::Event)?), pairs })
    }

    pub(super) const fn pairs(&self) -> usize {
        self.pairs
    }
}

/// How many pieces of guest memory the kernel takes, by the module's parameter at `path`.
fn limit(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_LIMIT).min(LIBRARY_LIMIT)
}

#[cfg(test)]
#[path = "vhost_test.rs"]
mod tests;
