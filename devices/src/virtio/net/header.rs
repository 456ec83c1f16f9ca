//! Headers of packets as plain data: checks what the guest says about a packet for the host, and the other way round.

use super::wire::{
    GSO_NONE, GSO_TCPV4, GSO_TCPV6, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, MIN_FRAME, VirtioNetHdr, feature,
};

/// Bytes of a checksum.
const CHECKSUM: u64 = 2;

/// Why a packet is dropped for its header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// The checksum would have to be completed by a side that did not agree to that.
    #[error("its checksum is missing, and checksums were not left to the other side")]
    Checksum,
    /// The checksum lies outside the packet.
    #[error("its checksum covers it from {start} on and goes to {start} + {offset}: it has {bytes} bytes")]
    ChecksumPlace {
        /// Where the checksum begins to cover the packet.
        start: u16,
        /// Where the checksum goes, behind that.
        offset: u16,
        /// Bytes of the packet.
        bytes: u64,
    },
    /// It is to be segmented in a way that was not agreed upon.
    #[error("its segmentation has type {0:#x}, which was not agreed upon")]
    Segmentation(u8),
    /// It is to be segmented into nothing, or without a checksum for each segment.
    #[error("it is to be cut into segments of {size} bytes with flags {flags:#x}: expected at least 1 and NEEDS_CSUM")]
    Segments {
        /// Bytes of a segment.
        size: u16,
        /// The header's flags.
        flags: u8,
    },
}

/// The header for the host of a packet of `bytes` bytes that the guest sends with `header`, having accepted `features` (section
/// 5.1.6.2): checked, and without what the host has to ignore.
///
/// # Errors
/// The guest may not send such a header.
pub fn to_host(header: &VirtioNetHdr, bytes: u64, features: u64) -> Result<VirtioNetHdr, Rejection> {
    let checked = check(
        header,
        bytes,
        features,
        Sides { checksum: feature::CSUM, tcp4: feature::HOST_TSO4, tcp6: feature::HOST_TSO6 },
    )?;
    Ok(VirtioNetHdr { flags: checked.flags & HDR_F_NEEDS_CSUM, num_buffers: 0.into(), ..checked })
}

/// The header for the guest of a packet of `bytes` bytes that comes from the host with `header` (section 5.1.6.4), and takes
/// `num_buffers` buffers.
///
/// # Errors
/// The guest has not agreed to such packets.
pub fn to_guest(header: &VirtioNetHdr, bytes: u64, features: u64, num_buffers: u16) -> Result<VirtioNetHdr, Rejection> {
    let checked = check(
        header,
        bytes,
        features,
        Sides { checksum: feature::GUEST_CSUM, tcp4: feature::GUEST_TSO4, tcp6: feature::GUEST_TSO6 },
    )?;
    // Flags say something about checksums only.
    let known = if features & feature::GUEST_CSUM == 0 { 0 } else { HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID };
    Ok(VirtioNetHdr { flags: checked.flags & known, num_buffers: num_buffers.into(), ..checked })
}

/// The features of one direction.
struct Sides {
    checksum: u64,
    tcp4: u64,
    tcp6: u64,
}

/// Checks `header`; what nothing refers to becomes 0.
fn check(header: &VirtioNetHdr, bytes: u64, features: u64, sides: Sides) -> Result<VirtioNetHdr, Rejection> {
    let mut checked = VirtioNetHdr { flags: header.flags, ..VirtioNetHdr::default() };
    let unfinished = header.flags & HDR_F_NEEDS_CSUM != 0;
    if unfinished {
        if features & sides.checksum == 0 {
            return Err(Rejection::Checksum);
        }
        let (start, offset) = (header.csum_start.to_native(), header.csum_offset.to_native());
        let end = u64::from(start) + u64::from(offset) + CHECKSUM;
        if usize::from(start) < MIN_FRAME || end > bytes {
            return Err(Rejection::ChecksumPlace { start, offset, bytes });
        }
        (checked.csum_start, checked.csum_offset) = (header.csum_start, header.csum_offset);
    }
    let needed = match header.gso_type {
        GSO_NONE => return Ok(checked),
        GSO_TCPV4 => sides.tcp4,
        GSO_TCPV6 => sides.tcp6,
        other => return Err(Rejection::Segmentation(other)),
    };
    if features & needed == 0 {
        return Err(Rejection::Segmentation(header.gso_type));
    }
    let size = header.gso_size.to_native();
    if size == 0 || !unfinished {
        return Err(Rejection::Segments { size, flags: header.flags });
    }
    // A hint, which may be anything: no more than there is.
    let hint = u64::from(header.hdr_len.to_native()).min(bytes);
    checked.hdr_len = u16::try_from(hint).unwrap_or(u16::MAX).into();
    (checked.gso_type, checked.gso_size) = (header.gso_type, header.gso_size);
    Ok(checked)
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
