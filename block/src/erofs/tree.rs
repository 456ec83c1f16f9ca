//! A file tree in memory: names and attributes, with file data somewhere else.

use std::collections::{BTreeMap, BTreeSet};

use super::xattr::XattrName;

/// Index of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InodeId(usize);

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds to add, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Attributes that every inode has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: BTreeMap<XattrName, Vec<u8>>,
    /// This directory has no entry of its own: it exists because of an entry below it.
    pub implied: bool,
}

/// Number of a device node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Device {
    /// At most 12 bits.
    pub major: u32,
    /// At most 20 bits.
    pub minor: u32,
}

/// A regular file's data.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileData {
    /// Length of the file.
    pub bytes: u64,
    /// Which of the image's further devices it lies on, counted from 1; 0 for the image itself.
    pub device: u16,
    /// Its place there.
    pub blocks: Blocks,
}

/// The blocks that a file's data fills.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Blocks {
    /// Consecutive ones from this; any where the file is empty.
    Contiguous(u32),
    /// Consecutive ones for each chunk of the file.
    Chunks {
        /// log2 of the blocks of a chunk.
        bits: u8,
        /// Each chunk's first block; `None` for zeros that are stored nowhere.
        first: Box<[Option<u32>]>,
    },
    /// Consecutive ones from this, but for the end of the file that fills none. Only layers that came as EROFS images have this.
    Tail {
        /// The first whole block, if there is any.
        first: u32,
        /// The byte of the image that the end begins at.
        tail: u64,
    },
}

impl Default for Blocks {
    fn default() -> Self {
        Self::Contiguous(0)
    }
}

/// A directory's names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Directory {
    /// Entries without `.` and `..`.
    pub entries: BTreeMap<Box<[u8]>, InodeId>,
    /// Names that hide what layers below have there.
    pub whiteouts: BTreeSet<Box<[u8]>>,
}

/// The type of an inode, with its data.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(FileData),
    /// A symbolic link and where it points.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// Hides a name of a layer below from overlayfs.
pub const WHITEOUT: Content = Content::CharDevice(Device { major: 0, minor: 0 });

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub metadata: Metadata,
    pub content: Content,
}

/// A tree of inodes under a root directory. Inodes that no name leads to any more stay behind unused.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { inodes: vec![Inode { metadata: Self::implied(), content: Content::Directory(Directory::default()) }] }
    }
}

impl Tree {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    /// The attributes of a directory without an entry of its own: owned by root, with the usual permissions.
    #[must_use]
    pub fn implied() -> Metadata {
        Metadata { permissions: 0o755, implied: true, ..Metadata::default() }
    }

    /// Adds an inode without a name.
    pub fn add(&mut self, metadata: Metadata, content: Content) -> InodeId {
        self.inodes.push(Inode { metadata, content });
        InodeId(self.inodes.len() - 1)
    }

    /// The content of `id`.
    #[must_use]
    pub fn content(&self, id: InodeId) -> &Content {
        &self.inodes[id.0].content
    }

    /// The attributes of `id`.
    #[must_use]
    pub fn metadata(&self, id: InodeId) -> &Metadata {
        &self.inodes[id.0].metadata
    }

    /// The attributes of `id`.
    pub fn metadata_mut(&mut self, id: InodeId) -> &mut Metadata {
        &mut self.inodes[id.0].metadata
    }

    /// The names in `id`, if that is a directory.
    #[must_use]
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match self.content(id) {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The names in `id`, if that is a directory.
    pub fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inodes[id.0].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Follows names from the root; symbolic links are not followed.
    #[must_use]
    pub fn lookup<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<InodeId> {
        names.into_iter().try_fold(Self::ROOT, |id, name| self.directory(id)?.entries.get(name).copied())
    }

    /// Turns whiteouts into what overlayfs reads: a character device 0:0 in the place of the hidden name; where this tree
    /// has a directory of that name itself, the directory becomes opaque instead.
    pub fn resolve_whiteouts(&mut self) {
        for index in 0..self.inodes.len() {
            let Some(directory) = self.directory_mut(InodeId(index)) else { continue };
            for name in std::mem::take(&mut directory.whiteouts) {
                let present = self.directory(InodeId(index)).and_then(|d| d.entries.get(&name).copied());
                match present {
                    Some(id) => {
                        if self.directory(id).is_some() {
                            self.set_opaque(id);
                        }
                    }
                    None => {
                        let hidden = self.add(Metadata::default(), WHITEOUT);
                        if let Some(directory) = self.directory_mut(InodeId(index)) {
                            directory.entries.insert(name, hidden);
                        }
                    }
                }
            }
        }
    }

    /// Empties the directories that no name leads to.
    pub fn forget_unnamed(&mut self) {
        let mut named = vec![false; self.inodes.len()];
        let mut pending = vec![Self::ROOT];
        while let Some(id) = pending.pop() {
            if !std::mem::replace(&mut named[id.0], true)
                && let Some(directory) = self.directory(id)
            {
                pending.extend(directory.entries.values());
            }
        }
        for (inode, _) in self.inodes.iter_mut().zip(named).filter(|(_, named)| !named) {
            if let Content::Directory(directory) = &mut inode.content {
                *directory = Directory::default();
            }
        }
    }

    /// Makes the directory `id` hide the directory below it.
    pub fn set_opaque(&mut self, id: InodeId) {
        self.metadata_mut(id).xattrs.insert(XattrName::overlay_opaque(), b"y".to_vec());
    }

    /// Whether the directory `id` hides the directory below it.
    #[must_use]
    pub fn is_opaque(&self, id: InodeId) -> bool {
        self.inodes[id.0].metadata.xattrs.contains_key(&XattrName::overlay_opaque())
    }

    /// All inodes, those without a name too.
    pub fn ids(&self) -> impl Iterator<Item = InodeId> + use<> {
        (0..self.inodes.len()).map(InodeId)
    }

    /// Number of inodes, those without a name too.
    #[allow(clippy::len_without_is_empty, reason = "there is always the root")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn index(id: InodeId) -> usize {
        id.0
    }
}
