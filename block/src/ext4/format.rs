//! The structures of ext4 on disk, with the names of Linux's `fs/ext4/ext4.h`. All numbers are little-endian.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes, Unaligned};

/// Block size in bytes.
pub(super) const BLOCK_SIZE: u64 = 4096;
/// Offset of the superblock in the first block.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// Blocks that one block's bits stand for.
pub(super) const BLOCKS_PER_GROUP: u32 = BLOCK_SIZE as u32 * 8;
/// Bytes of an inode on disk.
pub(super) const INODE_SIZE: u16 = 256;
/// Number of the root directory.
pub(super) const ROOT_INO: u32 = 2;
/// The first inode that is not reserved.
pub(super) const FIRST_INO: u32 = 11;

pub(super) const MAGIC: u16 = 0xef53;
/// `EXT4_VALID_FS`: unmounted cleanly.
pub(super) const STATE_VALID: u16 = 1;
/// `EXT4_ERRORS_RO`.
pub(super) const ERRORS_READ_ONLY: u16 = 2;
/// `EXT4_DYNAMIC_REV`.
pub(super) const DYNAMIC_REVISION: u32 = 1;
/// `DX_HASH_HALF_MD4`.
pub(super) const HASH_HALF_MD4: u8 = 1;
/// `EXT2_FLAGS_SIGNED_HASH`.
pub(super) const SIGNED_HASH: u32 = 1;
/// `EXT4_DEFM_XATTR_USER | EXT4_DEFM_ACL`.
pub(super) const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;

pub(super) const COMPAT_EXT_ATTR: u32 = 0x8;
pub(super) const COMPAT_DIR_INDEX: u32 = 0x20;
/// Copies of the superblock are where it says; here, nowhere.
pub(super) const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub(super) const INCOMPAT_FILETYPE: u32 = 0x2;
pub(super) const INCOMPAT_EXTENTS: u32 = 0x40;
pub(super) const RO_COMPAT_LARGE_FILE: u32 = 0x2;
pub(super) const RO_COMPAT_HUGE_FILE: u32 = 0x8;
/// Groups have checksums, and flags for what is not initialised.
pub(super) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
pub(super) const RO_COMPAT_DIR_NLINK: u32 = 0x20;
pub(super) const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;

/// The bitmap and the table of inodes are as if they were empty.
pub(super) const BG_INODE_UNINIT: u16 = 1;
/// The bitmap of blocks follows from the layout.
pub(super) const BG_BLOCK_UNINIT: u16 = 2;
/// The table of inodes is all zeros.
pub(super) const BG_INODE_ZEROED: u16 = 4;

/// `ext4_super_block`.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub inodes_count: U32,
    pub blocks_count_lo: U32,
    pub r_blocks_count_lo: U32,
    pub free_blocks_count_lo: U32,
    pub free_inodes_count: U32,
    pub first_data_block: U32,
    pub log_block_size: U32,
    pub log_cluster_size: U32,
    pub blocks_per_group: U32,
    pub clusters_per_group: U32,
    pub inodes_per_group: U32,
    pub mtime: U32,
    pub wtime: U32,
    pub mnt_count: U16,
    pub max_mnt_count: U16,
    pub magic: U16,
    pub state: U16,
    pub errors: U16,
    pub minor_rev_level: U16,
    pub lastcheck: U32,
    pub checkinterval: U32,
    pub creator_os: U32,
    pub rev_level: U32,
    pub def_resuid: U16,
    pub def_resgid: U16,
    pub first_ino: U32,
    pub inode_size: U16,
    pub block_group_nr: U16,
    pub feature_compat: U32,
    pub feature_incompat: U32,
    pub feature_ro_compat: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub last_mounted: [u8; 64],
    pub algorithm_usage_bitmap: U32,
    pub prealloc_blocks: u8,
    pub prealloc_dir_blocks: u8,
    pub reserved_gdt_blocks: U16,
    /// Of a journal, which there is none of.
    pub journal: [u8; 28],
    pub hash_seed: [u8; 16],
    pub def_hash_version: u8,
    pub jnl_backup_type: u8,
    pub desc_size: U16,
    pub default_mount_opts: U32,
    pub first_meta_bg: U32,
    pub mkfs_time: U32,
    pub jnl_blocks: [u8; 68],
    pub blocks_count_hi: U32,
    pub r_blocks_count_hi: U32,
    pub free_blocks_count_hi: U32,
    pub min_extra_isize: U16,
    pub want_extra_isize: U16,
    pub flags: U32,
    /// What all of its features are off for.
    pub rest: [u8; 668],
}

/// `ext4_group_desc` of a file system without 64-bit numbers.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct GroupDescriptor {
    pub block_bitmap_lo: U32,
    pub inode_bitmap_lo: U32,
    pub inode_table_lo: U32,
    pub free_blocks_count_lo: U16,
    pub free_inodes_count_lo: U16,
    pub used_dirs_count_lo: U16,
    pub flags: U16,
    pub exclude_bitmap_lo: U32,
    pub block_bitmap_csum_lo: U16,
    pub inode_bitmap_csum_lo: U16,
    pub itable_unused_lo: U16,
    /// CRC-16 of what is before it, with the file system's UUID and the number of the group.
    pub checksum: U16,
}

/// `ext4_inode`, whose data is one extent.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct Inode {
    pub mode: U16,
    pub uid: U16,
    pub size_lo: U32,
    pub atime: U32,
    pub ctime: U32,
    pub mtime: U32,
    pub dtime: U32,
    pub gid: U16,
    pub links_count: U16,
    /// In units of 512 bytes.
    pub blocks_lo: U32,
    pub flags: U32,
    pub osd1: U32,
    pub header: ExtentHeader,
    pub extent: Extent,
    pub no_extents: [u8; 36],
    pub generation: U32,
    pub file_acl_lo: U32,
    pub size_high: U32,
    pub obso_faddr: U32,
    pub osd2: [u8; 12],
    pub extra_isize: U16,
    pub rest: [u8; 126],
}

/// `ext4_extent_header`.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct ExtentHeader {
    pub magic: U16,
    pub entries: U16,
    pub max: U16,
    pub depth: U16,
    pub generation: U32,
}

/// `ext4_extent`.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct Extent {
    pub block: U32,
    pub len: U16,
    pub start_hi: U16,
    pub start_lo: U32,
}

/// `ext4_dir_entry_2` with a short name.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(super) struct DirectoryEntry {
    pub inode: U32,
    pub rec_len: U16,
    pub name_len: u8,
    pub file_type: u8,
    pub name: [u8; 4],
}

pub(super) const EXTENT_MAGIC: u16 = 0xf30a;
/// `EXT4_EXTENTS_FL`.
pub(super) const EXTENTS: u32 = 0x8_0000;
/// `EXT4_FT_DIR`.
pub(super) const DIRECTORY: u8 = 2;

const _: () = assert!(size_of::<SuperBlock>() == 1024 && size_of::<GroupDescriptor>() == 32);
const _: () = assert!(size_of::<Inode>() == INODE_SIZE as usize && size_of::<DirectoryEntry>() == 12);
