//! Requests of virtio-blk, VIRTIO 1.2 section 5.2.6, as plain data: what a driver asks for, and whether it may.

use bellows_disk::SECTOR_SIZE;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestAddress;

/// Bytes of the header that every request begins with.
pub const HEADER_SIZE: usize = 16;

/// Bytes that `VIRTIO_BLK_T_GET_ID` answers.
pub const ID_SIZE: u64 = 20;

/// Most data of one request. No driver comes near, and one request must not keep a reset waiting for long.
pub const MAX_DATA: u64 = 64 << 20;

/// What requests are checked against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Capacity in sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// A request that may be carried out. Positions and lengths are in bytes, whole sectors within the capacity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// Fill the data buffers.
    Read {
        /// From here on the disk.
        offset: u64,
        /// Length of the data.
        bytes: u64,
    },
    /// Write the data buffers.
    Write {
        /// To here on the disk.
        offset: u64,
        /// Length of the data.
        bytes: u64,
    },
    /// Make earlier writes durable.
    Flush,
    /// Put the serial number into the data buffer.
    GetId,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// A type this device doesn't know.
    #[error("its type {0} is not supported")]
    Type(u32),
    /// Data that is no whole number of sectors, none, or too much.
    #[error("it has {0} bytes of data")]
    Length(u64),
    /// Sectors beyond the end.
    #[error("{bytes} bytes at sector {sector} lie beyond the end")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes of data.
        bytes: u64,
    },
    /// A write to a read-only disk.
    #[error("it writes to a read-only disk")]
    ReadOnly,
}

impl Rejection {
    /// The status byte the driver gets.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Type(_) => VIRTIO_BLK_S_UNSUPP as u8,
            Self::Length(_) | Self::Range { .. } | Self::ReadOnly => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

impl Request {
    /// Checks a request: its header, the bytes of readable data behind that, and of writable data before the status byte.
    ///
    /// # Errors
    /// It must not be carried out.
    pub fn parse(header: &[u8; HEADER_SIZE], readable: u64, writable: u64, limits: Limits) -> Result<Self, Rejection> {
        let [kind, _reserved, sector_low, sector_high] =
            std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| header[word * 4 + byte])));
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        match kind {
            VIRTIO_BLK_T_IN => check(sector, writable, limits).map(|offset| Self::Read { offset, bytes: writable }),
            VIRTIO_BLK_T_OUT if limits.read_only => Err(Rejection::ReadOnly),
            VIRTIO_BLK_T_OUT => check(sector, readable, limits).map(|offset| Self::Write { offset, bytes: readable }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable < ID_SIZE => Err(Rejection::Length(writable)),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId),
            other => Err(Rejection::Type(other)),
        }
    }
}

/// The position in bytes of data that lies within the limits.
fn check(sector: u64, bytes: u64, limits: Limits) -> Result<u64, Rejection> {
    if bytes == 0 || bytes > MAX_DATA || !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(Rejection::Length(bytes));
    }
    let beyond = Rejection::Range { sector, bytes };
    match sector.checked_add(bytes / SECTOR_SIZE) {
        Some(end) if end <= limits.sectors => sector.checked_mul(SECTOR_SIZE).ok_or(beyond),
        _ => Err(beyond),
    }
}

/// A piece of guest memory that a descriptor names; nobody has checked that it exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// How long it is.
    pub bytes: u32,
}

/// Pieces of guest memory, one after the other. Keeps its memory from request to request.
#[derive(Debug)]
pub struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    /// Without pieces, and with room for `pieces` of them.
    #[must_use]
    pub fn with_capacity(pieces: usize) -> Self {
        Self { list: Vec::with_capacity(pieces), bytes: 0 }
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, segment: Segment) {
        self.list.push(segment);
        self.bytes += u64::from(segment.bytes);
    }

    /// How many pieces there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many bytes they are together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The `take` bytes behind the first `skip` of what they are together, as pieces that are not empty.
    pub fn part(&self, mut skip: u64, mut take: u64) -> impl Iterator<Item = Segment> {
        self.list.iter().filter_map(move |segment| {
            let skipped = skip.min(u64::from(segment.bytes));
            skip -= skipped;
            let taken = take.min(u64::from(segment.bytes) - skipped);
            take -= taken;
            // Wraps only where the driver's own descriptor does; such an address is in no memory.
            let address = GuestAddress(segment.address.0.wrapping_add(skipped));
            #[allow(clippy::cast_possible_truncation, reason = "no longer than the segment")]
            (taken > 0).then_some(Segment { address, bytes: taken as u32 })
        })
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
