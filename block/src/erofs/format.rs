//! The structures of EROFS on disk, with the names of Linux's `fs/erofs/erofs_fs.h`. All numbers are little-endian.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

/// Block size in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub(super) const BLOCK_BITS: u8 = 12;
/// Offset of the superblock in the first block.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// An inode's number counts units of this many bytes from the start of the metadata area.
pub(super) const SLOT_SIZE: u64 = 32;
/// Longest name of a directory entry.
pub(super) const MAX_NAME: usize = 255;
/// In a list of chunks, one without data.
pub(super) const HOLE: u32 = u32::MAX;
/// Bits of a chunk format that give the size of chunks.
pub(super) const CHUNK_BITS_MASK: u32 = 0x1f;
/// Bit of a chunk format: the list has entries of the type [`ChunkIndex`], not only block numbers.
pub(super) const CHUNK_INDEXES: u32 = 0x20;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
pub(super) const COMPAT_CHECKSUM: u32 = 1 << 0;
pub(super) const COMPAT_MTIME: u32 = 1 << 1;
/// Compressed data is aligned at its end, not at its start: without effect on an image without compressed data.
pub(super) const INCOMPAT_ZERO_PADDING: u32 = 1 << 0;
/// Some files are lists of chunks.
pub(super) const INCOMPAT_CHUNKED: u32 = 1 << 2;
/// Data lies on further devices.
pub(super) const INCOMPAT_DEVICES: u32 = 1 << 3;

/// `erofs_super_block`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub magic: U32,
    /// CRC-32C from here to the end of the block, with this field as zero.
    pub checksum: U32,
    pub feature_compat: U32,
    pub blkszbits: u8,
    pub sb_extslots: u8,
    pub root_nid: U16,
    pub inos: U64,
    /// The time of compact inodes.
    pub build_time: U64,
    pub build_time_nsec: U32,
    /// Number of blocks of the image itself.
    pub blocks: U32,
    pub meta_blkaddr: U32,
    pub xattr_blkaddr: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub feature_incompat: U32,
    pub available_compr_algs: U16,
    pub extra_devices: U16,
    /// Offset of the device table in units of its entries.
    pub devt_slotoff: U16,
    pub dirblkbits: u8,
    pub xattr_prefix_count: u8,
    pub xattr_prefix_start: U32,
    pub packed_nid: U64,
    pub xattr_filter_reserved: u8,
    pub reserved2: [u8; 23],
}

/// `erofs_deviceslot`: a further device whose blocks are mapped behind the image's own.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct DeviceSlot {
    /// A label, which only people and tools read.
    pub tag: [u8; 64],
    pub blocks: U32,
    /// Number of its first block in the address space of image and devices together.
    pub mapped_blkaddr: U32,
    pub reserved: [u8; 56],
}

/// `erofs_inode_compact`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct InodeCompact {
    pub i_format: U16,
    pub i_xattr_icount: U16,
    pub i_mode: U16,
    pub i_nlink: U16,
    pub i_size: U32,
    pub i_reserved: U32,
    pub i_u: U32,
    pub i_ino: U32,
    pub i_uid: U16,
    pub i_gid: U16,
    pub i_reserved2: U32,
}

/// `erofs_inode_extended`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct InodeExtended {
    pub i_format: U16,
    pub i_xattr_icount: U16,
    pub i_mode: U16,
    pub i_reserved: U16,
    pub i_size: U64,
    pub i_u: U32,
    pub i_ino: U32,
    pub i_uid: U32,
    pub i_gid: U32,
    pub i_mtime: U64,
    pub i_mtime_nsec: U32,
    pub i_nlink: U32,
    pub i_reserved2: [u8; 16],
}

/// `erofs_inode_chunk_index`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct ChunkIndex {
    pub advise: U16,
    pub device_id: U16,
    pub blkaddr: U32,
}

/// `erofs_dirent`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct Dirent {
    pub nid: U64,
    /// Offset of the name in the block.
    pub nameoff: U16,
    pub file_type: u8,
    pub reserved: u8,
}

/// `erofs_xattr_ibody_header`: before an inode's extended attributes. The numbers of shared ones follow it.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct XattrIbodyHeader {
    pub h_name_filter: U32,
    pub h_shared_count: u8,
    pub h_reserved2: [u8; 7],
}

/// `erofs_xattr_entry`: before an extended attribute's name and value.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub e_name_len: u8,
    pub e_name_index: u8,
    pub e_value_size: U16,
}

// The sizes that Linux checks when it is built (`erofs_check_ondisk_layout_definitions`).
const _: () = {
    assert!(size_of::<SuperBlock>() == 128);
    assert!(size_of::<DeviceSlot>() == 128);
    assert!(size_of::<InodeCompact>() == 32);
    assert!(size_of::<InodeExtended>() == 64);
    assert!(size_of::<ChunkIndex>() == 8);
    assert!(size_of::<Dirent>() == 12);
    assert!(size_of::<XattrIbodyHeader>() == 12);
    assert!(size_of::<XattrEntry>() == 4);
};
