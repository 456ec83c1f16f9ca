//! Where things lie in the guest's physical address space.
//!
//! ```text
//! 0          low limit   hole end                                          2^address bits
//! | low base | device hole | high base | gap | growth | window 1 | window 2 | ... | device memory  |
//! ```
//!
//! "Growth" is the window by which base memory grows while the VM runs, if it may.
//!
//! Pure arithmetic; the caller brings the architecture's numbers.

use std::fmt;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use crate::ByteSize;
use crate::address::AddressRange;
use crate::blocks::BLOCK;

/// Most partitions: a guest kernel built for 256 nodes (`CONFIG_NODES_SHIFT=8`) has one of them for base memory.
pub const MAX_PARTITIONS: usize = 255;

/// Least room that must be left for memory of devices.
const DEVICE_AREA_MIN: u64 = 16 << 30;
/// Where memory of devices starts: a multiple of the largest page.
const DEVICE_AREA_ALIGN: u64 = 1 << 30;
/// Linux's smallest memory block on x86-64 (`MIN_MEMORY_BLOCK_SIZE`).
pub const MEMORY_BLOCK_MIN: u64 = 128 << 20;
/// Linux's largest memory block on x86-64 (`MAX_BLOCK_SIZE`).
const MEMORY_BLOCK_MAX: u64 = 2 << 30;
/// From this end of boot memory on Linux may choose blocks larger than the smallest (`MEM_SIZE_FOR_LARGE_BLOCK`).
const LARGE_BLOCKS_FROM: u64 = 64 << 30;

/// A partition's number, from 1. Its ACPI proximity domain and the guest's NUMA node have the same number; 0 is base
/// memory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PartitionId(u16);

impl PartitionId {
    /// Partition `number`; `None` unless it is in 1..=[`MAX_PARTITIONS`].
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 1 && number as usize <= MAX_PARTITIONS { Some(Self(number)) } else { None }
    }

    /// Base memory, where it stands beside partitions: the window by which it grows.
    pub const BASE: Self = Self(0);

    /// The number, which is also the proximity domain.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::BASE { f.write_str("0 (base memory)") } else { self.0.fmt(f) }
    }
}

impl From<PartitionId> for u16 {
    fn from(id: PartitionId) -> Self {
        id.0
    }
}

impl TryFrom<u16> for PartitionId {
    type Error = LayoutError;

    fn try_from(number: u16) -> Result<Self, LayoutError> {
        Self::new(number).ok_or(LayoutError::PartitionNumber(number))
    }
}

/// What a layout is made from.
#[derive(Clone, Debug)]
pub struct LayoutSpec {
    /// Memory the VM boots with; a multiple of 2 MiB.
    pub base: ByteSize,
    /// How much larger base memory may become while the VM runs; a multiple of 2 MiB.
    pub growth: ByteSize,
    /// Largest size of each partition, in order of their numbers.
    pub windows: Vec<ByteSize>,
    /// Where low RAM has to end (x86-64: 3 GiB); a multiple of 2 MiB.
    pub low_limit: GuestAddress,
    /// Where RAM goes on behind the device hole (x86-64: 4 GiB); a multiple of 2 MiB, above `low_limit`.
    pub hole_end: GuestAddress,
    /// Width of a guest-physical address.
    pub address_bits: u8,
}

impl LayoutSpec {
    /// The numbers of x86-64: RAM below 3 GiB and from 4 GiB on.
    #[must_use]
    pub fn x86_64(base: ByteSize, windows: Vec<ByteSize>, address_bits: u8) -> Self {
        let (growth, low_limit, hole_end) = (ByteSize::bytes(0), GuestAddress(3 << 30), GuestAddress(4 << 30));
        Self { base, growth, windows, low_limit, hole_end, address_bits }
    }
}

/// Where a partition lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    id: PartitionId,
    range: AddressRange,
    size: ByteSize,
    granule: u64,
}

impl Window {
    /// The partition.
    #[must_use]
    pub const fn id(self) -> PartitionId {
        self.id
    }

