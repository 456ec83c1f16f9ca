//! Writes an image: file data as it comes, metadata at the end, the superblock last.

use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use zerocopy::FromZeros as _;
use zerocopy::little_endian::{U16, U32, U64};

use super::directory::{self, Entry};
use super::format::{BLOCK_SIZE, DeviceSlot, HOLE, INCOMPAT_CHUNKED, INCOMPAT_DEVICES, SuperBlock};
use super::inode::{DataLayout, InodeHeader, encode_device};
use super::journal::{self, Change, Step};
use super::layout::{Layout, LayoutError, Place, with_dots};
use super::sparse::SparseMap;
use super::superblock::{self, header_bytes};
use super::tree::{Blocks, Content, FileData, Tree};

/// Further devices begin at multiples of this many blocks, so that a huge page of one may be mapped.
const DEVICE_ALIGNMENT: u64 = 512;

/// A failure to write an image.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file's data could not be read.
    #[error("cannot read the file's data")]
    Read(#[source] io::Error),
    /// The image could not be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// EROFS cannot hold the tree.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file with holes that is too large for a list of chunks.
    #[error("a file of {0} bytes is too large")]
    Sparse(u64),
    /// More than the caller allows.
    #[error("the image is larger than the limit of {0} bytes")]
    Limit(u64),
    /// A file whose end lies behind its inode in another image.
    #[error("a file of {0} bytes has its end in the metadata of a layer that came as an EROFS image")]
    Tail(u64),
    /// More further devices than an image can name.
    #[error("the image is on {0} devices; at most 65535 can be named")]
    Devices(usize),
}

/// A device whose blocks lie behind the image's own.
#[derive(Clone, Copy, Debug)]
pub struct ExtraDevice {
    /// Its label.
    pub tag: [u8; 64],
    /// Its size in blocks.
    pub blocks: u32,
}

/// A finished image.
#[derive(Debug)]
pub struct Written<W> {
    /// The image.
    pub out: W,
    /// Size of the image itself, a multiple of [`BLOCK_SIZE`].
    pub bytes: u64,
    /// Where each further device begins, counted in blocks from the start of the image.
    pub mapped: Vec<u32>,
}

/// An image that is being written. It is not a file system until [`ImageWriter::finish`] returns.
pub struct ImageWriter<W: Write> {
    out: BufWriter<W>,
    /// The next free block.
    next: u64,
    buffer: Box<[u8]>,
    devices: Vec<ExtraDevice>,
    /// Most bytes that the image may have.
    limit: u64,
}

impl<W: Write + Seek> ImageWriter<W> {
    /// Starts an image at the start of `out`, which should be empty.
    ///
    /// # Errors
    /// Writing failed.
    pub fn new(out: W) -> Result<Self, WriteError> {
        Self::with_devices(out, Vec::new())
    }

    /// Starts an image whose files may lie on `devices`.
    ///
    /// # Errors
    /// Writing failed, or there are too many devices.
    pub fn with_devices(out: W, devices: Vec<ExtraDevice>) -> Result<Self, WriteError> {
        if devices.len() > usize::from(u16::MAX) {
            return Err(WriteError::Devices(devices.len()));
        }
        let mut out = BufWriter::with_capacity(256 << 10, out);
        let header = header_bytes(devices.len());
        out.write_all(&vec![0; header]).map_err(WriteError::Write)?;
        let next = header as u64 / BLOCK_SIZE;
        Ok(Self { out, next, buffer: vec![0; 64 << 10].into(), devices, limit: u64::MAX })
    }

    /// Refuses to make the image larger than `bytes`.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// Appends a file's data, all that `data` has.
    ///
    /// # Errors
    /// Reading or writing failed, or the image is full.
    pub fn append(&mut self, data: &mut dyn Read) -> Result<FileData, WriteError> {
        let block = self.block()?;
        let bytes = self.copy(data)?;
        let block = if bytes == 0 { 0 } else { block };
        Ok(FileData { bytes, device: 0, blocks: Blocks::Contiguous(block) })
    }

