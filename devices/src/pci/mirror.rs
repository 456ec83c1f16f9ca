//! Where the guest reads configuration space without exits.

use super::{CONVENTIONAL_BYTES, PciAddress};

/// A copy of configuration space that the guest reads instead of [`PciSegment::ecam`](super::PciSegment::ecam). Its writes go there as
/// before, and the segment changes the copy before they return.
///
/// Calls about one function come one after the other.
pub trait ConfigMirror: Send + Sync {
    /// The function at `address` reads as `registers`, with zeros behind.
    fn show(&self, address: PciAddress, registers: &[u8; CONVENTIONAL_BYTES]);

    /// There is no function at `address` any more: all reads as ones.
    fn hide(&self, address: PciAddress);

    /// What reads give cannot be told in advance any more. When this returns, the guest has no copy, and its reads go to the
    /// segment.
    fn end(&self);
}
