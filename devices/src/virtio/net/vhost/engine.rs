//! What the kernel does for a pair of queues.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use ::vhost::net::VhostNet as _;
use ::vhost::vhost_kern::net::Net;
use ::vhost::{Error, VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use bellows_memory::{GuestMemory, GuestView};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

use super::VhostError;
use super::ring::Ring;
use super::table::Piece;

/// A pair of queues in the kernel: the first to the guest, the second from it. Tests have one of their own.
pub(super) trait Engine: Send {
    /// Sets what the driver has accepted.
    fn set_features(&self, features: u64) -> io::Result<()>;

    /// Takes over what there is of guest memory. When this returns, nothing else is used.
    fn set_memory(&self, pieces: &[Piece]) -> io::Result<()>;

    /// Prepares a queue that is not served, which lies in guest memory.
    fn set_ring(&self, queue: usize, ring: &Ring, call: &EventFd, error: &EventFd) -> io::Result<()>;

    /// Has a queue served between the guest and `tap`; with `None` it is not served when this returns.
    fn serve(&self, queue: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// How far a queue was served that is not any more.
    fn position(&self, queue: usize) -> io::Result<u16>;
}

/// One `/dev/vhost-net`.
pub(super) struct Kernel(Net<GuestMemoryAtomic<GuestMemory>>);

impl Kernel {
    /// Opens it for the memory of `view`; it needs all of `features`.
    pub(super) fn open(view: &GuestView, features: u64) -> Result<Self, VhostError> {
        let net = Net::new((**view).clone()).map_err(|error| VhostError::Open(system(error)))?;
        net.set_owner().map_err(|error| VhostError::SetUp { what: "the owner", source: system(error) })?;
        let known = net.get_features();
        let known = known.map_err(|error| VhostError::SetUp { what: "features", source: system(error) })?;
        if known & features == features { Ok(Self(net)) } else { Err(VhostError::Features { known, features }) }
    }
}

impl Engine for Kernel {
    fn set_features(&self, features: u64) -> io::Result<()> {
        self.0.set_features(features).map_err(system)
    }

    fn set_memory(&self, pieces: &[Piece]) -> io::Result<()> {
        let regions = pieces.iter().map(|piece| VhostUserMemoryRegionInfo {
            guest_phys_addr: piece.guest,
            memory_size: piece.bytes,
            userspace_addr: piece.host,
            ..Default::default()
        });
        self.0.set_mem_table(&regions.collect::<Vec<_>>()).map(drop).map_err(system)
    }

    fn set_ring(&self, queue: usize, ring: &Ring, call: &EventFd, error: &EventFd) -> io::Result<()> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = ring.addresses();
        let addresses = VringConfigData {
            queue_max_size: ring.max_size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        let set = || {
            self.0.set_vring_num(queue, ring.size())?;
            self.0.set_vring_base(queue, ring.position())?;
            self.0.set_vring_addr(queue, &addresses)?;
            self.0.set_vring_call(queue, call)?;
            self.0.set_vring_err(queue, error)?;
            self.0.set_vring_kick(queue, &ring.kick)
        };
        set().map_err(system)
    }

    fn serve(&self, queue: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        // The kernel holds the TAP itself.
        let tap = tap.map(|tap| tap.try_clone_to_owned()).transpose()?.map(File::from);
        self.0.set_backend(queue, tap.as_ref()).map_err(system)
    }

    fn position(&self, queue: usize) -> io::Result<u16> {
        // Split queues have positions of 16 bits.
        self.0.get_vring_base(queue).map(|position| position as u16).map_err(system)
    }
}

/// The system's error in one of the library's.
fn system(error: Error) -> io::Error {
    match error {
        Error::VhostOpen(source) | Error::IoctlError(source) | Error::IOError(source) => source,
        other => io::Error::other(other),
    }
}
