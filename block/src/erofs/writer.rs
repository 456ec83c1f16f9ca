//! Writes an image: file data as it comes, metadata at the end, the superblock last.

use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use super::directory::{self, Dirent};
use super::format::{BLOCK_SIZE, DataLayout, InodeHeader, Superblock, encode_device};
use super::layout::{Layout, LayoutError, Place, with_dots};
use super::tree::{Content, Extent, Tree};
use super::xattr;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file's data could not be read.
    #[error("cannot read the file's data")]
    Read(#[source] io::Error),
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// EROFS can't hold the tree.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// An image being written. Until [`ImageWriter::finish`] returns, what was written is no file system.
pub struct ImageWriter<W: Write> {
    out: BufWriter<W>,
    /// The next free block.
    next: u64,
    buffer: Box<[u8]>,
}

impl<W: Write + Seek> ImageWriter<W> {
    /// Starts an image at the start of `out`, which should be empty.
    ///
    /// # Errors
    /// Writing failed.
    pub fn new(out: W) -> Result<Self, WriteError> {
        let mut out = BufWriter::with_capacity(256 << 10, out);
        out.write_all(&[0; BLOCK_SIZE as usize]).map_err(WriteError::Write)?;
        Ok(Self { out, next: 1, buffer: vec![0; 64 << 10].into() })
    }

    /// Appends a file's data, all that `data` has.
    ///
    /// # Errors
    /// Reading or writing failed, or the image is full.
    pub fn append(&mut self, data: &mut dyn Read) -> Result<Extent, WriteError> {
        let block = self.block()?;
        let mut bytes = 0;
        loop {
            match data.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.out.write_all(&self.buffer[..count]).map_err(WriteError::Write)?;
                    bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(WriteError::Read(error)),
            }
        }
        self.pad(bytes)?;
        self.next += bytes.div_ceil(BLOCK_SIZE);
        Ok(Extent { block: if bytes == 0 { 0 } else { block }, bytes })
    }

    /// Writes the metadata of `tree`, whose extents [`ImageWriter::append`] made, and the superblock. Returns what it wrote
    /// to and the size of the image in bytes, a multiple of [`BLOCK_SIZE`].
    ///
    /// # Errors
    /// EROFS can't hold the tree, or writing failed.
    pub fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> Result<(W, u64), WriteError> {
        let layout = Layout::new(tree)?;
        let metadata_block = self.block()?;
        let first_data = self.next + layout.inode_blocks;
        self.next = first_data + layout.data_blocks;
        let blocks = self.block()?;

        let metadata = Metadata { tree, layout: &layout, first_data };
        let mut written = 0;
        let mut bytes = Vec::new();
        let mut data = Vec::new();
        for (serial, place) in layout.places.iter().enumerate() {
            bytes.clear();
            bytes.resize(in_memory(place.offset - written), 0);
            metadata.encode_inode(serial, place, &mut bytes);
            if place.inline {
                data.clear();
                metadata.encode_data(place, &mut data);
                bytes.extend(&data[in_memory(place.block_bytes())..]);
            }
            self.out.write_all(&bytes).map_err(WriteError::Write)?;
            written += bytes.len() as u64;
        }
        self.pad(written)?;
        for place in layout.places.iter().filter(|place| place.block_bytes() > 0) {
            data.clear();
            metadata.encode_data(place, &mut data);
            data.truncate(in_memory(place.block_bytes()));
            self.out.write_all(&data).map_err(WriteError::Write)?;
            self.pad(data.len() as u64)?;
        }

        let superblock = Superblock {
            root: u16::try_from(layout.of(Tree::ROOT).nid()).unwrap_or_default(),
            inodes: layout.places.len() as u64,
            blocks,
            metadata_block,
            uuid,
        };
        let mut write_superblock = || {
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&superblock.encode())?;
            self.out.flush()
        };
        write_superblock().map_err(WriteError::Write)?;
        let out = self.out.into_inner().map_err(|error| WriteError::Write(error.into_error()))?;
        Ok((out, u64::from(blocks) * BLOCK_SIZE))
    }

    /// The next free block as EROFS writes block numbers.
    fn block(&self) -> Result<u32, WriteError> {
        u32::try_from(self.next).map_err(|_| LayoutError::TooLarge(self.next).into())
    }

    /// Fills the block up that a structure of `bytes` bytes left incomplete.
    fn pad(&mut self, bytes: u64) -> Result<(), WriteError> {
        let missing = bytes.next_multiple_of(BLOCK_SIZE) - bytes;
        io::copy(&mut io::repeat(0).take(missing), &mut self.out).map_err(WriteError::Write)?;
        Ok(())
    }
}

