//! Reads the metadata of an image back into a tree: of an image that [`super::ImageWriter`] made, or of a layer that came as an
//! EROFS image. It reads no file's data, and checks all that it reads.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use zerocopy::FromBytes as _;
use zerocopy::little_endian::U32;

use super::format::{
    BLOCK_SIZE, CHUNK_BITS_MASK, CHUNK_INDEXES, ChunkIndex, Dirent, HOLE, MAX_NAME, SLOT_SIZE, SuperBlock,
};
use super::inode::{DataLayout, InodeHeader, decode_device};
use super::journal::{self, Step};
use super::superblock;
use super::tree::{Blocks, Content, Directory, FileData, InodeId, Metadata, Timestamp, Tree};
use super::xattr;

/// Largest metadata of an image in bytes: more than the importer's limits allow.
const MAX_METADATA: u64 = 2 << 30;
/// Most names of an image: more than the importer's limits allow.
const MAX_NAMES: u64 = 4 << 20;
/// Longest target of a symbolic link (Linux, `PATH_MAX` with its end).
const MAX_TARGET: u64 = 4095;
/// How much is read at a time.
const WINDOW: u64 = 128 << 10;
/// How many of these are kept.
const WINDOWS: usize = 16;

/// Why an image's tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused it.
    #[error("cannot read it")]
    Io(#[from] io::Error),
    /// Not an EROFS image, one with features that layers don't have, or a damaged superblock.
    #[error("its superblock {0}")]
    Superblock(&'static str),
    /// More metadata than fits in memory.
    #[error("it has more than {MAX_NAMES} names or {MAX_METADATA} bytes of metadata")]
    TooLarge,
    /// A damaged inode.
    #[error("inode {nid} has an invalid {what}")]
    Inode {
        /// Its number.
        nid: u64,
        /// The cause.
        what: &'static str,
    },
    /// The bytes behind the file system are not a journal.
    #[error("its journal is damaged")]
    Journal,
}

/// A layer's tree and journal.
#[derive(Clone, Debug)]
pub struct LayerTree {
    /// The tree that a mount of the layer shows.
    pub tree: Tree,
    /// The archive's entries, if they are known. Their inodes need not have a name in the tree.
    pub journal: Option<Vec<Step>>,
}

/// The program that made an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// [`super::ImageWriter`].
    Import,
    /// Another program: the image is the layer itself.
    Native,
}

/// Reads the tree of the image in `image`, whose file data lies on device `device` as its new user sees it.
///
/// # Errors
/// The file is unreadable or damaged.
pub fn read_tree(image: &File, device: u16) -> Result<Tree, ReadError> {
    read_layer(image, Origin::Import, device).map(|layer| layer.tree)
}

/// Reads the layer in `image`, whose file data lies on device `device` as its new user sees it.
///
/// # Errors
/// The file is unreadable or damaged.
pub fn read_layer(image: &File, origin: Origin, device: u16) -> Result<LayerTree, ReadError> {
    let bytes = image.metadata()?.len();
    let mut first = [0; BLOCK_SIZE as usize];
    image.read_exact_at(&mut first, 0)?;
    let superblock = superblock::decode(&first).map_err(ReadError::Superblock)?;
    let end = u64::from(superblock.blocks.get()) * BLOCK_SIZE;
    if end > bytes {
        return Err(ReadError::Superblock("names more blocks than there are"));
    }
    let source = Source { image, end: bytes, windows: HashMap::new(), read: 0 };
    let mut reader =
        Reader { superblock, source, origin, device, tree: Tree::default(), known: HashMap::new(), names: 0 };
    reader.read()?;
    let journal = if origin == Origin::Import && end < bytes { Some(reader.journal(end, bytes)?) } else { None };
    Ok(LayerTree { tree: reader.tree, journal })
}

/// The file, read in windows.
struct Source<'a> {
    image: &'a File,
    end: u64,
    windows: HashMap<u64, Box<[u8]>>,
    /// How much was asked for.
    read: u64,
}

impl Source<'_> {
    /// `bytes` bytes from `offset` on; `None` if the file has not so many.
    fn bytes(&mut self, offset: u64, bytes: u64) -> Result<Option<Vec<u8>>, ReadError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.end) {
            return Ok(None);
        }
        self.read += bytes;
        if self.read > MAX_METADATA {
            return Err(ReadError::TooLarge);
        }
        let mut data = Vec::with_capacity(length(bytes));
        while (data.len() as u64) < bytes {
            let at = offset + data.len() as u64;
            let window = self.window(at / WINDOW)?;
            let from = length(at % WINDOW);
            let count = (window.len() - from).min(length(bytes) - data.len());
            data.extend(&window[from..from + count]);
        }
        Ok(Some(data))
    }

    fn window(&mut self, number: u64) -> Result<&[u8], ReadError> {
        if !self.windows.contains_key(&number) {
            if self.windows.len() >= WINDOWS {
                self.windows.clear();
            }
            let start = number * WINDOW;
            let mut data = vec![0; length(WINDOW.min(self.end - start))];
            self.image.read_exact_at(&mut data, start)?;
            self.windows.insert(number, data.into());
        }
        Ok(&self.windows[&number])
    }
}

