//! An empty ext4 file system, for a disk of zeros: the few blocks that are not zero.
//!
//! It has no journal, for it never outlives its guest, and no copies of its superblock. All groups but the first and the last say that they
//! are not initialised, so the work and the blocks written do not grow with the disk, but for 32 bytes for each 128 MiB.

mod format;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros as _, IntoBytes as _};

use self::format::{
    BG_BLOCK_UNINIT, BG_INODE_UNINIT, BG_INODE_ZEROED, BLOCK_SIZE, BLOCKS_PER_GROUP, COMPAT_DIR_INDEX, COMPAT_EXT_ATTR,
    COMPAT_SPARSE_SUPER2, DEFAULT_MOUNT_OPTIONS, DIRECTORY, DYNAMIC_REVISION, DirectoryEntry, ERRORS_READ_ONLY,
    EXTENT_MAGIC, EXTENTS, Extent, ExtentHeader, FIRST_INO, GroupDescriptor, HASH_HALF_MD4, INCOMPAT_EXTENTS,
    INCOMPAT_FILETYPE, INODE_SIZE, Inode, MAGIC, RO_COMPAT_DIR_NLINK, RO_COMPAT_EXTRA_ISIZE, RO_COMPAT_GDT_CSUM,
    RO_COMPAT_HUGE_FILE, RO_COMPAT_LARGE_FILE, ROOT_INO, SIGNED_HASH, STATE_VALID, SUPERBLOCK_OFFSET, SuperBlock,
};

/// The smallest and the largest disk, in bytes.
pub const SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=8 << 40;

/// Bytes of a disk for each inode, as `mke2fs` has them.
const BYTES_PER_INODE: u64 = 16 << 10;
const INODES_PER_BLOCK: u32 = (BLOCK_SIZE / INODE_SIZE as u64) as u32;
/// A last group with less room for data than this is left out.
const LEAST_DATA: u32 = 64;
/// Bytes of an inode beyond the first 128 that the kernel uses.
const EXTRA_ISIZE: u16 = 32;

/// What tells one file system from another.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Where the hashes of names in its directories begin.
    pub hash_seed: [u8; 16],
    /// When it was made, in seconds since 1970.
    pub made: u32,
}

/// Bytes of the disk that are not zero, and where they begin.
pub type Piece = (u64, Vec<u8>);

/// The pieces of an empty file system on a disk of `bytes` bytes, in order. Its root directory is everybody's to write in, as `/tmp` is.
/// `None` if no disk of that size can have one: see [`SIZES`].
#[must_use]
pub fn empty(bytes: u64, identity: &Identity) -> Option<Vec<Piece>> {
    let layout = Layout::of(bytes)?;
    let mut start = vec![0; SUPERBLOCK_OFFSET];
    start.extend(layout.superblock(identity).as_bytes());
    start.resize(BLOCK_SIZE as usize, 0);
    (0..layout.groups).for_each(|group| start.extend(layout.descriptor(group, &identity.uuid).as_bytes()));
    start.resize(layout.block_bitmap(0) as usize * BLOCK_SIZE as usize, 0);
    start.extend(bitmap(layout.used(0), layout.group_blocks(0)));
    start.extend(bitmap(FIRST_INO - 1, layout.inodes_per_group));
    start.resize(start.len() + (ROOT_INO as usize - 1) * usize::from(INODE_SIZE), 0);
    start.extend(layout.root(identity.made).as_bytes());
    let mut pieces = vec![(0, start), (u64::from(layout.root_block()) * BLOCK_SIZE, root_directory())];
    let last = layout.groups - 1;
    if last > 0 {
        let bitmap = bitmap(layout.used(last), layout.group_blocks(last));
        pieces.push((u64::from(layout.block_bitmap(last)) * BLOCK_SIZE, bitmap));
    }
    Some(pieces)
}

/// Where things are. All numbers are of blocks.
#[derive(Clone, Copy, Debug)]
struct Layout {
    blocks: u32,
    groups: u32,
    inodes_per_group: u32,
    /// Of each group's table of inodes.
    table: u32,
    /// Of the descriptors of all groups, which stand in the first.
    descriptors: u32,
}

