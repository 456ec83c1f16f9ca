//! Requests and answers of virtio-mem, VIRTIO 1.2 section 5.15.6, and its configuration, section 5.15.4, as plain data.

use bellows_memory::layout::Window;
use bellows_memory::partition::Report;
use bellows_memory::partition::{Answer, BlockState, Request};
use bellows_memory::{BLOCK, BlockRange, wire};
use vm_memory::{Le16, Le64};

wire! {
    /// `struct virtio_mem_req`; the variants of its union are all alike.
    pub struct VirtioMemReq {
        /// `VIRTIO_MEM_REQ_*`.
        type_: Le16,
        /// Reserved.
        padding: [u8; 6],
        /// First guest-physical address.
        addr: Le64,
        /// Number of blocks.
        nb_blocks: Le16,
        /// Reserved.
        padding1: [u8; 6],
    }

    /// `struct virtio_mem_resp`.
    pub struct VirtioMemResp {
        /// `VIRTIO_MEM_RESP_*`.
        type_: Le16,
        /// Reserved.
        padding: [u8; 6],
        /// `VIRTIO_MEM_STATE_*`.
        state: Le16,
    }

    /// `struct virtio_mem_config`.
    pub struct VirtioMemConfig {
        /// Bytes of a block.
        block_size: Le64,
        /// The proximity domain.
        node_id: Le16,
        /// Reserved.
        padding: [u8; 6],
        /// First guest-physical address of the device's region.
        addr: Le64,
        /// Bytes of the region.
        region_size: Le64,
        /// Bytes of it, from its start on, that may be plugged.
        usable_region_size: Le64,
        /// Bytes that are plugged.
        plugged_size: Le64,
        /// The target in bytes.
        requested_size: Le64,
    }
}

/// `VIRTIO_MEM_F_ACPI_PXM`: the configuration names a proximity domain.
pub const F_ACPI_PXM: u64 = 1 << 0;
/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver does not access unplugged memory.
pub const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

const REQ_PLUG: u16 = 0;
const REQ_UNPLUG: u16 = 1;
const REQ_UNPLUG_ALL: u16 = 2;
const REQ_STATE: u16 = 3;

const RESP_ACK: u16 = 0;
const RESP_NACK: u16 = 1;
const RESP_BUSY: u16 = 2;
const RESP_ERROR: u16 = 3;

const STATE_PLUGGED: u16 = 0;
const STATE_UNPLUGGED: u16 = 1;
const STATE_MIXED: u16 = 2;

/// Why a device refuses a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A type that VIRTIO does not define.
    #[error("request type {0} is unknown")]
    Type(u16),
    /// An empty range.
    #[error("the request is about 0 blocks")]
    NoBlocks,
    /// An address inside a block.
    #[error("address {0:#x} is not a multiple of {BLOCK}")]
    Unaligned(u64),
    /// A range that is not all in the device's region.
    #[error("{blocks} blocks at {address:#x} are not all in the device's region")]
    Outside {
        /// First address.
        address: u64,
        /// Number of blocks.
        blocks: u16,
    },
}

/// Reads a request to the device that has `window`.
///
/// # Errors
/// The request is invalid; the answer is [`Answer::Error`].
pub fn parse(request: &VirtioMemReq, window: Window) -> Result<Request, RequestError> {
    let (address, blocks) = (request.addr.to_native(), request.nb_blocks.to_native());
    let request = match request.type_.to_native() {
        REQ_PLUG => Request::Plug,
        REQ_UNPLUG => Request::Unplug,
        REQ_UNPLUG_ALL => return Ok(Request::UnplugAll),
        REQ_STATE => Request::State,
        other => return Err(RequestError::Type(other)),
    };
    if blocks == 0 {
        return Err(RequestError::NoBlocks);
    }
    if !address.is_multiple_of(BLOCK.get()) {
        return Err(RequestError::Unaligned(address));
    }
    let outside = RequestError::Outside { address, blocks };
    let (start, end) = (window.range().start().0, window.range().end().0);
    let offset = address.checked_sub(start).ok_or(outside)?;
    let bytes = u64::from(blocks) * BLOCK.get();
    if address.checked_add(bytes).is_none_or(|behind| behind > end) {
        return Err(outside);
    }
    let first = u32::try_from(offset / BLOCK.get()).map_err(|_| outside)?;
    BlockRange::new(first, u32::from(blocks)).map(request).ok_or(outside)
}

/// An answer as the driver reads it.
#[must_use]
pub fn encode(answer: Answer) -> VirtioMemResp {
    let (kind, state) = match answer {
        Answer::Done => (RESP_ACK, 0),
        Answer::State(BlockState::Plugged) => (RESP_ACK, STATE_PLUGGED),
        Answer::State(BlockState::Unplugged) => (RESP_ACK, STATE_UNPLUGGED),
        Answer::State(BlockState::Mixed) => (RESP_ACK, STATE_MIXED),
        Answer::Nack => (RESP_NACK, 0),
        Answer::Busy => (RESP_BUSY, 0),
        Answer::Error => (RESP_ERROR, 0),
    };
    VirtioMemResp { type_: kind.into(), state: state.into(), ..Default::default() }
}

/// The configuration of the device that has `window`.
#[must_use]
pub fn config(window: Window, report: &Report) -> VirtioMemConfig {
    VirtioMemConfig {
        block_size: BLOCK.get().into(),
        node_id: window.id().get().into(),
        addr: window.range().start().0.into(),
        region_size: window.range().bytes().into(),
        usable_region_size: report.usable.get().into(),
        plugged_size: report.plugged.get().into(),
        requested_size: report.target.get().into(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
