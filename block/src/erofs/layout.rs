//! Where each inode and each directory goes in the metadata area. Pure: a function of the tree.

use std::collections::{BTreeMap, VecDeque};

use super::directory;
use super::format::{BLOCK_SIZE, MAX_NAME, SLOT_SIZE};
use super::inode::InodeHeader;
use super::tree::{Blocks, Content, InodeId, Timestamp, Tree};
use super::xattr::{MAX_XATTR_BYTES, SharedXattrs};

/// Bytes of an entry in a file's list of chunks.
const CHUNK_SIZE: u64 = 4;

/// A tree that EROFS cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A name of no or more than 255 bytes.
    #[error("the name `{}` has {} bytes; a name has 1 to 255", .0.escape_ascii(), .0.len())]
    Name(Box<[u8]>),
    /// An attribute value, or all of a file's together, too large.
    #[error(
        "`{}` has {bytes} bytes of extended attributes; at most 65535 fit one, {MAX_XATTR_BYTES} fit together",
        .path.escape_ascii()
    )]
    Xattrs {
        /// The file, by its first name.
        path: Box<[u8]>,
        /// Size of the value, or of all of them.
        bytes: u64,
    },
    /// The image is larger than 16 TiB.
    #[error("the image has {0} blocks of 4 KiB; at most 2^32 fit")]
    TooLarge(u64),
}

/// The place of one inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub id: InodeId,
    pub parent: InodeId,
    /// Byte offset in the metadata area.
    pub offset: u64,
    /// In the short form.
    pub compact: bool,
    /// Length of the data of a directory or symbolic link; zero for others, whose data is elsewhere.
    pub data_bytes: u64,
    /// Whether the end of that data that fills no block follows the inode.
    pub inline: bool,
    /// Number, counted from the end of the inodes, of the first block with data of a directory or symbolic link.
    pub block: u64,
}

impl Place {
    /// The inode's number.
    pub fn nid(&self) -> u64 {
        self.offset / SLOT_SIZE
    }

    /// Bytes of data that lie in whole blocks.
    pub fn block_bytes(&self) -> u64 {
        if self.inline { self.data_bytes / BLOCK_SIZE * BLOCK_SIZE } else { self.data_bytes }
    }
}

/// The metadata area: inodes first, then blocks of directories and symbolic links, each in the order of `places`; last the
/// shared extended attributes.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub places: Vec<Place>,
    /// By index of the inode: its index in `places`.
    by_inode: Vec<Option<u32>>,
    /// Names that lead to the inode, by its index; for directories what Linux counts: 2 and the subdirectories.
    pub links: Vec<u32>,
    /// The time of inodes in the short form.
    pub time: Timestamp,
    pub xattrs: SharedXattrs<'a>,
    /// Some files are lists of chunks.
    pub chunked: bool,
    /// Size of the inodes in blocks.
    pub inode_blocks: u64,
    /// Blocks of directories and symbolic links.
    pub data_blocks: u64,
}

impl<'a> Layout<'a> {
    /// Lays out what is reachable from the root of `tree`, breadth first by name, so that the root comes first: its number
    /// must fit 16 bits. Then what of `nameless` is not reachable.
    pub fn new(tree: &'a Tree, nameless: impl IntoIterator<Item = InodeId>) -> Result<Self, LayoutError> {
        let mut links = vec![0; tree.len()];
        let order = walk(tree, nameless, &mut links)?;
        let metadata = || order.iter().map(|(id, _)| tree.metadata(*id));
        let mut layout = Self {
            places: Vec::with_capacity(order.len()),
            by_inode: vec![None; tree.len()],
            links,
            time: most_frequent(metadata().map(|metadata| metadata.mtime)),
            xattrs: SharedXattrs::new(metadata().map(|metadata| &metadata.xattrs)),
            chunked: false,
            inode_blocks: 0,
            data_blocks: 0,
        };
        // Inode number 0 is left free: `readdir` takes it for a deleted entry.
        let mut end = SLOT_SIZE;
        for (number, (id, parent)) in (0..).zip(order) {
            let size = layout.xattr_bytes(tree, id);
            let xattrs = size.map_err(|bytes| LayoutError::Xattrs { path: layout.path(tree, id, parent), bytes })?;
            let place = layout.place(tree, id, parent, xattrs, &mut end);
            layout.by_inode[Tree::index(id)] = Some(number);
            layout.places.push(place);
        }
        layout.inode_blocks = end.div_ceil(BLOCK_SIZE);
        Ok(layout)
    }

    /// The place of an inode that is reachable.
    pub fn of(&self, id: InodeId) -> &Place {
        #[allow(clippy::expect_used, reason = "`new` placed every inode that a directory names")]
        let number = self.by_inode[Tree::index(id)].expect("a named inode has a place");
        &self.places[number as usize]
    }

    /// Blocks of the metadata area.
    pub fn blocks(&self) -> u64 {
        self.inode_blocks + self.data_blocks + (self.xattrs.area.len() as u64).div_ceil(BLOCK_SIZE)
    }

