//! One request of a driver: a descriptor chain (VIRTIO 1.2, section 2.7), as the pieces of guest memory that it names.
//!
//! A [`Chain`] holds addresses, not memory, so a device may keep it after it drops its snapshot of guest memory. The
//! division of a request into descriptors is the driver's choice (section 2.7.4): devices read and write [`Segments`], a
//! sequence of bytes.

use std::ops::Deref;

use bellows_memory::GuestMemory;
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemoryBackend as _, VolatileSlice};

/// A descriptor chain. It has not been checked against guest memory.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// Bytes that the device may read.
    pub readable: Segments,
    /// Bytes that the device may write; they follow the readable ones.
    pub writable: Segments,
    defect: Option<Defect>,
    max_descriptors: usize,
}

/// A rule that a driver broke in a chain. The part before the defect is in the chain's segments.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Defect {
    /// The descriptors do not end: they form a loop, or lead to one that does not exist.
    #[error("the chain is truncated after {0} descriptors")]
    CutShort(usize),
    /// More descriptors than the queue has (section 2.7.5.3.1).
    #[error("the chain has more than {0} descriptors")]
    TooLong(usize),
    /// A readable descriptor behind a writable one (section 2.7.4.2).
    #[error("readable bytes at {:#x} follow writable ones", .0.0)]
    Order(GuestAddress),
}

impl Chain {
    /// An empty chain with room for the descriptors of any chain of a queue that has at most `max_descriptors`.
    pub(super) fn with_capacity(max_descriptors: u16) -> Self {
        let max_descriptors = usize::from(max_descriptors);
        Self {
            head: 0,
            readable: Segments::with_capacity(max_descriptors),
            writable: Segments::with_capacity(max_descriptors),
            defect: None,
            max_descriptors,
        }
    }

    /// Takes the chain that `descriptors` name. Allocates nothing.
    pub(super) fn load<M: Deref<Target = GuestMemory>>(&mut self, descriptors: DescriptorChain<M>) {
        self.head = descriptors.head_index();
        self.readable.clear();
        self.writable.clear();
        self.defect = None;
        let mut ended = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count == self.max_descriptors {
                self.defect = Some(Defect::TooLong(count));
                return;
            }
            let segment = Segment { address: descriptor.addr(), bytes: descriptor.len() };
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else {
                if !self.writable.is_empty() {
                    self.defect.get_or_insert(Defect::Order(segment.address));
                }
                self.readable.push(segment);
            }
            ended = !descriptor.has_next();
        }
        if !ended {
            self.defect = Some(Defect::CutShort(self.len()));
        }
    }

    /// Number of the first descriptor.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Number of descriptors.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no chain is empty")]
    pub fn len(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// The rule that the driver broke, if any.
    #[must_use]
    pub const fn defect(&self) -> Option<Defect> {
        self.defect
    }
}

/// A piece of guest memory that a descriptor names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Its address.
    pub address: GuestAddress,
    /// Its length.
    pub bytes: u32,
}

/// Pieces of guest memory, one behind the other.
#[derive(Debug)]
pub struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    /// No pieces, with room for `pieces` of them.
    #[must_use]
    pub fn with_capacity(pieces: usize) -> Self {
        Self { list: Vec::with_capacity(pieces), bytes: 0 }
    }

    /// Removes all pieces and keeps the allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, segment: Segment) {
        self.list.push(segment);
        self.bytes += u64::from(segment.bytes);
    }

    /// Number of pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are no pieces. Pieces may be empty too: see [`Segments::bytes`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first piece.
    #[must_use]
    pub fn first(&self) -> Option<Segment> {
        self.list.first().copied()
    }

    /// Bytes of all pieces together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The `take` bytes behind the first `skip`, as pieces that are not empty.
    pub fn part(&self, mut skip: u64, mut take: u64) -> impl Iterator<Item = Segment> {
        self.list.iter().filter_map(move |segment| {
            let skipped = skip.min(u64::from(segment.bytes));
            skip -= skipped;
            let taken = take.min(u64::from(segment.bytes) - skipped);
            take -= taken;
            // A descriptor may run past the last address: what is there is in no memory, and neither is the last address.
            let address = GuestAddress(segment.address.0.saturating_add(skipped));
            #[allow(clippy::cast_possible_truncation, reason = "no longer than the segment")]
            (taken > 0).then_some(Segment { address, bytes: taken as u32 })
        })
    }

    /// Whether all pieces lie in `memory`.
    #[must_use]
    pub fn are_in(&self, memory: &GuestMemory) -> bool {
        self.part(0, u64::MAX).all(|piece| memory.check_range(piece.address, piece.bytes as usize))
    }

    /// The part that [`Segments::part`] cuts out, up to the first piece outside `memory`: a piece in two regions becomes two.
    pub fn slices<'a>(&self, memory: &'a GuestMemory, skip: u64, take: u64) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.part(skip, take)
            .flat_map(|piece| memory.get_slices(piece.address, piece.bytes as usize))
            .map_while(Result::ok)
    }

    /// Copies the first bytes to `to`. Returns their number, less than the length of `to` if the pieces end or leave `memory`.
    pub fn read(&self, memory: &GuestMemory, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.part(0, to.len() as u64) {
            let to = &mut to[done..done + piece.bytes as usize];
            // Nearly always it lies in one region, and this lookup is faster.
            match memory.get_slice(piece.address, to.len()) {
                Ok(slice) => drop(slice.copy_to(to)),
                Err(_) if memory.read_slice(to, piece.address).is_ok() => {}
                Err(_) => break,
            }
            done += piece.bytes as usize;
        }
        done
    }

    /// The first bytes as a structure of the specification; `None` if they are too few or not all in `memory`.
    #[must_use]
    pub fn read_obj<T: ByteValued + Default>(&self, memory: &GuestMemory) -> Option<T> {
        let mut value = T::default();
        (self.read(memory, value.as_mut_slice()) == size_of::<T>()).then_some(value)
    }

    /// Copies `from` behind the first `skip` bytes. Returns the bytes written, fewer if the pieces end or leave `memory`.
    pub fn write(&self, memory: &GuestMemory, skip: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.part(skip, from.len() as u64) {
            let from = &from[done..done + piece.bytes as usize];
            match memory.get_slice(piece.address, from.len()) {
                Ok(slice) => slice.copy_from(from),
                Err(_) if memory.write_slice(from, piece.address).is_ok() => {}
                Err(_) => break,
            }
            done += piece.bytes as usize;
        }
        done
    }
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
