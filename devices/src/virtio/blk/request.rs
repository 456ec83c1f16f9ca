//! Requests of virtio-blk, VIRTIO 1.2 section 5.2.6, as plain data: reads and checks them.

use bellows_disk::SECTOR_SIZE;
use bellows_memory::wire;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Le32, Le64};

wire! {
    /// The header of every request: the first fields of `struct virtio_blk_req`, section 5.2.6.
    pub struct VirtioBlkReqHeader {
        /// `VIRTIO_BLK_T_*`.
        type_: Le32,
        /// Reserved.
        reserved: Le32,
        /// Position on the disk in sectors.
        sector: Le64,
    }
}

/// Bytes of a [`VirtioBlkReqHeader`].
pub const HEADER_SIZE: u64 = size_of::<VirtioBlkReqHeader>() as u64;

/// Bytes that `VIRTIO_BLK_T_GET_ID` answers.
pub const ID_SIZE: u64 = 20;

/// Most data of one request: far more than drivers send, and little enough that a reset never waits long for one.
pub const MAX_DATA: u64 = 64 << 20;

/// Bytes of one segment of a request that erases ranges: a `struct virtio_blk_discard_write_zeroes`.
pub const SEGMENT_SIZE: usize = 16;

/// Most segments of any request.
pub const MAX_SEGMENTS: usize = 64;

/// What is to become of ranges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Erasure {
    /// They may hold anything: `VIRTIO_BLK_T_DISCARD`.
    Discard,
    /// They hold zeros: `VIRTIO_BLK_T_WRITE_ZEROES`.
    WriteZeroes,
}

impl Erasure {
    /// Most segments of a request. A file system may have to write its zeros one by one, so there are fewer of those.
    #[must_use]
    pub const fn max_segments(self) -> usize {
        match self {
            Self::Discard => MAX_SEGMENTS,
            Self::WriteZeroes => 8,
        }
    }

    /// Most sectors of a segment.
    #[must_use]
    pub const fn max_sectors(self) -> u32 {
        match self {
            Self::Discard => 1 << 22,
            Self::WriteZeroes => (MAX_DATA / SECTOR_SIZE) as u32,
        }
    }
}

/// The limits of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Capacity in sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// The driver has negotiated `VIRTIO_BLK_F_DISCARD`.
    pub discard: bool,
    /// The driver has negotiated `VIRTIO_BLK_F_WRITE_ZEROES`.
    pub write_zeroes: bool,
}

/// A valid request. Positions and lengths are in bytes, whole sectors within the capacity.
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
    /// Erase the ranges that the data names.
    Erase {
        /// In which way.
        erasure: Erasure,
        /// How many ranges there are.
        segments: usize,
    },
    /// Make earlier writes durable.
    Flush,
    /// Put the serial number into the data buffer.
    GetId,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// A type that this device does not support.
    #[error("its type {0} is not supported")]
    Type(u32),
    /// No data, too much, or not a whole number of sectors.
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
    /// Flags that a segment of its type does not have.
    #[error("the flags {0:#x} of a segment are not supported")]
    Flags(u32),
    /// A segment that is too long.
    #[error("a segment has {0} sectors")]
    Segment(u32),
}

impl Rejection {
    /// The status byte for the driver.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Type(_) | Self::Flags(_) => VIRTIO_BLK_S_UNSUPP as u8,
            Self::Length(_) | Self::Range { .. } | Self::ReadOnly | Self::Segment(_) => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

impl Request {
    /// Checks a request: its header, the bytes of readable data behind that, and of writable data before the status byte.
    ///
    /// # Errors
    /// The request is invalid.
    pub fn parse(header: &VirtioBlkReqHeader, readable: u64, writable: u64, limits: Limits) -> Result<Self, Rejection> {
        let sector = header.sector.to_native();
        let erase = |erasure| count(erasure, readable).map(|segments| Self::Erase { erasure, segments });
        match header.type_.to_native() {
            VIRTIO_BLK_T_IN => check(sector, writable, limits).map(|offset| Self::Read { offset, bytes: writable }),
            VIRTIO_BLK_T_OUT if limits.read_only => Err(Rejection::ReadOnly),
            VIRTIO_BLK_T_OUT => check(sector, readable, limits).map(|offset| Self::Write { offset, bytes: readable }),
            // A read-only disk offers neither.
            VIRTIO_BLK_T_DISCARD if limits.discard => erase(Erasure::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => erase(Erasure::WriteZeroes),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable < ID_SIZE => Err(Rejection::Length(writable)),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId),
            other => Err(Rejection::Type(other)),
        }
    }
}

/// How many segments `bytes` bytes of data are.
///
/// # Errors
/// There is none, there are too many, or one is cut.
fn count(erasure: Erasure, bytes: u64) -> Result<usize, Rejection> {
    let segments = usize::try_from(bytes).unwrap_or(usize::MAX);
    match segments / SEGMENT_SIZE {
        count @ 1.. if count <= erasure.max_segments() && segments.is_multiple_of(SEGMENT_SIZE) => Ok(count),
        _ => Err(Rejection::Length(bytes)),
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

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
