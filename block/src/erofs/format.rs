//! On-disk structures of EROFS as plain types (Linux, `fs/erofs/erofs_fs.h`). All numbers are little-endian.

use super::tree::{Device, Timestamp};

/// Block size in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub(super) const BLOCK_BITS: u8 = 12;
/// Where the superblock begins in the first block.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// An inode's number counts units of this many bytes from the start of the metadata area.
pub(super) const SLOT_SIZE: u64 = 32;
/// Size of an extended inode.
pub(super) const INODE_SIZE: u64 = 64;
/// Size of a directory entry without its name.
pub(super) const DIRENT_SIZE: usize = 12;
/// Longest name of a directory entry.
pub(super) const MAX_NAME: usize = 255;
/// Size of the header before an inode's extended attributes.
pub(super) const XATTR_HEADER_SIZE: usize = 12;
/// Size of an extended attribute's header before name and value.
pub(super) const XATTR_ENTRY_SIZE: usize = 4;

/// Size of an inode in its short form.
pub(super) const COMPACT_INODE_SIZE: u64 = 32;
/// Where the table of further devices begins, right behind the superblock.
pub(super) const DEVICE_TABLE_OFFSET: usize = SUPERBLOCK_OFFSET + 128;
/// Size of an entry of that table.
pub(super) const DEVICE_SLOT_SIZE: usize = 128;
/// In a list of chunks, one that has no data.
pub(super) const HOLE: u32 = u32::MAX;
/// Bits of the number that says how large chunks are.
pub(super) const CHUNK_BITS_MASK: u32 = 0x1f;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// In the form of a list of chunks: entries have eight bytes, with a device's number.
pub(super) const CHUNK_INDEXES: u32 = 0x20;
const COMPAT_CHECKSUM: u32 = 1 << 0;
const COMPAT_MTIME: u32 = 1 << 1;
/// Where data is compressed, its end and not its start is aligned: means nothing where none is.
const INCOMPAT_ZERO_PADDING: u32 = 1 << 0;
/// Some files are lists of chunks.
pub(super) const INCOMPAT_CHUNKED: u32 = 1 << 2;
/// Data lies on further devices.
pub(super) const INCOMPAT_DEVICES: u32 = 1 << 3;

/// The superblock. Fields that are always zero here are left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Superblock {
    /// Inode number of the root directory.
    pub root: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// The time of inodes in the short form.
    pub time: Timestamp,
    /// Number of blocks of the image itself.
    pub blocks: u32,
    /// First block of the metadata area.
    pub metadata_block: u32,
    /// First block of the shared extended attributes.
    pub xattr_block: u32,
    /// Identity of the file system.
    pub uuid: [u8; 16],
    /// Features without which an image can't be read.
    pub incompatible: u32,
}

/// A further device whose blocks are mapped behind the image's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceSlot {
    /// What it is known by; nothing reads that but people and tools.
    pub tag: [u8; 64],
    /// Its size in blocks.
    pub blocks: u32,
    /// Number of its first block where image and devices are one.
    pub mapped_block: u32,
}