    /// Its addresses; aligned to [`Window::granule`] at both ends.
    #[must_use]
    pub const fn range(self) -> AddressRange {
        self.range
    }

    /// The most that can be plugged, as it was asked for; its addresses are rounded up.
    #[must_use]
    pub const fn size(self) -> ByteSize {
        self.size
    }

    /// The guest's memory-block size in bytes: the unit in which slots follow what is plugged.
    #[must_use]
    pub const fn granule(self) -> u64 {
        self.granule
    }
}

/// The guest-physical address space of one VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    low: AddressRange,
    high: Option<AddressRange>,
    memory_block: u64,
    growth: Option<Window>,
    windows: Vec<Window>,
    devices: AddressRange,
}

impl Layout {
    /// Lays out the address space.
    ///
    /// # Errors
    /// The specification is invalid; the error names the value and what was expected.
    pub fn new(spec: &LayoutSpec) -> Result<Self, LayoutError> {
        check(spec)?;
        let beyond = || LayoutError::BeyondAddressBits {
            base: spec.base,
            partitions: spec.windows.len(),
            windows: spec.windows.iter().copied().fold(spec.growth, ByteSize::plus),
            limit: ByteSize::bytes(1 << spec.address_bits),
            bits: spec.address_bits,
        };
        let range = |start, bytes| AddressRange::new(start, bytes).ok_or_else(beyond);
        let low = range(0, spec.base.get().min(spec.low_limit.0))?;
        let rest = spec.base.get() - low.bytes();
        let high = if rest == 0 { None } else { Some(range(spec.hole_end.0, rest)?) };
        let base_end = spec.hole_end.0.checked_add(rest).ok_or_else(beyond)?;

        let memory_block = if base_end >= LARGE_BLOCKS_FROM { MEMORY_BLOCK_MAX } else { MEMORY_BLOCK_MIN };
        // Linux reads up to a word past the last byte of a page (load_unaligned_zeropad): so behind
        // base memory there must be a gap rather than a partition.
        let mut next =
            base_end.checked_add(memory_block).and_then(|at| align_up(at, memory_block)).ok_or_else(beyond)?;
        let mut place = |id, size: ByteSize| -> Result<Window, LayoutError> {
            let bytes = align_up(size.get(), memory_block).ok_or_else(beyond)?;
            let window = Window { id, range: range(next, bytes)?, size, granule: memory_block };
            next = next.checked_add(bytes).ok_or_else(beyond)?;
            Ok(window)
        };
        let growth = (spec.growth.get() != 0).then(|| place(PartitionId::BASE, spec.growth)).transpose()?;
        let windows = spec.windows.iter().zip((1..).map(PartitionId)).map(|(&size, id)| place(id, size));
        let windows = windows.collect::<Result<_, _>>()?;

        let limit = 1_u64 << spec.address_bits;
        let start = align_up(next, DEVICE_AREA_ALIGN).ok_or_else(beyond)?;
        let bytes = limit.checked_sub(start).filter(|&bytes| bytes >= DEVICE_AREA_MIN).ok_or_else(beyond)?;
        Ok(Self { low, high, memory_block, growth, windows, devices: range(start, bytes)? })
    }

    /// Base memory below the device hole.
    #[must_use]
    pub const fn low(&self) -> AddressRange {
        self.low
    }

    /// Base memory above the device hole, if there is that much.
    #[must_use]
    pub const fn high(&self) -> Option<AddressRange> {
        self.high
    }

    /// All base memory, in order of address.
    pub fn base(&self) -> impl Iterator<Item = AddressRange> {
        std::iter::once(self.low).chain(self.high)
    }

    /// The largest memory block that Linux may choose with this much base memory, in bytes.
    #[must_use]
    pub const fn memory_block(&self) -> u64 {
        self.memory_block
    }

    /// The window by which base memory grows, if it may.
    #[must_use]
    pub const fn growth(&self) -> Option<Window> {
        self.growth
    }

