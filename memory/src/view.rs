//! What devices see of guest memory, and what they use of it for longer than a moment.

use std::error::Error;
use std::ops::{Deref, Range};
use std::sync::{Arc, PoisonError};

use vm_memory::region::GuestRegionCollectionError;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileMemory, VolatileSlice,
};

use crate::limited;
use crate::sync::Mutex;

/// One immutable snapshot of the guest memory that devices may touch: base memory and the partitions plugged right now.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The current snapshot, replaced as a whole when a partition comes or goes. Cheap to clone: all clones are one view.
///
/// A device takes a snapshot (`view.memory()`) for each batch of requests and drops it before it waits for anything; so once a
/// replaced snapshot has no holder left, no request in flight can reach what was revoked. Taking one allocates nothing
/// and takes no lock. A request that may take longer, because a disk may, goes on with [`GuestView::pin`]: a wait for
/// snapshots does not wait for it, unless it uses the very memory that is about to go.
#[derive(Clone)]
pub struct GuestView {
    current: GuestMemoryAtomic<GuestMemory>,
    known: Arc<Mutex<Known>>,
    pins: Arc<Mutex<Pins>>,
    /// Entries of lists of regions that were written.
    #[cfg(test)]
    written: Arc<std::sync::atomic::AtomicU64>,
}

/// What changes with the current snapshot.
#[derive(Default)]
struct Known {
    /// The regions of the current snapshot, which does not give them out.
    regions: Vec<Arc<GuestRegionMmap>>,
    /// Who has a copy of that list, by number.
    followers: Vec<(u64, Arc<dyn Follower>)>,
    /// The number of the last follower.
    last: u64,
}

/// What uses guest memory by a copy of its own of the list of regions, beside all snapshots and pins: the host's kernel, where it serves
/// the queues of a device.
pub trait Follower: Send + Sync {
    /// Takes over `regions`, in order of address, in place of those it had. When this returns, nothing else is in use. It holds none of
    /// them, and waits neither for the guest nor for a lock under which somebody changes or follows the view.
    ///
    /// # Errors
    /// It refuses them, and goes on with those it had. It never refuses what it had before.
    fn follow(&self, regions: &[Arc<GuestRegionMmap>]) -> Result<(), FollowError>;
}

/// Why a follower refuses regions.
pub type FollowError = Box<dyn Error + Send + Sync>;

/// A follower of a view, until this is dropped.
pub struct Following {
    number: u64,
    known: Arc<Mutex<Known>>,
}

/// Why a view could not be changed.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// Regions overlap.
    Regions(GuestRegionCollectionError),
    /// A follower refuses them.
    Follower(FollowError),
}

/// What is pinned, and by which pin.
#[derive(Default)]
struct Pins {
    /// The number of the last pin.
    last: u64,
    pieces: Vec<Piece>,
}

/// A piece that is pinned.
struct Piece {
    /// Number of the pin.
    number: u64,
    range: Range<u64>,
    /// The address of the mapping that the pin holds for this piece: its name.
    mapping: usize,
}

/// Pieces of guest memory that a request uses. As long as this exists, they stay plugged and mapped.
pub struct Pinned {
    /// Where each piece lies in its mapping, in bytes.
    pieces: Vec<(Arc<MmapRegion>, usize, usize)>,
    number: u64,
    pins: Arc<Mutex<Pins>>,
}