impl Superblock {
    /// The superblock's blocks, with its checksum and the table of `devices`.
    pub fn encode(&self, devices: &[DeviceSlot]) -> Vec<u8> {
        let mut blocks = vec![0; header_bytes(devices.len())];
        let superblock = &mut blocks[SUPERBLOCK_OFFSET..];
        put(superblock, 0, &MAGIC.to_le_bytes());
        put(superblock, 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        superblock[12] = BLOCK_BITS;
        put(superblock, 14, &self.root.to_le_bytes());
        put(superblock, 16, &self.inodes.to_le_bytes());
        put(superblock, 24, &self.time.seconds.to_le_bytes());
        put(superblock, 32, &self.time.nanoseconds.to_le_bytes());
        put(superblock, 36, &self.blocks.to_le_bytes());
        put(superblock, 40, &self.metadata_block.to_le_bytes());
        put(superblock, 44, &self.xattr_block.to_le_bytes());
        put(superblock, 48, &self.uuid);
        put(superblock, 80, &self.incompatible.to_le_bytes());
        if !devices.is_empty() {
            #[allow(clippy::cast_possible_truncation, reason = "the number of devices is checked by the writer")]
            put(superblock, 86, &(devices.len() as u16).to_le_bytes());
            put(superblock, 88, &((DEVICE_TABLE_OFFSET / DEVICE_SLOT_SIZE) as u16).to_le_bytes());
        }
        for (device, slot) in devices.iter().zip(blocks[DEVICE_TABLE_OFFSET..].chunks_exact_mut(DEVICE_SLOT_SIZE)) {
            put(slot, 0, &device.tag);
            put(slot, 64, &device.blocks.to_le_bytes());
            put(slot, 68, &device.mapped_block.to_le_bytes());
        }
        // Over the rest of the block with the checksum itself as zero.
        let checksum = crc32c(&blocks[SUPERBLOCK_OFFSET..BLOCK_SIZE as usize]);
        put(&mut blocks, SUPERBLOCK_OFFSET + 4, &checksum.to_le_bytes());
        blocks
    }

    /// Reads the first block of an image whose data is its own.
    ///
    /// # Errors
    /// What is wrong with it, or which feature it needs that layers don't have.
    pub fn decode(block: &[u8; BLOCK_SIZE as usize]) -> Result<Self, &'static str> {
        let superblock = &block[SUPERBLOCK_OFFSET..];
        let fields = Self::fields(superblock).ok_or("is too short")?;
        let number = |offset| get_u32(superblock, offset);
        if number(0) != Some(MAGIC) {
            return Err("is not that of an EROFS image");
        }
        let mut unsigned = superblock.to_owned();
        put(&mut unsigned, 4, &[0; 4]);
        let has_checksum = number(8).is_some_and(|features| features & COMPAT_CHECKSUM != 0);
        if has_checksum && number(4) != Some(crc32c(&unsigned)) {
            return Err("is damaged: its checksum is another");
        }
        if superblock[12] != BLOCK_BITS || superblock[90] != 0 {
            return Err("has blocks of another size than 4096 bytes");
        }
        if fields.incompatible & !(INCOMPAT_ZERO_PADDING | INCOMPAT_CHUNKED) != 0 {
            return Err("has features that layers can't have, such as compression or further devices");
        }
        Ok(fields)
    }

    fn fields(superblock: &[u8]) -> Option<Self> {
        Some(Self {
            root: get_u16(superblock, 14)?,
            inodes: get_u64(superblock, 16)?,
            time: Timestamp { seconds: get_u64(superblock, 24)?.cast_signed(), nanoseconds: get_u32(superblock, 32)? },
            blocks: get_u32(superblock, 36)?,
            metadata_block: get_u32(superblock, 40)?,
            xattr_block: get_u32(superblock, 44)?,
            uuid: superblock.get(48..64)?.try_into().ok()?,
            incompatible: get_u32(superblock, 80)?,
        })
    }
}

/// Bytes of the blocks with the superblock and a table of so many devices.
pub(super) const fn header_bytes(devices: usize) -> usize {
    (DEVICE_TABLE_OFFSET + devices * DEVICE_SLOT_SIZE).next_multiple_of(BLOCK_SIZE as usize)
}

/// Where an inode's data lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DataLayout {
    /// In consecutive whole blocks.
    Plain = 0,
    /// The same, but the last, incomplete block follows the inode. Never used for regular files.
    Inline = 2,
    /// In chunks of one size; the number of each one's first block follows the inode.
    Chunks = 4,
}

