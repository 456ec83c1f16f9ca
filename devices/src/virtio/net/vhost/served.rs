//! The queues of a device that the kernel serves, which follow guest memory.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bellows_memory::sync::Mutex;
use bellows_memory::view::{FollowError, Follower};
use bellows_memory::{GuestView, limited};
use virtio_queue::QueueState;
use vm_memory::{GuestMemoryRegion as _, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::FEATURES;
use super::engine::Engine;
use super::ring::Ring;
use super::table::{Piece, Table};
use crate::interrupt::Interrupt;
use crate::virtio::net::pair::QUEUES;

const IN_PAIR: usize = QUEUES as usize;

/// Both queues of a pair, as far as the driver has enabled them.
pub(super) type Rings = [Option<Ring>; IN_PAIR];

/// All pairs of a device. A change of guest memory, the device's thread, and the transport meet here.
pub(in crate::virtio::net) struct Served {
    /// Most pieces of guest memory.
    most: usize,
    /// Signalled by the kernel when it meets what breaks a queue's rules.
    failed: EventFd,
    inner: Mutex<Inner>,
}

struct Inner {
    table: Table,
    pairs: Vec<Pair>,
    /// Of an active device.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The driver has to reset the device, of which no queue is served.
    broken: bool,
    /// The kernel did not take `table`.
    stale: bool,
}

struct Pair {
    engine: Box<dyn Engine>,
    /// Signalled by the kernel where the driver is to be interrupted. Made with the device and kept through resets, so that starting a
    /// device needs no new descriptor.
    calls: [Arc<EventFd>; IN_PAIR],
    rings: [Option<Placed>; IN_PAIR],
    /// Whether queues are served.
    runs: bool,
}

/// A queue that the kernel knows of.
struct Placed {
    ring: Ring,
    /// Where its parts lie in this process.
    hosts: [u64; 3],
}

/// Why queues cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error("queue {0} is not in guest memory in one piece")]
    Misplaced(usize),
    #[error("the host's kernel does not take {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Served {
    /// Nothing is served yet.
    pub(super) fn new(engines: Vec<Box<dyn Engine>>, most: usize) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let pair = |engine| {
            let calls = [Arc::new(event()?), Arc::new(event()?)];
            Ok(Pair { engine, calls, rings: [None, None], runs: false })
        };
        let pairs = engines.into_iter().map(pair).collect::<io::Result<_>>()?;
        let inner = Inner { table: Table::default(), pairs, interrupt: None, broken: false, stale: false };
        Ok(Self { most, failed: event()?, inner: Mutex::new(inner) })
    }

    /// The event of broken rules, to listen to.
    pub(super) const fn failed(&self) -> &EventFd {
        &self.failed
    }

    /// Tells the kernel of `rings`, pair by pair, of a driver that has accepted `features`. None is served yet. They follow guest memory.
    ///
    /// # Errors
    /// A queue is not in guest memory, or the system refused. [`Served::end`] is to follow.
    pub(super) fn begin(
        &self,
        interrupt: &Arc<dyn Interrupt>,
        features: u64,
        rings: Vec<Rings>,
    ) -> Result<(), BeginError> {
        let refused = |what| move |source| BeginError::Kernel { what, source };
        let _ = self.failed.read();
        let mut inner = self.inner.lock();
        if inner.stale {
            let source = io::Error::other("it has other memory than the guest");
            return Err(BeginError::Kernel { what: "guest memory", source });
        }
        let Inner { table, pairs, .. } = &mut *inner;
        for (index, (pair, rings)) in pairs.iter_mut().zip(rings).enumerate() {
            pair.engine.set_features(features & FEATURES).map_err(refused("the driver's features"))?;
            for (queue, ring) in rings.into_iter().enumerate() {
                let Some(ring) = ring else { continue };
                let number = IN_PAIR * index + queue;
                let hosts = ring.place(table).ok_or(BeginError::Misplaced(number))?;
                let call = &pair.calls[queue];
                let set = pair.engine.set_ring(queue, &ring, call, &self.failed);
                // What it was signalled for is of the time before.
                let _ = call.read();
                pair.rings[queue] = Some(Placed { ring, hosts });
                set.map_err(refused("a queue"))?;
                interrupt.wire(number as u16, Some(call)).map_err(refused("a queue's interrupt"))?;
            }
        }
        (inner.interrupt, inner.broken) = (Some(interrupt.clone()), false);
        Ok(())
    }

    /// Has pair `index` served between the guest and `tap`, or not served.
    ///
    /// # Errors
    /// The system's, or the driver has broken a queue's rules. The pair is not served.
    pub(super) fn serve(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let broken = inner.broken;
        let Some(pair) = inner.pairs.get_mut(index) else { return Ok(()) };
        match tap {
            None => pair.stop(),
            Some(_) if broken => return Err(io::Error::other("the driver has to reset the device")),
            Some(tap) => pair.start(tap)?,
        }
        Ok(())
    }

    /// Takes chains off the queues of pair `index` that the kernel has stopped at, because nobody can use them. The pair is not served
    /// afterwards. Returns whether there are such chains; without, the driver has broken a queue in another way.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn repair(&self, index: usize, memory: &GuestView) -> io::Result<bool> {
        let mut inner = self.inner.lock();
        let Some(pair) = inner.pairs.get_mut(index) else { return Ok(false) };
        pair.stop();
        let mut skipped = false;
        for queue in 0..IN_PAIR {
            let Some(Placed { ring, .. }) = &mut pair.rings[queue] else { continue };
            if ring.skip(pair.engine.position(queue)?, memory) {
                pair.engine.set_ring(queue, ring, &pair.calls[queue], &self.failed)?;
                // If this fails, the event is signalled already.
                let _ = pair.calls[queue].write(1);
                skipped = true;
            }
        }
        Ok(skipped)
    }

    /// Serves no queue from now on.
    pub(super) fn stop(&self) {
        self.inner.lock().stop();
    }

    /// Serves no queue until the driver has reset the device.
    pub(super) fn break_off(&self) {
        self.inner.lock().break_off();
    }

    /// Serves no queue, and forgets them. Returns how far each was served, pair by pair.
    pub(super) fn end(&self) -> Vec<[Option<QueueState>; IN_PAIR]> {
        let mut inner = self.inner.lock();
        inner.stop();
        let interrupt = inner.interrupt.take();
        inner.pairs.iter_mut().enumerate().map(|(index, pair)| pair.end(index, interrupt.as_deref())).collect()
    }
}