impl GuestView {
    /// A view of `memory`.
    #[must_use]
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            current: GuestMemoryAtomic::new(memory),
            known: Arc::default(),
            pins: Arc::default(),
            #[cfg(test)]
            written: Arc::default(),
        }
    }

    /// Puts `regions`, in order of address, in place of those that begin in `window`, in one step for readers. The list is written
    /// once, however many regions come and go. Followers have it when this returns.
    ///
    /// # Errors
    /// The regions overlap each other or others, or a follower refuses them; nothing changed.
    pub(crate) fn replace(
        &self,
        window: Range<GuestAddress>,
        regions: impl IntoIterator<Item = Arc<GuestRegionMmap>>,
    ) -> Result<(), ReplaceError> {
        let guard = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock();
        known.keep_up(&self.current.memory()).map_err(ReplaceError::Regions)?;
        let place = |address| known.regions.partition_point(|region| region.start_addr() < address);
        let (before, behind) = (&known.regions[..place(window.start)], &known.regions[place(window.end)..]);
        let list: Vec<_> = before.iter().cloned().chain(regions).chain(behind.iter().cloned()).collect();
        #[cfg(test)]
        self.written.fetch_add(list.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let memory = GuestMemory::from_arc_regions(list.clone()).map_err(ReplaceError::Regions)?;
        known.tell(&list).map_err(ReplaceError::Follower)?;
        guard.replace(memory);
        known.regions = list;
        Ok(())
    }

    /// Has `follower` take over what devices see, at once and whenever that changes.
    ///
    /// # Errors
    /// It refuses what they see at present, and is no follower.
    pub fn follow(&self, follower: Arc<dyn Follower>) -> Result<Following, FollowError> {
        let _guard = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock();
        known.keep_up(&self.current.memory())?;
        follower.follow(&known.regions)?;
        known.last += 1;
        let number = known.last;
        known.followers.push((number, follower));
        Ok(Following { number, known: self.known.clone() })
    }

    /// Pins the pieces (address, bytes) of `memory`, a snapshot of this view, which need not be held any longer afterwards.
    ///
    /// # Errors
    /// The first of them that is not in `memory` whole.
    pub fn pin(
        &self,
        memory: &GuestMemory,
        pieces: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Result<Pinned, GuestMemoryError> {
        let mut pinned = Pinned { pieces: Vec::new(), number: 0, pins: self.pins.clone() };
        let mut named = Vec::new();
        for (mut address, mut bytes) in pieces {
            while bytes > 0 {
                let region = memory.find_region(address).ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
                let offset = address.0 - region.start_addr().0;
                let length = usize::try_from(region.len() - offset).unwrap_or(usize::MAX).min(bytes);
                // Inside a region, which is mapped as a whole.
                let mapping = region.get_mmap();
                named.push((address.0..address.0 + length as u64, name(&mapping)));
                pinned.pieces.push((mapping, offset as usize, length));
                // Wraps at the end of all addresses, where there is no memory.
                address.0 = address.0.wrapping_add(length as u64);
                bytes -= length;
            }
        }
        // The snapshot is held until here: a thread that finds it released finds this pin.
        let mut pins = self.pins.lock();
        pins.last += 1;
        pinned.number = pins.last;
        pins.pieces.extend(named.into_iter().map(|(range, mapping)| Piece { number: pinned.number, range, mapping }));
        drop(pins);
        Ok(pinned)
    }

    #[cfg(test)]
    pub(crate) fn regions_written(&self) -> u64 {
        self.written.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether anything of `bytes` at `start` is pinned.
    pub(crate) fn is_pinned(&self, start: GuestAddress, bytes: u64) -> bool {
        let behind = start.0.saturating_add(bytes);
        self.pins.lock().pieces.iter().any(|piece| piece.range.start < behind && start.0 < piece.range.end)
    }

    /// How many pieces of `mapping` are pinned, which is how often their pins hold it.
    pub(crate) fn pins_of(&self, mapping: &MmapRegion) -> usize {
        self.pins.lock().pieces.iter().filter(|piece| piece.mapping == name(mapping)).count()
    }
}

impl Known {
    /// Has the list be that of `memory`, the current snapshot.
    fn keep_up(&mut self, memory: &GuestMemory) -> Result<(), GuestRegionCollectionError> {
        let in_step = memory.num_regions() == self.regions.len()
            && memory.iter().zip(&self.regions).all(|(region, known)| std::ptr::eq(region, &raw const **known));
        if !in_step {
            self.regions = take_apart(memory)?;
        }
        Ok(())
    }

    /// Has all followers take over `list`, or none.
    fn tell(&self, list: &[Arc<GuestRegionMmap>]) -> Result<(), FollowError> {
        for (told, (_, follower)) in self.followers.iter().enumerate() {
            if let Err(error) = follower.follow(list) {
                for (_, follower) in &self.followers[..told] {
                    if let Err(error) = follower.follow(&self.regions) {
                        limited!(error, %error, "a device refuses the guest memory that it had");
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        let place = known.followers.iter().position(|(number, _)| *number == self.number);
        // Dropped without the lock, by which it would be waited for.
        let follower = place.map(|place| known.followers.swap_remove(place));
        drop(known);
        drop(follower);
    }
}

impl Deref for GuestView {
    type Target = GuestMemoryAtomic<GuestMemory>;

    fn deref(&self) -> &Self::Target {
        &self.current
    }
}

impl Pinned {
    /// The pieces in the order they were named; one that lies in several regions of memory comes in several parts.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        // Each piece was found in its mapping, so nothing is left out.
        self.pieces.iter().filter_map(|(mapping, offset, bytes)| mapping.get_slice(*offset, *bytes).ok())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Before the mappings are released: a thread that counts in between finds one too many rather than one too few.
        self.pins.lock().pieces.retain(|piece| piece.number != self.number);
    }
}

/// The regions of `memory`, one by one.
fn take_apart(memory: &GuestMemory) -> Result<Vec<Arc<GuestRegionMmap>>, GuestRegionCollectionError> {
    let take = |region: &GuestRegionMmap| Ok(memory.remove_region(region.start_addr(), region.len())?.1);
    memory.iter().map(take).collect()
}

/// A mapping's name for as long as it is held.
fn name(mapping: &MmapRegion) -> usize {
    std::ptr::from_ref(mapping).addr()
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