    /// Size of an inode's attributes, or that of what is too large among them.
    fn xattr_bytes(&self, tree: &Tree, id: InodeId) -> Result<u64, u64> {
        let xattrs = &tree.metadata(id).xattrs;
        let all = self.xattrs.size(xattrs);
        let longest = xattrs.values().map(Vec::len).max().unwrap_or(0) as u64;
        if longest > u64::from(u16::MAX) || all > MAX_XATTR_BYTES { Err(all.max(longest)) } else { Ok(all) }
    }

    /// The first path to an inode whose directory has its place.
    fn path(&self, tree: &Tree, mut id: InodeId, mut parent: InodeId) -> Box<[u8]> {
        let mut names = Vec::new();
        while id != Tree::ROOT {
            let entries = tree.directory(parent).into_iter().flat_map(|directory| &directory.entries);
            names.extend(entries.filter(|(_, child)| **child == id).map(|(name, _)| &**name).next());
            (id, parent) = (parent, self.of(parent).parent);
        }
        names.reverse();
        if names.is_empty() { b"/"[..].into() } else { names.join(&b'/').into() }
    }

    fn place(&mut self, tree: &Tree, id: InodeId, parent: InodeId, xattrs: u64, end: &mut u64) -> Place {
        let (metadata, content) = (tree.metadata(id), tree.content(id));
        let (mut data_bytes, mut size, mut chunks) = (0, 0, 0);
        match content {
            Content::Directory(directory) => {
                data_bytes = directory::size(with_dots(directory.entries.keys().map(|n| &**n)));
            }
            Content::Symlink(target) => data_bytes = target.len() as u64,
            Content::File(data) => {
                size = data.bytes;
                if let Blocks::Chunks { first, .. } = &data.blocks {
                    self.chunked = true;
                    chunks = CHUNK_SIZE * first.len() as u64;
                }
            }
            _ => {}
        }
        let small = |number: u32| number <= u16::MAX.into();
        let compact = metadata.mtime == self.time
            && small(metadata.uid)
            && small(metadata.gid)
            && small(self.links[Tree::index(id)])
            && u32::try_from(size.max(data_bytes)).is_ok();
        let head = InodeHeader::size_of(compact) + xattrs;
        let tail = data_bytes % BLOCK_SIZE;
        let inline = tail > 0 && head + tail <= BLOCK_SIZE;
        let bytes = head + chunks + if inline { tail } else { 0 };
        // An inline tail must lie in one block; where the whole inode fits in one, it does.
        let mut offset = *end;
        if bytes <= BLOCK_SIZE && offset % BLOCK_SIZE + bytes > BLOCK_SIZE {
            offset = offset.next_multiple_of(BLOCK_SIZE);
        }
        *end = (offset + bytes).next_multiple_of(SLOT_SIZE);
        let place = Place { id, parent, offset, compact, data_bytes, inline, block: self.data_blocks };
        self.data_blocks += place.block_bytes().div_ceil(BLOCK_SIZE);
        place
    }
}

/// Every inode that a name leads to with the first directory that has it, breadth first by name, then the `nameless`; counts
/// the names.
fn walk(
    tree: &Tree,
    nameless: impl IntoIterator<Item = InodeId>,
    links: &mut [u32],
) -> Result<Vec<(InodeId, InodeId)>, LayoutError> {
    let mut order = Vec::with_capacity(tree.len());
    let mut seen = vec![false; tree.len()];
    let mut queue = VecDeque::from([(Tree::ROOT, Tree::ROOT)]);
    let mut nameless = nameless.into_iter().map(|id| (id, Tree::ROOT));
    links[Tree::index(Tree::ROOT)] = 2;
    while let Some((id, parent)) = queue.pop_front().or_else(|| nameless.next()) {
        if std::mem::replace(&mut seen[Tree::index(id)], true) {
            continue;
        }
        order.push((id, parent));
        let Some(directory) = tree.directory(id) else { continue };
        for (name, child) in &directory.entries {
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(LayoutError::Name(name.clone()));
            }
            if tree.directory(*child).is_some() {
                links[Tree::index(*child)] = 2;
                links[Tree::index(id)] += 1;
            } else {
                links[Tree::index(*child)] += 1;
            }
            queue.push_back((*child, id));
        }
    }
    Ok(order)
}

/// The most frequent time, of several the earliest.
fn most_frequent(times: impl Iterator<Item = Timestamp>) -> Timestamp {
    let mut counts: BTreeMap<(i64, u32), u32> = BTreeMap::new();
    for time in times {
        *counts.entry((time.seconds, time.nanoseconds)).or_default() += 1;
    }
    let best = counts.iter().rev().max_by_key(|(_, count)| **count);
    best.map_or_else(Timestamp::default, |((seconds, nanoseconds), _)| Timestamp {
        seconds: *seconds,
        nanoseconds: *nanoseconds,
    })
}

/// Merges `.` and `..` into sorted names: bytes below a full stop sort before them.
pub(super) fn with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut names = names.peekable();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    std::iter::from_fn(move || match (names.peek(), dots.peek()) {
        (Some(name), Some(dot)) if name < dot => names.next(),
        (_, Some(_)) => dots.next(),
        _ => names.next(),
    })
}