struct Reader<'a> {
    superblock: SuperBlock,
    source: Source<'a>,
    origin: Origin,
    device: u16,
    tree: Tree,
    /// What was read, by inode number.
    known: HashMap<u64, InodeId>,
    /// How many names were read.
    names: u64,
}

/// The names and inode numbers in a directory.
type Entries = Vec<(Box<[u8]>, u64)>;

impl Reader<'_> {
    fn read(&mut self) -> Result<(), ReadError> {
        let root = u64::from(self.superblock.root_nid.get());
        let (metadata, content, entries) = self.inode(root)?;
        let Content::Directory(_) = content else { return Err(ReadError::Inode { nid: root, what: "type" }) };
        *self.tree.metadata_mut(Tree::ROOT) = metadata;
        self.known.insert(root, Tree::ROOT);
        self.directories(vec![(root, Tree::ROOT, entries)])
    }

    /// Reads what is below directories.
    fn directories(&mut self, mut pending: Vec<(u64, InodeId, Entries)>) -> Result<(), ReadError> {
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
                        let (new, entries) = self.add(child)?;
                        pending.extend(entries.map(|entries| (child, new, entries)));
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

    /// Reads an inode that was not read yet; its entries if it is a directory.
    fn add(&mut self, nid: u64) -> Result<(InodeId, Option<Entries>), ReadError> {
        let (metadata, content, entries) = self.inode(nid)?;
        let is_directory = matches!(content, Content::Directory(_));
        let id = self.tree.add(metadata, content);
        self.known.insert(nid, id);
        Ok((id, is_directory.then_some(entries)))
    }

    /// The journal between `start` and `end`, with the inodes that have no name.
    fn journal(&mut self, start: u64, end: u64) -> Result<Vec<Step>, ReadError> {
        let bytes = self.source.bytes(start, end - start)?.ok_or(ReadError::Journal)?;
        let mut failed = None;
        let steps = journal::decode(&bytes, |nid| match self.known.get(&nid) {
            Some(id) => Some(*id),
            // A directory without a name has nothing in it either.
            None => self.add(nid).map_err(|error| failed = Some(error)).ok().map(|(id, _)| id),
        });
        match failed {
            Some(error) => Err(error),
            None => steps.ok_or(ReadError::Journal),
        }
    }

    /// An inode and, if it is a directory, its entries.
    fn inode(&mut self, nid: u64) -> Result<(Metadata, Content, Entries), ReadError> {
        let error = |what| move || ReadError::Inode { nid, what };
        let start = u64::from(self.superblock.meta_blkaddr.get()) * BLOCK_SIZE;
        let offset = nid.checked_mul(SLOT_SIZE).and_then(|offset| offset.checked_add(start));
        let offset = offset.filter(|offset| *offset < self.source.end).ok_or_else(error("number"))?;
        let most = InodeHeader::size_of(false).min(self.source.end - offset);
        let bytes = self.source.bytes(offset, most)?.ok_or_else(error("number"))?;
        let seconds = self.superblock.build_time.get().cast_signed();
        let time = Timestamp { seconds, nanoseconds: self.superblock.build_time_nsec.get() };
        let header = InodeHeader::decode(&bytes, time).map_err(|what| error(what)())?;
        let head = offset + header.bytes();
        let xattrs = self.source.bytes(head, header.xattr_bytes)?.ok_or_else(error("size of attributes"))?;
        let shared = u64::from(self.superblock.xattr_blkaddr.get()) * BLOCK_SIZE;
        let xattrs = xattr::decode(&xattrs, |place, bytes| self.source.bytes(shared + place, bytes))?;
        let xattrs = xattrs.ok_or_else(error("extended attribute"))?;
        let rest = head + header.xattr_bytes;
        let mut entries = Vec::new();
        let content = match u32::from(header.mode) & libc::S_IFMT {
            libc::S_IFDIR => {
                let data = self.data(&header, rest)?.ok_or_else(error("directory"))?;
                entries = directory_entries(&data).ok_or_else(error("directory"))?;
                self.names += entries.len() as u64;
                if self.names > MAX_NAMES {
                    return Err(ReadError::TooLarge);
                }
                Content::Directory(Directory::default())
            }
            libc::S_IFLNK if (1..=MAX_TARGET).contains(&header.size) => {
                let data = self.data(&header, rest)?.filter(|data| !data.contains(&0));
                Content::Symlink(data.ok_or_else(error("link target"))?.into())
            }
            libc::S_IFREG => Content::File(self.file(&header, rest)?.ok_or_else(error("place of data"))?),
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
            implied: header.serial == 0 && self.origin == Origin::Import,
        };
        Ok((metadata, content, entries))
    }

    /// The data of a directory or symbolic link; `rest` is where the inode and its attributes end.
    fn data(&mut self, header: &InodeHeader, rest: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let inline = match header.layout {
            DataLayout::Plain => 0,
            DataLayout::Inline if tail_fits(header, rest) => header.size % BLOCK_SIZE,
            DataLayout::Inline | DataLayout::Chunks => return Ok(None),
        };
        // Without a whole block, the number of the first is arbitrary.
        let whole = header.size - inline;
        let first = if whole == 0 { 0 } else { u64::from(header.block_or_device) * BLOCK_SIZE };
        let blocks = self.source.bytes(first, whole)?;
        let tail = self.source.bytes(rest, inline)?;
        Ok(blocks.zip(tail).map(|(blocks, tail)| [blocks, tail].concat()))
    }

    /// Where a regular file's data is.
    fn file(&mut self, header: &InodeHeader, rest: u64) -> Result<Option<FileData>, ReadError> {
        let blocks = self.superblock.blocks.get();
        let within = |block: u32, bytes: u64| {
            let end = u64::from(block).checked_add(bytes.div_ceil(BLOCK_SIZE))?;
            (end <= blocks.into()).then_some(block)
        };
        let blocks = match header.layout {
            _ if header.size == 0 => Some(Blocks::default()),
            DataLayout::Plain => within(header.block_or_device, header.size).map(Blocks::Contiguous),
            DataLayout::Inline => {
                let (whole, tail) = (header.size / BLOCK_SIZE * BLOCK_SIZE, header.size % BLOCK_SIZE);
                let first = if whole == 0 { Some(0) } else { within(header.block_or_device, whole) };
                let first = first.filter(|_| tail_fits(header, rest) && rest + tail <= self.source.end);
                first
                    .map(|first| if tail == 0 { Blocks::Contiguous(first) } else { Blocks::Tail { first, tail: rest } })
            }
            DataLayout::Chunks => {
                let form = header.block_or_device;
                let width = if form & CHUNK_INDEXES == 0 { 4 } else { 8 };
                if form & !(CHUNK_BITS_MASK | CHUNK_INDEXES) != 0 {
                    return Ok(None);
                }
                let bits = form & CHUNK_BITS_MASK;
                let chunk = BLOCK_SIZE << bits;
                let count = header.size.div_ceil(chunk);
                let Some(list) = count.checked_mul(width) else { return Ok(None) };
                let Some(list) = self.source.bytes(rest.next_multiple_of(width), list)? else { return Ok(None) };
                let first = list.chunks_exact(length(width)).zip(0..).map(|(entry, index): (&[u8], u64)| {
                    let block = match ChunkIndex::read_from_bytes(entry) {
                        // High bits of the address, or another device's number.
                        Ok(index) if index.advise != 0 || index.device_id != 0 => return None,
                        Ok(index) => index.blkaddr,
                        Err(_) => U32::read_from_bytes(entry).ok()?,
                    };
                    match block.get() {
                        HOLE => Some(None),
                        block => within(block, chunk.min(header.size - index * chunk)).map(Some),
                    }
                });
                let first = first.collect::<Option<_>>();
                first.zip(u8::try_from(bits).ok()).map(|(first, bits)| Blocks::Chunks { bits, first })
            }
        };
        Ok(blocks.map(|blocks| FileData { bytes: header.size, device: self.device, blocks }))
    }
}

