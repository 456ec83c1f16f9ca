//! Inodes, in both forms that EROFS has.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::format::{InodeCompact, InodeExtended};
use super::tree::{Device, Timestamp};
use super::xattr;

/// Bit of `i_format` that marks an extended inode.
const EXTENDED: u16 = 1;

/// Where an inode's data lies (`EROFS_INODE_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DataLayout {
    /// In consecutive whole blocks.
    Plain = 0,
    /// The same, but the last, incomplete block follows the inode. Never used for regular files.
    Inline = 2,
    /// In chunks of one size; the number of each one's first block follows the inode.
    Chunks = 4,
}

/// An inode, in either form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InodeHeader {
    /// In the compact form, which has no time and only small numbers.
    pub compact: bool,
    pub layout: DataLayout,
    /// Size of the extended attributes behind the inode.
    pub xattr_bytes: u64,
    /// File type and permissions.
    pub mode: u16,
    pub size: u64,
    /// First data block, the device number of a device node, or the form of the list of chunks.
    pub block_or_device: u32,
    pub serial: u32,
    pub uid: u32,
    pub gid: u32,
    pub time: Timestamp,
    pub links: u32,
}

impl InodeHeader {
    /// Appends it.
    #[allow(clippy::cast_possible_truncation, reason = "the layout chooses the compact form where all fields fit it")]
    pub fn encode(&self, into: &mut Vec<u8>) {
        let format = (self.layout as u16) << 1;
        if self.compact {
            let inode = InodeCompact {
                i_format: format.into(),
                i_xattr_icount: xattr::count(self.xattr_bytes).into(),
                i_mode: self.mode.into(),
                i_nlink: U16::new(self.links as u16),
                i_size: U32::new(self.size as u32),
                i_u: self.block_or_device.into(),
                i_ino: self.serial.into(),
                i_uid: U16::new(self.uid as u16),
                i_gid: U16::new(self.gid as u16),
                ..InodeCompact::new_zeroed()
            };
            into.extend(inode.as_bytes());
        } else {
            let inode = InodeExtended {
                i_format: (format | EXTENDED).into(),
                i_xattr_icount: xattr::count(self.xattr_bytes).into(),
                i_mode: self.mode.into(),
                i_size: self.size.into(),
                i_u: self.block_or_device.into(),
                i_ino: self.serial.into(),
                i_uid: self.uid.into(),
                i_gid: self.gid.into(),
                i_mtime: U64::new(self.time.seconds.cast_unsigned()),
                i_mtime_nsec: self.time.nanoseconds.into(),
                i_nlink: self.links.into(),
                ..InodeExtended::new_zeroed()
            };
            into.extend(inode.as_bytes());
        }
    }

    /// Reads the inode at the start of `bytes`; `time` is the superblock's.
    ///
    /// # Errors
    /// Which part of it is wrong.
    pub fn decode(bytes: &[u8], time: Timestamp) -> Result<Self, &'static str> {
        let (format, _) = U16::read_from_prefix(bytes).map_err(|_| "form")?;
        let layout = match format.get() >> 1 {
            0 => DataLayout::Plain,
            2 => DataLayout::Inline,
            4 => DataLayout::Chunks,
            1 | 3 => return Err("place of data: it is compressed"),
            _ => return Err("form"),
        };
        let header = if format.get() & EXTENDED == 0 {
            let (inode, _) = InodeCompact::read_from_prefix(bytes).map_err(|_| "header")?;
            Self {
                compact: true,
                layout,
                xattr_bytes: xattr::bytes(inode.i_xattr_icount.get()),
                mode: inode.i_mode.get(),
                size: inode.i_size.get().into(),
                block_or_device: inode.i_u.get(),
                serial: inode.i_ino.get(),
                uid: inode.i_uid.get().into(),
                gid: inode.i_gid.get().into(),
                time,
                links: inode.i_nlink.get().into(),
            }
        } else {
            let (inode, _) = InodeExtended::read_from_prefix(bytes).map_err(|_| "header")?;
            let seconds = inode.i_mtime.get().cast_signed();
            Self {
                compact: false,
                layout,
                xattr_bytes: xattr::bytes(inode.i_xattr_icount.get()),
                mode: inode.i_mode.get(),
                size: inode.i_size.get(),
                block_or_device: inode.i_u.get(),
                serial: inode.i_ino.get(),
                uid: inode.i_uid.get(),
                gid: inode.i_gid.get(),
                time: Timestamp { seconds, nanoseconds: inode.i_mtime_nsec.get() },
                links: inode.i_nlink.get(),
            }
        };
        if header.time.nanoseconds < 1_000_000_000 { Ok(header) } else { Err("header") }
    }

    /// Its size in bytes.
    pub const fn bytes(&self) -> u64 {
        Self::size_of(self.compact)
    }

    /// The size in bytes of an inode in this form.
    pub const fn size_of(compact: bool) -> u64 {
        (if compact { size_of::<InodeCompact>() } else { size_of::<InodeExtended>() }) as u64
    }
}

/// Linux's 32-bit encoding of a device number (`new_encode_dev`).
pub(super) const fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// The device number that [`encode_device`] made.
pub(super) const fn decode_device(encoded: u32) -> Device {
    Device { major: (encoded >> 8) & 0xfff, minor: (encoded & 0xff) | (encoded >> 12 & !0xff) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_beyond_eight_bits_of_minor() {
        for (major, minor, encoded) in [(8, 1, 0x801), (259, 0x1_2345, 0x1231_0345), (0xfff, 0xf_ffff, u32::MAX)] {
            assert_eq!(encode_device(Device { major, minor }), encoded);
            assert_eq!(decode_device(encoded), Device { major, minor });
        }
    }
}
