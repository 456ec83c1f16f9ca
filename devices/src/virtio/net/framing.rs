//! Packets on a byte stream, each behind its length in 32 bits, big-endian: as QEMU's stream network back ends and passt have them.

use std::ops::Range;

use super::wire::MAX_FRAME;

/// Bytes of a packet's length.
pub const PREFIX_BYTES: usize = 4;
/// Most bytes of a packet with its length.
const MAX_RECORD: usize = PREFIX_BYTES + MAX_FRAME;
/// Bytes that one call reads at most: many small packets, or one of the largest and the beginning of the next.
const READ_BYTES: usize = 128 << 10;
const _: () = assert!(READ_BYTES >= MAX_RECORD);

/// The other side announced a packet that there cannot be. Where the next one begins is unknown.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the other side of the stream announced a packet of {0} bytes: expected at most {MAX_FRAME}")]
pub struct Oversized(pub u32);

/// What has been read and not yet taken: whole packets, and at most one that has not all come.
#[derive(Debug)]
pub struct Incoming {
    buffer: Box<[u8]>,
    /// Of `buffer`, what is in use.
    used: Range<usize>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; READ_BYTES].into_boxed_slice(), used: 0..0 }
    }
}

impl Incoming {
    /// The next packet, if all of it is here; takes it.
    ///
    /// # Errors
    /// There is none, nor will there be another.
    pub fn take(&mut self) -> Result<Option<&[u8]>, Oversized> {
        let Some(bytes) = self.announced()? else { return Ok(None) };
        let begin = self.used.start + PREFIX_BYTES;
        let end = begin + bytes;
        if end > self.used.end {
            return Ok(None);
        }
        self.used.start = end;
        Ok(Some(&self.buffer[begin..end]))
    }

    /// Bytes of the first packet, if its length is here.
    fn announced(&self) -> Result<Option<usize>, Oversized> {
        let Some(&prefix) = self.buffer[self.used.clone()].first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        match u32::from_be_bytes(prefix) {
            bytes if bytes as usize <= MAX_FRAME => Ok(Some(bytes as usize)),
            bytes => Err(Oversized(bytes)),
        }
    }

    /// Room to read more into, when there is no whole packet: at least as much as the first one lacks.
    pub fn room(&mut self) -> &mut [u8] {
        let begin = self.used.start;
        if self.used.is_empty() {
            self.used = 0..0;
        } else if begin + MAX_RECORD > self.buffer.len() {
            // No more than one packet, and only once in all that the buffer holds.
            self.buffer.copy_within(self.used.clone(), 0);
            self.used = 0..self.used.len();
        }
        &mut self.buffer[self.used.end..]
    }

    /// `bytes` bytes were read into the room.
    pub fn came(&mut self, bytes: usize) {
        self.used.end += bytes;
        debug_assert!(self.used.end <= self.buffer.len());
    }

    /// Bytes of a packet that has not all come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.used.len()
    }
}

/// The rest of a packet that the stream has taken in part.
#[derive(Debug)]
pub struct Outgoing {
    buffer: Box<[u8]>,
    rest: Range<usize>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { buffer: vec![0; MAX_RECORD].into_boxed_slice(), rest: 0..0 }
    }
}

impl Outgoing {
    /// What is to be written before anything else.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.rest.clone()]
    }

    /// The first `bytes` bytes of the rest were written.
    pub fn sent(&mut self, bytes: usize) {
        self.rest.start += bytes;
        debug_assert!(self.rest.start <= self.rest.end);
    }

    /// Keeps what `fill` puts into the buffer, which returns how much that is. Nothing is kept yet.
    pub fn keep(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        debug_assert!(self.rest.is_empty());
        self.rest = 0..fill(&mut self.buffer);
    }
}

#[cfg(test)]
#[path = "framing_test.rs"]
pub(super) mod tests;