/// An inode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InodeHeader {
    /// In the short form, which has no time and only small numbers.
    pub compact: bool,
    pub layout: DataLayout,
    /// Size of the extended attributes behind the inode: zero or what [`super::xattr`] says.
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
    #[allow(clippy::cast_possible_truncation, reason = "the layout chooses the short form where all fields fit it")]
    pub fn encode(&self, into: &mut Vec<u8>) {
        const EXTENDED: u16 = 1;
        let start = into.len();
        let format = (self.layout as u16) << 1;
        if self.compact {
            into.resize(start + COMPACT_INODE_SIZE as usize, 0);
            let inode = &mut into[start..];
            put(inode, 0, &format.to_le_bytes());
            put(inode, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
            put(inode, 4, &self.mode.to_le_bytes());
            put(inode, 6, &(self.links as u16).to_le_bytes());
            put(inode, 8, &(self.size as u32).to_le_bytes());
            put(inode, 16, &self.block_or_device.to_le_bytes());
            put(inode, 20, &self.serial.to_le_bytes());
            put(inode, 24, &(self.uid as u16).to_le_bytes());
            put(inode, 26, &(self.gid as u16).to_le_bytes());
            return;
        }
        into.resize(start + INODE_SIZE as usize, 0);
        let inode = &mut into[start..];
        put(inode, 0, &(EXTENDED | format).to_le_bytes());
        put(inode, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(inode, 4, &self.mode.to_le_bytes());
        put(inode, 8, &self.size.to_le_bytes());
        put(inode, 16, &self.block_or_device.to_le_bytes());
        put(inode, 20, &self.serial.to_le_bytes());
        put(inode, 24, &self.uid.to_le_bytes());
        put(inode, 28, &self.gid.to_le_bytes());
        put(inode, 32, &self.time.seconds.to_le_bytes());
        put(inode, 40, &self.time.nanoseconds.to_le_bytes());
        put(inode, 44, &self.links.to_le_bytes());
    }

    /// Reads the inode at the start of `bytes`; `time` is the superblock's.
    ///
    /// # Errors
    /// Which part of it is wrong.
    pub fn decode(bytes: &[u8], time: Timestamp) -> Result<Self, &'static str> {
        let layout = match get_u16(bytes, 0).map(|format| format >> 1) {
            Some(0) => DataLayout::Plain,
            Some(2) => DataLayout::Inline,
            Some(4) => DataLayout::Chunks,
            Some(1 | 3) => return Err("place of data: it is compressed"),
            _ => return Err("form"),
        };
        Self::fields(bytes, layout, time).filter(|header| header.time.nanoseconds < 1_000_000_000).ok_or("header")
    }

    fn fields(bytes: &[u8], layout: DataLayout, time: Timestamp) -> Option<Self> {
        let format = get_u16(bytes, 0)?;
        let xattr_bytes = match u64::from(get_u16(bytes, 2)?) {
            0 => 0,
            count => XATTR_HEADER_SIZE as u64 + (count - 1) * XATTR_ENTRY_SIZE as u64,
        };
        let compact = format & 1 == 0;
        let (mode, block_or_device, serial) = (get_u16(bytes, 4)?, get_u32(bytes, 16)?, get_u32(bytes, 20)?);
        Some(if compact {
            Self {
                compact,
                layout,
                xattr_bytes,
                mode,
                size: get_u32(bytes, 8)?.into(),
                block_or_device,
                serial,
                uid: get_u16(bytes, 24)?.into(),
                gid: get_u16(bytes, 26)?.into(),
                time,
                links: get_u16(bytes, 6)?.into(),
            }
        } else {
            let time = Timestamp { seconds: get_u64(bytes, 32)?.cast_signed(), nanoseconds: get_u32(bytes, 40)? };
            Self {
                compact,
                layout,
                xattr_bytes,
                mode,
                size: get_u64(bytes, 8)?,
                block_or_device,
                serial,
                uid: get_u32(bytes, 24)?,
                gid: get_u32(bytes, 28)?,
                time,
                links: get_u32(bytes, 44)?,
            }
        })
    }

    /// Bytes that it takes.
    pub const fn bytes(&self) -> u64 {
        if self.compact { COMPACT_INODE_SIZE } else { INODE_SIZE }
    }
}

/// Largest extended attribute area whose size an inode can state.
pub(super) const MAX_XATTR_BYTES: u64 = (XATTR_HEADER_SIZE + XATTR_ENTRY_SIZE * (u16::MAX as usize - 1)) as u64;

/// How an inode states the size of its extended attributes: the header counts one, each four bytes behind it one more.
#[allow(clippy::cast_possible_truncation, reason = "MAX_XATTR_BYTES is checked when the image is laid out")]
fn xattr_count(bytes: u64) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - XATTR_HEADER_SIZE as u64) / XATTR_ENTRY_SIZE as u64 + 1) as u16 }
}

/// A directory entry's fixed part.
pub(super) fn encode_dirent(nid: u64, name_offset: u16, file_type: u8) -> [u8; DIRENT_SIZE] {
    let mut dirent = [0; DIRENT_SIZE];
    put(&mut dirent, 0, &nid.to_le_bytes());
    put(&mut dirent, 8, &name_offset.to_le_bytes());
    dirent[10] = file_type;
    dirent
}

/// Linux's 32-bit encoding of a device number (`new_encode_dev`).
pub(super) const fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// The device number that [`encode_device`] made.
pub(super) const fn decode_device(encoded: u32) -> Device {
    Device { major: (encoded >> 8) & 0xfff, minor: (encoded & 0xff) | (encoded >> 12 & !0xff) }
}

pub(super) fn get_u16(from: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*from.get(offset..)?.first_chunk()?))
}

pub(super) fn get_u32(from: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*from.get(offset..)?.first_chunk()?))
}

pub(super) fn get_u64(from: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*from.get(offset..)?.first_chunk()?))
}

fn put(into: &mut [u8], offset: usize, bytes: &[u8]) {
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C as Linux's `crc32c(~0, ...)` computes it: without the final inversion.
fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn devices_beyond_eight_bits_of_minor() {
        for (major, minor, encoded) in [(8, 1, 0x801), (259, 0x1_2345, 0x1231_0345), (0xfff, 0xf_ffff, u32::MAX)] {
            assert_eq!(encode_device(Device { major, minor }), encoded);
            assert_eq!(decode_device(encoded), Device { major, minor });
        }
    }
}
