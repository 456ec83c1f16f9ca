//! What one layer may cost: a small archive can unpack to more than any disk or memory holds.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Limits of one layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Most bytes of the unpacked archive, and of the image.
    pub unpacked_bytes: u64,
    /// Most unpacked bytes for each byte of the blob, once there is a GiB of them: gzip cannot do more than 1032.
    pub ratio: u64,
    /// Most entries.
    pub entries: u64,
    /// Most bytes that names, attributes and link targets take in memory.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: 128 << 30, ratio: 200, entries: 2 << 20, metadata_bytes: 1 << 30 }
    }
}

/// Unpacked bytes up to which the ratio is not checked: a file of zeros is not a bomb yet.
const FREE_BYTES: u64 = 1 << 30;

/// An archive that unpacks to too much.
#[derive(Debug, thiserror::Error)]
enum Bomb {
    #[error("it unpacks to more than the limit of {0} bytes")]
    Size(u64),
    #[error("it unpacks to more than {ratio} times the {packed} bytes read of it")]
    Ratio { ratio: u64, packed: u64 },
}

/// Counts what passes.
pub(crate) struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    pub fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let count = Rc::new(Cell::new(0));
        (Self { inner, count: count.clone() }, count)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// An unpacked stream that fails where it goes beyond its limits.
pub(crate) struct Bounded<R> {
    inner: R,
    limits: Limits,
    packed: Rc<Cell<u64>>,
    unpacked: u64,
}

impl<R> Bounded<R> {
    /// `packed` counts the bytes that `inner` has taken.
    pub fn new(inner: R, limits: Limits, packed: Rc<Cell<u64>>) -> Self {
        Self { inner, limits, packed, unpacked: 0 }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.unpacked += count as u64;
        let Limits { unpacked_bytes, ratio, .. } = self.limits;
        let packed = self.packed.get();
        if self.unpacked > unpacked_bytes {
            Err(io::Error::other(Bomb::Size(unpacked_bytes)))
        } else if self.unpacked > FREE_BYTES.min(unpacked_bytes / 2) && self.unpacked / ratio.max(1) > packed {
            Err(io::Error::other(Bomb::Ratio { ratio, packed }))
        } else {
            Ok(count)
        }
    }
}
