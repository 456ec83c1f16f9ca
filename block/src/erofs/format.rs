//! On-disk structures of EROFS as plain types (Linux, `fs/erofs/erofs_fs.h`). All numbers are little-endian.

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

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1 << 0;
const COMPAT_MTIME: u32 = 1 << 1;

/// The superblock. Fields that are always zero here are left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    /// Inode number of the root directory.
    pub root: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of blocks of the whole image.
    pub blocks: u32,
    /// First block of the metadata area.
    pub metadata_block: u32,
    /// Identity of the file system.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The first block of the image, with its checksum.
    pub fn encode(&self) -> [u8; BLOCK_SIZE as usize] {
        let mut block = [0; BLOCK_SIZE as usize];
        let superblock = &mut block[SUPERBLOCK_OFFSET..];
        put(superblock, 0, &MAGIC.to_le_bytes());
        put(superblock, 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        superblock[12] = BLOCK_BITS;
        put(superblock, 14, &self.root.to_le_bytes());
        put(superblock, 16, &self.inodes.to_le_bytes());
        put(superblock, 36, &self.blocks.to_le_bytes());
        put(superblock, 40, &self.metadata_block.to_le_bytes());
        put(superblock, 48, &self.uuid);
        // Over the rest of the block with the checksum itself as zero.
        let checksum = crc32c(superblock);
        put(superblock, 4, &checksum.to_le_bytes());
        block
    }
}

/// Where an inode's data lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DataLayout {
    /// In consecutive whole blocks.
    Plain = 0,
    /// The same, but the last, incomplete block follows the inode. Never used for regular files.
    Inline = 2,
}

/// An extended inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeHeader {
    pub layout: DataLayout,
    /// Size of the extended attributes behind the inode: zero or what [`super::xattr`] says.
    pub xattr_bytes: u64,
    /// File type and permissions.
    pub mode: u16,
    pub size: u64,
    /// First data block, or the device number of a device node.
    pub block_or_device: u32,
    pub serial: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub mtime_nanoseconds: u32,
    pub links: u32,
}

impl InodeHeader {
    pub fn encode(&self) -> [u8; INODE_SIZE as usize] {
        const EXTENDED: u16 = 1;
        let mut inode = [0; INODE_SIZE as usize];
        put(&mut inode, 0, &(EXTENDED | (self.layout as u16) << 1).to_le_bytes());
        put(&mut inode, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(&mut inode, 4, &self.mode.to_le_bytes());
        put(&mut inode, 8, &self.size.to_le_bytes());
        put(&mut inode, 16, &self.block_or_device.to_le_bytes());
        put(&mut inode, 20, &self.serial.to_le_bytes());
        put(&mut inode, 24, &self.uid.to_le_bytes());
        put(&mut inode, 28, &self.gid.to_le_bytes());
        put(&mut inode, 32, &self.mtime_seconds.to_le_bytes());
        put(&mut inode, 40, &self.mtime_nanoseconds.to_le_bytes());
        put(&mut inode, 44, &self.links.to_le_bytes());
        inode
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
pub(super) const fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
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
        assert_eq!(encode_device(8, 1), 0x801);
        assert_eq!(encode_device(259, 0x1_2345), 0x1231_0345);
    }
}