    /// Appends the data of a file with holes: `data` has what `map` says is data, without the holes.
    ///
    /// # Errors
    /// Reading or writing failed, `data` has less than `map` says, or the image is full.
    pub fn append_sparse(&mut self, map: &SparseMap, data: &mut dyn Read) -> Result<FileData, WriteError> {
        if map.bytes() == 0 || map.segments() == [(0, map.bytes())] {
            return self.append(data);
        }
        let (bits, touched) = map.chunks().ok_or(WriteError::Sparse(map.bytes()))?;
        let chunk = BLOCK_SIZE << bits;
        #[allow(clippy::cast_possible_truncation, reason = "`chunks` limits the number of chunks")]
        let mut first = vec![None; map.bytes().div_ceil(chunk) as usize];
        let mut segments = map.segments().iter().copied().peekable();
        for index in touched {
            let (mut position, end) = (index * chunk, map.bytes().min((index + 1).saturating_mul(chunk)));
            #[allow(clippy::cast_possible_truncation, reason = "an index below the length of `first`")]
            (first[index as usize] = Some(self.block()?));
            let mut written = 0;
            while position < end {
                let (offset, length) = segments.peek().copied().unwrap_or((end, 0));
                let zeros = offset.min(end).saturating_sub(position);
                written += self.copy_unpadded(&mut io::repeat(0).take(zeros))?;
                position += zeros;
                let part = (offset + length).min(end).saturating_sub(position);
                let copied = self.copy_unpadded(&mut (&mut *data).take(part))?;
                if copied < part {
                    return Err(WriteError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                written += part;
                position += part;
                if offset + length <= position {
                    segments.next();
                }
            }
            self.complete(written)?;
        }
        Ok(FileData { bytes: map.bytes(), device: 0, blocks: Blocks::Chunks { bits, first: first.into() } })
    }

    /// Writes the metadata of `tree`, whose file data [`ImageWriter::append`] made or lies on the further devices, and the
    /// superblock.
    ///
    /// # Errors
    /// EROFS cannot hold the tree, or writing failed.
    pub fn finish(self, tree: &Tree, uuid: [u8; 16]) -> Result<Written<W>, WriteError> {
        self.finish_with(tree, None, uuid)
    }

    /// As [`ImageWriter::finish`], and puts the layer's journal behind the file system.
    ///
    /// # Errors
    /// As [`ImageWriter::finish`].
    pub fn finish_layer(self, tree: &Tree, journal: &[Step], uuid: [u8; 16]) -> Result<Written<W>, WriteError> {
        self.finish_with(tree, Some(journal), uuid)
    }

    fn finish_with(mut self, tree: &Tree, journal: Option<&[Step]>, uuid: [u8; 16]) -> Result<Written<W>, WriteError> {
        let named = journal.into_iter().flatten().filter_map(|step| match step.change {
            Change::Put(id) => Some(id),
            _ => None,
        });
        let layout = Layout::new(tree, named)?;
        let metadata_block = self.block()?;
        let first_data = self.next + layout.inode_blocks;
        self.next += layout.blocks();
        let blocks = self.block()?;
        let slots = self.map_devices()?;
        let mapped: Vec<_> = slots.iter().map(|slot| slot.mapped_blkaddr.get()).collect();

        let metadata = Metadata { tree, layout: &layout, first_data, mapped: &mapped };
        let mut written = 0;
        let mut bytes = Vec::new();
        let mut data = Vec::new();
        for (serial, place) in layout.places.iter().enumerate() {
            bytes.clear();
            bytes.resize(in_memory(place.offset - written), 0);
            metadata.encode_inode(serial, place, &mut bytes)?;
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
        self.out.write_all(&layout.xattrs.area).map_err(WriteError::Write)?;
        self.pad(layout.xattrs.area.len() as u64)?;
        let journal = journal.map(|steps| journal::encode(steps, |id| layout.of(id).nid())).unwrap_or_default();
        self.out.write_all(&journal).map_err(WriteError::Write)?;

        let feature = |present: bool, bit: u32| if present { bit } else { 0 };
        let features = feature(layout.chunked, INCOMPAT_CHUNKED) | feature(!slots.is_empty(), INCOMPAT_DEVICES);
        let superblock = SuperBlock {
            root_nid: U16::new(u16::try_from(layout.of(Tree::ROOT).nid()).unwrap_or_default()),
            inos: U64::new(layout.places.len() as u64),
            build_time: U64::new(layout.time.seconds.cast_unsigned()),
            build_time_nsec: layout.time.nanoseconds.into(),
            blocks: blocks.into(),
            meta_blkaddr: metadata_block.into(),
            xattr_blkaddr: U32::new(u32::try_from(first_data + layout.data_blocks).unwrap_or_default()),
            uuid,
            feature_incompat: features.into(),
            ..SuperBlock::new_zeroed()
        };
        let mut write_superblock = || {
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&superblock::encode(superblock, &slots))?;
            self.out.flush()
        };
        write_superblock().map_err(WriteError::Write)?;
        let out = self.out.into_inner().map_err(|error| WriteError::Write(error.into_error()))?;
        Ok(Written { out, bytes: u64::from(blocks) * BLOCK_SIZE + journal.len() as u64, mapped })
    }

    /// Places the further devices behind the image.
    fn map_devices(&self) -> Result<Vec<DeviceSlot>, WriteError> {
        let mut next = self.next;
        let place = |device: &ExtraDevice| {
            next = next.next_multiple_of(DEVICE_ALIGNMENT);
            let mapped_block = block_number(next)?;
            next += u64::from(device.blocks);
            block_number(next)?;
            Ok(DeviceSlot {
                tag: device.tag,
                blocks: device.blocks.into(),
                mapped_blkaddr: mapped_block.into(),
                ..DeviceSlot::new_zeroed()
            })
        };
        self.devices.iter().map(place).collect()
    }

    /// Writes all that `data` has and fills the last block up; how much that was.
    fn copy(&mut self, data: &mut dyn Read) -> Result<u64, WriteError> {
        let bytes = self.copy_unpadded(data)?;
        self.complete(bytes)?;
        Ok(bytes)
    }

    fn copy_unpadded(&mut self, data: &mut dyn Read) -> Result<u64, WriteError> {
        let mut bytes = 0;
        loop {
            match data.read(&mut self.buffer) {
                Ok(0) => return Ok(bytes),
                Ok(count) => {
                    self.out.write_all(&self.buffer[..count]).map_err(WriteError::Write)?;
                    bytes += count as u64;
                    if self.next * BLOCK_SIZE + bytes > self.limit {
                        return Err(WriteError::Limit(self.limit));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(WriteError::Read(error)),
            }
        }
    }

    /// Ends data of `bytes` bytes with its block.
    fn complete(&mut self, bytes: u64) -> Result<(), WriteError> {
        self.pad(bytes)?;
        self.next += bytes.div_ceil(BLOCK_SIZE);
        Ok(())
    }

    /// The next free block as EROFS writes block numbers.
    fn block(&self) -> Result<u32, WriteError> {
        block_number(self.next)
    }

    /// Fills the block up that a structure of `bytes` bytes left incomplete.
    fn pad(&mut self, bytes: u64) -> Result<(), WriteError> {
        let missing = bytes.next_multiple_of(BLOCK_SIZE) - bytes;
        io::copy(&mut io::repeat(0).take(missing), &mut self.out).map_err(WriteError::Write)?;
        Ok(())
    }
}

fn block_number(block: u64) -> Result<u32, WriteError> {
    // The last number means a hole.
    match u32::try_from(block) {
        Ok(number) if number != HOLE => Ok(number),
        _ => Err(LayoutError::TooLarge(block).into()),
    }
}

/// A length of something that is in memory.
#[allow(clippy::cast_possible_truncation, reason = "what is in memory has a length that fits usize")]
const fn in_memory(bytes: u64) -> usize {
    bytes as usize
}

struct Metadata<'a> {
    tree: &'a Tree,
    layout: &'a Layout<'a>,
    /// The first block with data of directories and symbolic links.
    first_data: u64,
    /// The first block of each further device.
    mapped: &'a [u32],
}

impl Metadata<'_> {
    /// Appends an inode with its extended attributes and its list of chunks.
    #[allow(clippy::cast_possible_truncation, reason = "the last block's number was checked against 32 bits")]
    fn encode_inode(&self, serial: usize, place: &Place, into: &mut Vec<u8>) -> Result<(), WriteError> {
        let content = self.tree.content(place.id);
        let attributes = self.tree.metadata(place.id);
        let mut chunks = &[][..];
        let mut base = 0;
        let (size, block_or_device) = match content {
            Content::File(data) => {
                base = self.device_base(data)?;
                match &data.blocks {
                    Blocks::Contiguous(_) if data.bytes == 0 => (0, 0),
                    Blocks::Contiguous(block) => (data.bytes, block.saturating_add(base)),
                    Blocks::Chunks { bits, first } => {
                        chunks = first;
                        (data.bytes, u32::from(*bits))
                    }
                    Blocks::Tail { .. } => return Err(WriteError::Tail(data.bytes)),
                }
            }
            Content::CharDevice(device) | Content::BlockDevice(device) => (0, encode_device(*device)),
            Content::Fifo | Content::Socket => (0, 0),
            Content::Directory(_) | Content::Symlink(_) => {
                let block = if place.block_bytes() > 0 { self.first_data + place.block } else { 0 };
                (place.data_bytes, block as u32)
            }
        };
        let layout = match content {
            Content::File(FileData { blocks: Blocks::Chunks { .. }, .. }) => DataLayout::Chunks,
            _ if place.inline => DataLayout::Inline,
            _ => DataLayout::Plain,
        };
        let header = InodeHeader {
            compact: place.compact,
            layout,
            xattr_bytes: self.layout.xattrs.size(&attributes.xattrs),
            mode: mode_type(content) | attributes.permissions & 0o7777,
            size,
            block_or_device,
            // Numbers for old system calls, of which 0 is free to say something else.
            serial: if attributes.implied { 0 } else { serial as u32 + 1 },
            uid: attributes.uid,
            gid: attributes.gid,
            time: attributes.mtime,
            links: self.layout.links[Tree::index(place.id)].max(1),
        };
        header.encode(into);
        self.layout.xattrs.encode(&attributes.xattrs, into);
        into.extend(
            chunks.iter().flat_map(|block| block.map_or(HOLE, |block| block.saturating_add(base)).to_le_bytes()),
        );
        Ok(())
    }

    /// What a file's block numbers count from.
    fn device_base(&self, data: &FileData) -> Result<u32, WriteError> {
        match data.device {
            0 => Ok(0),
            device => {
                let base = self.mapped.get(usize::from(device) - 1).copied();
                base.ok_or_else(|| WriteError::Devices(device.into()))
            }
        }
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
                        Entry { name, nid, file_type }
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
        Content::Socket => libc::S_IFSOCK,
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
        Content::Socket => 6,
        Content::Symlink(_) => 7,
    }
}
