//! Reads the metadata of an image that [`super::ImageWriter`] made back into a tree. No file's data is read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::{
    BLOCK_SIZE, CHUNK_BITS_MASK, DIRENT_SIZE, DataLayout, HOLE, INCOMPAT_CHUNKED, InodeHeader, MAX_NAME, SLOT_SIZE,
    Superblock, decode_device, get_u16, get_u64,
};
use super::tree::{Blocks, Content, Directory, FileData, InodeId, Metadata, Tree};
use super::xattr;

/// No image has more metadata than this: what the importer's limits leave room for, and some.
const MAX_METADATA: u64 = 2 << 30;

/// Why an image's tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused it.
    #[error("cannot read it")]
    Io(#[from] io::Error),
    /// Not an EROFS image, one with features that layers don't have, or a damaged superblock.
    #[error("it does not begin as a layer does")]
    Superblock,
    /// More metadata than fits in memory.
    #[error("it has {0} bytes of metadata; at most {MAX_METADATA} are read")]
    TooLarge(u64),
    /// An inode with what it can't have.
    #[error("inode {nid} has an invalid {what}")]
    Inode {
        /// Its number.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Reads the tree of the layer in `image`, whose file data lies on device `device` as its new user sees it.
///
/// # Errors
/// The file is unreadable or damaged.
pub fn read_tree(image: &File, device: u16) -> Result<Tree, ReadError> {
    let mut first = [0; BLOCK_SIZE as usize];
    image.read_exact_at(&mut first, 0)?;
    let superblock = Superblock::decode(&first).ok_or(ReadError::Superblock)?;
    if superblock.incompatible & !INCOMPAT_CHUNKED != 0 {
        return Err(ReadError::Superblock);
    }
    let start = u64::from(superblock.metadata_block) * BLOCK_SIZE;
    let end = u64::from(superblock.blocks) * BLOCK_SIZE;
    let bytes = end.checked_sub(start).ok_or(ReadError::Superblock)?;
    if bytes > MAX_METADATA || end > image.metadata()?.len() {
        return Err(ReadError::TooLarge(bytes));
    }
    let mut area = vec![0; usize::try_from(bytes).map_err(|_| ReadError::TooLarge(bytes))?];
    image.read_exact_at(&mut area, start)?;
    let shared = (u64::from(superblock.xattr_block) * BLOCK_SIZE).checked_sub(start);
    let shared = shared.and_then(|offset| area.get(usize::try_from(offset).ok()?..)).unwrap_or_default();
    let mut reader =
        Reader { superblock, area: &area, start, shared, device, tree: Tree::default(), known: HashMap::new() };
    reader.read()?;
    Ok(reader.tree)
}

struct Reader<'a> {
    superblock: Superblock,
    /// All metadata.
    area: &'a [u8],
    /// Where it begins in the image.
    start: u64,
    /// The shared extended attributes and what follows them.
    shared: &'a [u8],
    device: u16,
    tree: Tree,
    /// What was read, by inode number.
    known: HashMap<u64, InodeId>,
}

impl Reader<'_> {
    fn read(&mut self) -> Result<(), ReadError> {
        let root = u64::from(self.superblock.root);
        let (metadata, content, entries) = self.inode(root)?;
        let Content::Directory(_) = content else { return Err(ReadError::Inode { nid: root, what: "type" }) };
        *self.tree.metadata_mut(Tree::ROOT) = metadata;
        self.known.insert(root, Tree::ROOT);
        let mut pending = vec![(root, Tree::ROOT, entries)];
        while let Some((nid, id, entries)) = pending.pop() {
            let mut directory = Directory::default();
            for (name, child) in entries {
                let known = match self.known.get(&child) {
                    // Only files have several names.
                    Some(known) if self.tree.directory(*known).is_some() => {
                        return Err(ReadError::Inode { nid, what: "directory entry" });
                    }
                    Some(known) => *known,
                    None => {
                        let (metadata, content, entries) = self.inode(child)?;
                        let is_directory = matches!(content, Content::Directory(_));
                        let new = self.tree.add(metadata, content);
                        self.known.insert(child, new);
                        if is_directory {
                            pending.push((child, new, entries));
                        }
                        new
                    }
                };
                directory.entries.insert(name, known);
            }
            if let Some(place) = self.tree.directory_mut(id) {
                *place = directory;
            }
        }
        Ok(())
    }

    /// An inode and, if it is a directory, its entries.
    #[allow(clippy::type_complexity, reason = "taken apart at once by both callers")]
    fn inode(&self, nid: u64) -> Result<(Metadata, Content, Vec<(Box<[u8]>, u64)>), ReadError> {
        let error = |what| move || ReadError::Inode { nid, what };
        let offset = nid.checked_mul(SLOT_SIZE).and_then(|offset| usize::try_from(offset).ok());
        let bytes = offset.and_then(|offset| self.area.get(offset..)).ok_or_else(error("number"))?;
        let header = InodeHeader::decode(bytes, self.superblock.time).ok_or_else(error("header"))?;
        let (head, xattr_bytes) = (length(header.bytes()), length(header.xattr_bytes));
        let xattrs = bytes.get(head..head.saturating_add(xattr_bytes)).ok_or_else(error("size of attributes"))?;
        let rest = &bytes[head + xattr_bytes..];
        let xattrs = xattr::decode(xattrs, self.shared).ok_or_else(error("extended attribute"))?;
        let mut entries = Vec::new();
        let content = match u32::from(header.mode) & libc::S_IFMT {
            libc::S_IFDIR => {
                let data = self.data(&header, rest).ok_or_else(error("directory"))?;
                entries = directory_entries(&data).ok_or_else(error("directory"))?;
                Content::Directory(Directory::default())
            }
            libc::S_IFLNK => {
                let data = self.data(&header, rest).ok_or_else(error("link target"))?;
                Content::Symlink(data.into())
            }
            libc::S_IFREG => Content::File(self.file(&header, rest).ok_or_else(error("place of data"))?),
            libc::S_IFCHR => Content::CharDevice(decode_device(header.block_or_device)),
            libc::S_IFBLK => Content::BlockDevice(decode_device(header.block_or_device)),
            libc::S_IFIFO => Content::Fifo,
            libc::S_IFSOCK => Content::Socket,
            _ => return Err(error("type")()),
        };
        let metadata = Metadata {
            permissions: header.mode & 0o7777,
            uid: header.uid,
            gid: header.gid,
            mtime: header.time,
            xattrs,
            implied: header.serial == 0,
        };
        Ok((metadata, content, entries))
    }

    /// The data of a directory or symbolic link.
    fn data(&self, header: &InodeHeader, rest: &[u8]) -> Option<Vec<u8>> {
        let size = usize::try_from(header.size).ok()?;
        let inline = match header.layout {
            DataLayout::Plain => 0,
            DataLayout::Inline => size % length(BLOCK_SIZE),
            DataLayout::Chunks => return None,
        };
        let mut data = Vec::new();
        if size > inline {
            let start = (u64::from(header.block_or_device) * BLOCK_SIZE).checked_sub(self.start)?;
            data.extend(self.area.get(usize::try_from(start).ok()?..)?.get(..size - inline)?);
        }
        data.extend(rest.get(..inline)?);
        Some(data)
    }

    /// Where a regular file's data is; all of it before the metadata.
    fn file(&self, header: &InodeHeader, rest: &[u8]) -> Option<FileData> {
        let within = |block: u32, bytes: u64| {
            let end = u64::from(block).checked_add(bytes.div_ceil(BLOCK_SIZE))?;
            (end <= self.superblock.metadata_block.into()).then_some(block)
        };
        let blocks = match header.layout {
            DataLayout::Plain => Blocks::Contiguous(within(header.block_or_device, header.size)?),
            DataLayout::Inline => return None,
            DataLayout::Chunks => {
                let bits = header.block_or_device;
                if bits & !CHUNK_BITS_MASK != 0 {
                    return None;
                }
                let chunk = BLOCK_SIZE << bits;
                let count = usize::try_from(header.size.div_ceil(chunk)).ok()?;
                let list = rest.get(..count.checked_mul(4)?)?.as_chunks::<4>().0;
                let first =
                    list.iter().zip(0..).map(|(entry, index): (&[u8; 4], u64)| match u32::from_le_bytes(*entry) {
                        HOLE => Some(None),
                        block => within(block, chunk.min(header.size - index * chunk)).map(Some),
                    });
                Blocks::Chunks { bits: u8::try_from(bits).ok()?, first: first.collect::<Option<_>>()? }
            }
        };
        Some(FileData { bytes: header.size, device: self.device, blocks })
    }
}

/// The names and inode numbers in a directory's data, without `.` and `..`.
fn directory_entries(data: &[u8]) -> Option<Vec<(Box<[u8]>, u64)>> {
    let mut entries = Vec::new();
    for block in data.chunks(length(BLOCK_SIZE)) {
        // The first name begins where the entries end.
        let names = usize::from(get_u16(block, 8)?);
        if names % DIRENT_SIZE != 0 || names == 0 {
            return None;
        }
        let count = names / DIRENT_SIZE;
        for index in 0..count {
            let dirent = block.get(index * DIRENT_SIZE..)?;
            let start = usize::from(get_u16(dirent, 8)?);
            let end = if index + 1 < count { get_u16(dirent, DIRENT_SIZE + 8)?.into() } else { block.len() };
            let name = block.get(start..end)?;
            // In a block that is not the last one, zeros follow the last name.
            let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
            if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') {
                return None;
            }
            if name != b"." && name != b".." {
                entries.push((name.into(), get_u64(dirent, 0)?));
            }
        }
    }
    Some(entries)
}

/// A length that is in memory, or too large for anything that is.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "reader_test.rs"]
mod tests;