impl Follower for Served {
    fn follow(&self, regions: &[Arc<GuestRegionMmap>]) -> Result<(), FollowError> {
        let piece = |region: &Arc<GuestRegionMmap>| Piece {
            guest: region.start_addr().0,
            host: region.as_ptr() as u64,
            bytes: region.len(),
        };
        let table = Table::new(regions.iter().map(piece), self.most)?;
        let mut inner = self.inner.lock();
        // The kernel reaches rings whether or not they are in its table.
        let stay = |placed: &Placed| placed.ring.place(&table) == Some(placed.hosts);
        if !inner.pairs.iter().flat_map(|pair| pair.rings.iter().flatten()).all(stay) {
            limited!(warn, "the memory of a queue is gone: the driver must reset the device");
            inner.break_off();
        }
        inner.stale = false;
        for index in 0..inner.pairs.len() {
            if let Err(error) = inner.pairs[index].engine.set_memory(table.pieces()) {
                limited!(error, %error, "vhost-net does not follow guest memory: the driver must reset the device");
                inner.stale = true;
                inner.break_off();
            }
        }
        inner.table = table;
        Ok(())
    }
}

impl Inner {
    fn stop(&mut self) {
        self.pairs.iter_mut().for_each(Pair::stop);
    }

    fn break_off(&mut self) {
        self.stop();
        let was_broken = std::mem::replace(&mut self.broken, true);
        if let Some(interrupt) = self.interrupt.as_ref().filter(|_| !was_broken) {
            interrupt.needs_reset();
        }
    }
}

impl Pair {
    fn start(&mut self, tap: BorrowedFd<'_>) -> io::Result<()> {
        self.runs = true;
        for queue in 0..IN_PAIR {
            if self.rings[queue].is_some()
                && let Err(error) = self.engine.serve(queue, Some(tap))
            {
                self.stop();
                return Err(error);
            }
        }
        // The driver may have kicked before.
        for placed in self.rings.iter().flatten() {
            // If this fails, the event is signalled already.
            let _ = placed.ring.kick.write(1);
        }
        Ok(())
    }

    fn stop(&mut self) {
        if !std::mem::take(&mut self.runs) {
            return;
        }
        for queue in 0..IN_PAIR {
            if let Err(error) = self.engine.serve(queue, None) {
                limited!(error, queue, %error, "vhost-net goes on with a queue");
            }
        }
    }

    fn end(&mut self, index: usize, interrupt: Option<&dyn Interrupt>) -> [Option<QueueState>; IN_PAIR] {
        let mut states = [None, None];
        for (queue, state) in states.iter_mut().enumerate() {
            let Some(Placed { ring, .. }) = self.rings[queue].take() else { continue };
            if let Some(interrupt) = interrupt
                && let Err(error) = interrupt.wire((IN_PAIR * index + queue) as u16, None)
            {
                limited!(warn, queue, %error, "an interrupt stays wired");
            }
            match self.engine.position(queue) {
                Ok(position) => *state = Some(ring.served_to(position)),
                Err(error) => limited!(error, queue, %error, "vhost-net does not say how far a queue was served"),
            }
        }
        states
    }
}
