//! Requests and answers of virtio-mem, VIRTIO 1.2 section 5.15.6, and its configuration, section 5.15.4, as plain data.

use bellows_memory::BLOCK;
use bellows_memory::BlockRange;
use bellows_memory::layout::Window;
use bellows_memory::partition::Report;
use bellows_memory::partition::{Answer, BlockState, Request};

/// Bytes of `struct virtio_mem_req`.
pub const REQUEST_SIZE: usize = 24;
/// Bytes of `struct virtio_mem_resp`.
pub const RESPONSE_SIZE: usize = 10;
/// Bytes of `struct virtio_mem_config`.
pub const CONFIG_SIZE: usize = 56;

/// `VIRTIO_MEM_F_ACPI_PXM`: the configuration names a proximity domain.
pub const F_ACPI_PXM: u64 = 1 << 0;
/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the driver keeps off what is not plugged.
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

/// Why bytes are no request to a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A type that VIRTIO does not know.
    #[error("type {0} is no request")]
    Type(u16),
    /// A range of nothing.
    #[error("the request is about 0 blocks")]
    NoBlocks,
    /// An address inside a block.
    #[error("address {0:#x} is not a multiple of {BLOCK}")]
    Unaligned(u64),
    /// Not all of the range is the device's.
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
/// It is none; the answer is [`Answer::Error`].
pub fn parse(bytes: &[u8; REQUEST_SIZE], window: Window) -> Result<Request, RequestError> {
    let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = *bytes;
    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let blocks = u16::from_le_bytes([n0, n1]);
    let request = match u16::from_le_bytes([t0, t1]) {
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

/// Writes an answer.
#[must_use]
pub fn encode(answer: Answer) -> [u8; RESPONSE_SIZE] {
    let (kind, state) = match answer {
        Answer::Done => (RESP_ACK, 0),
        Answer::State(BlockState::Plugged) => (RESP_ACK, STATE_PLUGGED),
        Answer::State(BlockState::Unplugged) => (RESP_ACK, STATE_UNPLUGGED),
        Answer::State(BlockState::Mixed) => (RESP_ACK, STATE_MIXED),
        Answer::Nack => (RESP_NACK, 0),
        Answer::Busy => (RESP_BUSY, 0),
        Answer::Error => (RESP_ERROR, 0),
    };
    let mut bytes = [0; RESPONSE_SIZE];
    bytes[..2].copy_from_slice(&u16::to_le_bytes(kind));
    bytes[8..].copy_from_slice(&u16::to_le_bytes(state));
    bytes
}

/// The configuration of the device that has `window`.
#[must_use]
pub fn config(window: Window, report: &Report) -> [u8; CONFIG_SIZE] {
    let fields = [
        BLOCK.get(),
        // `node_id` and padding.
        u64::from(window.id().get()),
        window.range().start().0,
        window.range().bytes(),
        report.usable.get(),
        report.plugged.get(),
        report.target.get(),
    ];
    let mut bytes = [0; CONFIG_SIZE];
    for (bytes, field) in bytes.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