impl Layout {
    fn of(bytes: u64) -> Option<Self> {
        if !SIZES.contains(&bytes) {
            return None;
        }
        let blocks = u32::try_from(bytes / BLOCK_SIZE).ok()?;
        let wanted = u64::from(blocks.min(BLOCKS_PER_GROUP)) * BLOCK_SIZE / BYTES_PER_INODE;
        let inodes_per_group = u32::try_from(wanted).ok()?.next_multiple_of(INODES_PER_BLOCK);
        let table = inodes_per_group / INODES_PER_BLOCK;
        let (whole, rest) = (blocks / BLOCKS_PER_GROUP, blocks % BLOCKS_PER_GROUP);
        // Its bitmaps and its table have to fit into it.
        let (groups, blocks) = match rest {
            0 => (whole, blocks),
            _ if whole > 0 && rest < 2 + table + LEAST_DATA => (whole, whole * BLOCKS_PER_GROUP),
            _ => (whole + 1, blocks),
        };
        let descriptors = (groups * size_of::<GroupDescriptor>() as u32).div_ceil(BLOCK_SIZE as u32);
        Some(Self { blocks, groups, inodes_per_group, table, descriptors })
    }

    fn group_blocks(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// The first block of a group that is its own: superblock and descriptors are before it.
    fn block_bitmap(&self, group: u32) -> u32 {
        group * BLOCKS_PER_GROUP + if group == 0 { 1 + self.descriptors } else { 0 }
    }

    fn root_block(&self) -> u32 {
        self.block_bitmap(0) + 2 + self.table
    }

    /// Blocks of a group that are in use.
    fn used(&self, group: u32) -> u32 {
        if group == 0 { self.root_block() + 1 } else { 2 + self.table }
    }

    fn superblock(&self, identity: &Identity) -> SuperBlock {
        let used: u32 = self.used(0) + (self.groups - 1) * (2 + self.table);
        let inodes = self.inodes_per_group * self.groups;
        SuperBlock {
            inodes_count: inodes.into(),
            blocks_count_lo: self.blocks.into(),
            free_blocks_count_lo: (self.blocks - used).into(),
            free_inodes_count: (inodes - (FIRST_INO - 1)).into(),
            // 1024 bytes, doubled twice.
            log_block_size: U32::new(2),
            log_cluster_size: U32::new(2),
            blocks_per_group: BLOCKS_PER_GROUP.into(),
            clusters_per_group: BLOCKS_PER_GROUP.into(),
            inodes_per_group: self.inodes_per_group.into(),
            wtime: identity.made.into(),
            max_mnt_count: U16::new(u16::MAX),
            magic: MAGIC.into(),
            state: STATE_VALID.into(),
            errors: ERRORS_READ_ONLY.into(),
            lastcheck: identity.made.into(),
            rev_level: DYNAMIC_REVISION.into(),
            first_ino: FIRST_INO.into(),
            inode_size: INODE_SIZE.into(),
            feature_compat: (COMPAT_EXT_ATTR | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2).into(),
            feature_incompat: (INCOMPAT_FILETYPE | INCOMPAT_EXTENTS).into(),
            feature_ro_compat: (RO_COMPAT_LARGE_FILE
                | RO_COMPAT_HUGE_FILE
                | RO_COMPAT_GDT_CSUM
                | RO_COMPAT_DIR_NLINK
                | RO_COMPAT_EXTRA_ISIZE)
                .into(),
            uuid: identity.uuid,
            hash_seed: identity.hash_seed,
            def_hash_version: HASH_HALF_MD4,
            default_mount_opts: DEFAULT_MOUNT_OPTIONS.into(),
            mkfs_time: identity.made.into(),
            min_extra_isize: EXTRA_ISIZE.into(),
            want_extra_isize: EXTRA_ISIZE.into(),
            flags: SIGNED_HASH.into(),
            ..SuperBlock::new_zeroed()
        }
    }

    fn descriptor(&self, group: u32, uuid: &[u8; 16]) -> GroupDescriptor {
        let bitmap = self.block_bitmap(group);
        // Both are at most the blocks of a group.
        let short = |number: u32| U16::new(u16::try_from(number).unwrap_or(u16::MAX));
        let inodes = if group == 0 { self.inodes_per_group - (FIRST_INO - 1) } else { self.inodes_per_group };
        let uninitialised = match group {
            0 => 0,
            // It may end early, and then its bitmap says where.
            last if last == self.groups - 1 => BG_INODE_UNINIT,
            _ => BG_INODE_UNINIT | BG_BLOCK_UNINIT,
        };
        let mut descriptor = GroupDescriptor {
            block_bitmap_lo: bitmap.into(),
            inode_bitmap_lo: (bitmap + 1).into(),
            inode_table_lo: (bitmap + 2).into(),
            free_blocks_count_lo: short(self.group_blocks(group) - self.used(group)),
            free_inodes_count_lo: short(inodes),
            used_dirs_count_lo: short(u32::from(group == 0)),
            flags: (uninitialised | BG_INODE_ZEROED).into(),
            itable_unused_lo: short(inodes),
            ..GroupDescriptor::new_zeroed()
        };
        let bytes = descriptor.as_bytes();
        let before = &bytes[..bytes.len() - size_of::<U16>()];
        let checksum = [&uuid[..], &group.to_le_bytes(), before].into_iter().flatten().fold(u16::MAX, crc16);
        descriptor.checksum = checksum.into();
        descriptor
    }

    /// The root directory, in a block of its own.
    fn root(&self, made: u32) -> Inode {
        const DIRECTORY_OF_ALL: u16 = 0o41777;
        let extent = Extent { len: U16::new(1), start_lo: self.root_block().into(), ..Extent::new_zeroed() };
        let header = ExtentHeader {
            magic: EXTENT_MAGIC.into(),
            entries: U16::new(1),
            max: U16::new(4),
            ..ExtentHeader::new_zeroed()
        };
        Inode {
            mode: DIRECTORY_OF_ALL.into(),
            size_lo: (BLOCK_SIZE as u32).into(),
            atime: made.into(),
            ctime: made.into(),
            mtime: made.into(),
            links_count: U16::new(2),
            blocks_lo: (BLOCK_SIZE as u32 / 512).into(),
            flags: EXTENTS.into(),
            header,
            extent,
            extra_isize: EXTRA_ISIZE.into(),
            ..Inode::new_zeroed()
        }
    }
}

/// The root directory's entries: itself, and its parent, which it is as well.
fn root_directory() -> Vec<u8> {
    let entry = |name: &[u8], rec_len: usize| {
        let mut entry = DirectoryEntry {
            inode: ROOT_INO.into(),
            rec_len: U16::new(rec_len as u16),
            name_len: name.len() as u8,
            file_type: DIRECTORY,
            name: [0; 4],
        };
        entry.name[..name.len()].copy_from_slice(name);
        entry
    };
    let first = size_of::<DirectoryEntry>();
    let mut block = [entry(b".", first), entry(b"..", BLOCK_SIZE as usize - first)].as_bytes().to_vec();
    block.resize(BLOCK_SIZE as usize, 0);
    block
}

/// A block of bits, of which the first `used` are set, and those from `end` on, which stand for nothing.
fn bitmap(used: u32, end: u32) -> Vec<u8> {
    let mut bits = vec![0; BLOCK_SIZE as usize];
    for bit in (0..used).chain(end..BLOCKS_PER_GROUP) {
        bits[bit as usize / 8] |= 1 << (bit % 8);
    }
    bits
}

/// CRC-16 (polynomial 0x8005, the lowest bit first) with one more byte.
fn crc16(crc: u16, byte: &u8) -> u16 {
    (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xa001 } else { 0 })
}

#[cfg(test)]
#[path = "ext4_test.rs"]
mod tests;