    /// The partitions' windows, in order of number and address.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Addresses above all memory, for memory that devices bring ([`crate::DeviceArea`]).
    #[must_use]
    pub const fn devices(&self) -> AddressRange {
        self.devices
    }
}

fn check(spec: &LayoutSpec) -> Result<(), LayoutError> {
    let (low_limit, hole_end) = (spec.low_limit.0, spec.hole_end.0);
    let aligned = |address| ByteSize::bytes(address).is_multiple_of(BLOCK);
    if !(36..=52).contains(&spec.address_bits) {
        return Err(LayoutError::AddressBits(spec.address_bits));
    }
    if low_limit == 0 || low_limit > hole_end || !aligned(low_limit) || !aligned(hole_end) {
        return Err(LayoutError::Hole { low_limit, hole_end });
    }
    if spec.base.get() == 0 {
        return Err(LayoutError::NoBase);
    }
    if !spec.base.is_multiple_of(BLOCK) {
        return Err(LayoutError::UnalignedBase(spec.base));
    }
    if !spec.growth.is_multiple_of(BLOCK) {
        return Err(LayoutError::UnalignedGrowth(spec.growth));
    }
    if spec.windows.len() > MAX_PARTITIONS {
        return Err(LayoutError::TooManyPartitions(spec.windows.len()));
    }
    for (&window, id) in spec.windows.iter().zip((1..).map(PartitionId)) {
        if window.get() == 0 {
            return Err(LayoutError::EmptyWindow(id));
        }
        if !window.is_multiple_of(BLOCK) {
            return Err(LayoutError::UnalignedWindow { id, window });
        }
    }
    Ok(())
}

/// Why a specification has no layout.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// No base memory.
    #[error("base memory is 0 bytes: expected a multiple of {BLOCK}, large enough for a kernel")]
    NoBase,
    /// Base memory is not made of whole huge pages.
    #[error("base memory is {0}: expected a multiple of {BLOCK}")]
    UnalignedBase(ByteSize),
    /// Base memory cannot grow by whole huge pages.
    #[error("base memory grows by {0}: expected a multiple of {BLOCK}")]
    UnalignedGrowth(ByteSize),
    /// The device hole is invalid.
    #[error("RAM ends at {low_limit:#x} and goes on at {hole_end:#x}: expected multiples of {BLOCK}, in this order")]
    Hole {
        /// Where low RAM ends.
        low_limit: u64,
        /// Where high RAM starts.
        hole_end: u64,
    },
    /// More partitions than the guest can have nodes for.
    #[error("{0} partitions: expected at most {MAX_PARTITIONS}")]
    TooManyPartitions(usize),
    /// A partition number out of range.
    #[error("partition {0} does not exist: partitions are numbered 1 to {MAX_PARTITIONS}")]
    PartitionNumber(u16),
    /// A partition that can never hold anything.
    #[error("partition {0} has a window of 0 bytes: expected a multiple of {BLOCK}")]
    EmptyWindow(PartitionId),
    /// A partition that is not made of whole blocks.
    #[error("partition {id} has a window of {window}: expected a multiple of {BLOCK}")]
    UnalignedWindow {
        /// The partition.
        id: PartitionId,
        /// Its window.
        window: ByteSize,
    },
    /// An address width that no machine has.
    #[error("physical addresses of {0} bits: expected 36 to 52")]
    AddressBits(u8),
    /// Too much memory for the addresses there are.
    #[error(
        "base memory of {base}, its growth and {partitions} partition windows, {windows} together, do not fit below {limit}, \
         what {bits}-bit physical addresses reach, with room for devices"
    )]
    BeyondAddressBits {
        /// Base memory.
        base: ByteSize,
        /// Number of partitions.
        partitions: usize,
        /// Sum of their windows and the growth of base memory, as far as it can be counted.
        windows: ByteSize,
        /// End of the address space.
        limit: ByteSize,
        /// Width of an address.
        bits: u8,
    },
}

/// `value` rounded up to a multiple of `unit`, a power of two.
fn align_up(value: u64, unit: u64) -> Option<u64> {
    value.checked_next_multiple_of(unit)
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