/// A length of something that is in memory.
#[allow(clippy::cast_possible_truncation, reason = "what is in memory has a length that fits usize")]
const fn in_memory(bytes: u64) -> usize {
    bytes as usize
}

struct Metadata<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    /// The first block with data of directories and symbolic links.
    first_data: u64,
}

impl Metadata<'_> {
    /// Appends an inode with its extended attributes.
    #[allow(clippy::cast_possible_truncation, reason = "the last block's number was checked against 32 bits")]
    fn encode_inode(&self, serial: usize, place: &Place, into: &mut Vec<u8>) {
        let inode = self.tree.inode(place.id);
        let (size, block_or_device) = match &inode.content {
            Content::File(extent) => (extent.bytes, extent.block),
            Content::CharDevice(device) | Content::BlockDevice(device) => {
                (0, encode_device(device.major, device.minor))
            }
            Content::Fifo => (0, 0),
            Content::Directory(_) | Content::Symlink(_) => {
                let block = if place.block_bytes() > 0 { self.first_data + place.block } else { 0 };
                (place.data_bytes, block as u32)
            }
        };
        let attributes = &inode.metadata;
        let header = InodeHeader {
            layout: if place.inline { DataLayout::Inline } else { DataLayout::Plain },
            xattr_bytes: xattr::size(&attributes.xattrs),
            mode: mode_type(&inode.content) | attributes.permissions & 0o7777,
            size,
            block_or_device,
            serial: serial as u32 + 1,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_seconds: attributes.mtime.seconds,
            mtime_nanoseconds: attributes.mtime.nanoseconds,
            links: self.layout.links[Tree::index(place.id)],
        };
        into.extend(header.encode());
        xattr::encode(&attributes.xattrs, into);
    }

    /// Appends the data of a directory or symbolic link.
    fn encode_data(&self, place: &Place, into: &mut Vec<u8>) {
        match self.tree.content(place.id) {
            Content::Symlink(target) => into.extend(&**target),
            Content::Directory(directory) => {
                let dirent = |name: &'_ [u8]| {
                    let id = match name {
                        b"." => place.id,
                        b".." => place.parent,
                        _ => directory.entries[name],
                    };
                    (self.layout.of(id).nid(), file_type(self.tree.content(id)))
                };
                let entries: Vec<_> = with_dots(directory.entries.keys().map(|name| &**name))
                    .map(|name| {
                        let (nid, file_type) = dirent(name);
                        Dirent { name, nid, file_type }
                    })
                    .collect();
                directory::encode(&entries, into);
            }
            _ => {}
        }
    }
}

/// The type bits of an inode's mode (`S_IF*`).
const fn mode_type(content: &Content) -> u16 {
    (match content {
        Content::Directory(_) => libc::S_IFDIR,
        Content::File(_) => libc::S_IFREG,
        Content::Symlink(_) => libc::S_IFLNK,
        Content::CharDevice(_) => libc::S_IFCHR,
        Content::BlockDevice(_) => libc::S_IFBLK,
        Content::Fifo => libc::S_IFIFO,
    }) as u16
}

/// The type in a directory entry (Linux, `FT_*`).
const fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::CharDevice(_) => 3,
        Content::BlockDevice(_) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}