/// Whether data that follows the inode lies within one block, as it must.
fn tail_fits(header: &InodeHeader, rest: u64) -> bool {
    rest % BLOCK_SIZE + header.size % BLOCK_SIZE <= BLOCK_SIZE
}

/// The names and inode numbers in a directory's data, without `.` and `..`; names must be sorted, or Linux would not find them.
fn directory_entries(data: &[u8]) -> Option<Entries> {
    let mut entries = Vec::new();
    let mut last: &[u8] = &[];
    for block in data.chunks(length(BLOCK_SIZE)) {
        // The first name begins where the entries end.
        let names = usize::from(Dirent::read_from_prefix(block).ok()?.0.nameoff);
        if names % size_of::<Dirent>() != 0 || names == 0 {
            return None;
        }
        let (dirents, _) = <[Dirent]>::ref_from_prefix_with_elems(block, names / size_of::<Dirent>()).ok()?;
        let ends = dirents.iter().skip(1).map(|next| next.nameoff.into()).chain([block.len()]);
        for (dirent, end) in dirents.iter().zip(ends) {
            let name = block.get(usize::from(dirent.nameoff)..end)?;
            // In a block that is not the last one, zeros follow the last name.
            let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
            if name <= last || name.len() > MAX_NAME || name.contains(&b'/') {
                return None;
            }
            last = name;
            if name != b"." && name != b".." {
                entries.push((name.into(), dirent.nid.get()));
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
