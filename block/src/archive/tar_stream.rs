//! Reads a tar stream entry by entry: ustar, GNU long names and sparse files, PAX extended headers.
//!
//! The crate `tar` neither bounds extended headers nor keeps binary attribute values whole.

use std::io::{self, BufReader, Read, Seek};

use super::header::{BLOCK, Header, Number, until_zero};
use super::pax::PaxHeader;
use super::{ArchiveError, EntryName, EntryProblem, acl, gnu_sparse};
use crate::erofs::{Device, SparseMap, Timestamp};

/// No extended header is larger: names of 1 MiB exist in archives made to harm only.
const MAX_EXTENDED: u64 = 1 << 20;

/// Extended headers that may precede one entry.
const MAX_EXTENDED_COUNT: usize = 16;

/// Blocks of zeros behind the two that end an archive, in which another archive is looked for: records are filled up with them.
const MAX_PADDING: usize = 1 << 16;

/// Longest target of a symbolic link in bytes that Linux reads (`PATH_MAX` and its zero byte).
const MAX_TARGET: usize = 4095;

/// One entry of an archive, its data not read yet.
#[derive(Debug)]
pub(crate) struct TarEntry {
    pub name: Vec<u8>,
    pub kind: TarKind,
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Full names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum TarKind {
    /// Its data is what the stream reads next, without the holes that it may have.
    File(Option<SparseMap>),
    Directory,
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
}

impl TarEntry {
    pub fn error(&self, reason: EntryProblem) -> ArchiveError {
        ArchiveError::Entry { name: EntryName::new(&self.name), reason }
    }
}

/// A tar archive. After [`TarStream::next`], reading gives the entry's data; what is not read is skipped.
pub(crate) struct TarStream<R> {
    inner: R,
    /// Bytes read so far.
    offset: u64,
    /// Bytes left of the present entry's data.
    data: u64,
    /// Zeros between the data and the next header.
    padding: u64,
    /// Name of the present entry.
    name: Option<EntryName>,
}

impl<R: Read> TarStream<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, offset: 0, data: 0, padding: 0, name: None }
    }

    /// How much of the archive was read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to the next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<TarEntry>, ArchiveError> {
        let mut pax = PaxHeader::default();
        let (mut long_name, mut long_link) = (None, None);
        for _ in 0..=MAX_EXTENDED_COUNT {
            self.skip_data()?;
            let start = self.offset;
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind() {
                b'x' => {
                    let records = self.extended(&header)?;
                    pax = PaxHeader::parse(&records).map_err(|reason| self.header_error(start, reason))?;
                }
                // Comments of the tool that made the archive, such as git's.
                b'g' => drop(self.extended(&header)?),
                b'L' => long_name = Some(until_zero(&self.extended(&header)?).to_owned()),
                b'K' => long_link = Some(until_zero(&self.extended(&header)?).to_owned()),
                _ => return self.entry(&header, pax, long_name, long_link).map(Some),
            }
        }
        Err(self.header_error(self.offset, "too many extended headers in a row".to_owned()))
    }

    fn entry(
        &mut self,
        header: &Header,
        mut pax: PaxHeader,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry, ArchiveError> {
        // Of two long names GNU's counts, as in Go: another choice would unpack another image.
        let given = [pax.sparse.name.take(), long_name, pax.path.take()];
        let name = given.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_else(|| header.name());
        let error = |reason| ArchiveError::Entry { name: EntryName::new(&name), reason };
        let number = |field: Number| header.number(field).ok_or_else(|| error(EntryProblem::Field(field.name())));
        self.name = Some(EntryName::new(&name));
        let link = || {
            let link = [long_link, pax.link].into_iter().flatten().find(|link| !link.is_empty());
            let link = link.unwrap_or_else(|| header.link_name().to_owned());
            let valid = !link.is_empty() && link.len() <= MAX_TARGET && !link.contains(&0);
            if valid { Ok(link) } else { Err(error(EntryProblem::Field("link target"))) }
        };
        let device = || {
            let part = |field, limit| {
                let part = u32::try_from(number(field)?).ok().filter(|part| *part < limit);
                part.ok_or_else(|| error(EntryProblem::Field(field.name())))
            };
            Ok(Device { major: part(Number::DeviceMajor, 1 << 12)?, minor: part(Number::DeviceMinor, 1 << 20)? })
        };
        let stored = || match pax.size {
            Some(stored) => Ok(stored),
            None => number(Number::Size)?.try_into().map_err(|_| error(EntryProblem::Field(Number::Size.name()))),
        };
        let mut kind = match header.kind() {
            // Before there was a type for directories, a slash at the end made one; they have no data.
            b'0' | b'\0' if name.ends_with(b"/") && stored()? == 0 => TarKind::Directory,
            b'0' | b'\0' if pax.socket => TarKind::Socket,
            b'0' | b'\0' | b'7' | b'S' => TarKind::File(None),
            b'1' => TarKind::HardLink(link()?),
            b'2' => TarKind::Symlink(link()?),
            b'3' => TarKind::CharDevice(device()?),
            b'4' => TarKind::BlockDevice(device()?),
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            other => return Err(error(EntryProblem::Type(other))),
        };
        // Other types have no data, whatever their size field says.
        if matches!(kind, TarKind::File(_)) {
            let stored: u64 = stored()?;
            if header.kind() == b'S' {
                let map = gnu_sparse::old_map(header.block(), stored, || self.block())?;
                kind = TarKind::File(Some(map.ok_or_else(|| error(EntryProblem::Field("map of holes")))?));
                self.set_data(stored);
            } else {
                self.set_data(stored);
                if pax.sparse.is_sparse() {
                    let map = pax.sparse.map(self, stored);
                    let map = map.map_err(|source| self.read_error(source))?;
                    kind = TarKind::File(Some(map.ok_or_else(|| error(EntryProblem::Field("map of holes")))?));
                }
            }
        }
        for (attribute, text) in &pax.acls {
            let list = acl::from_text(text).ok_or_else(|| error(EntryProblem::Field("access control list")))?;
            if !list.is_empty() {
                pax.xattrs.push((attribute.to_vec(), list));
            }
        }
        let id = |pax: Option<i64>, field: Number| {
            let value = pax.map_or_else(|| number(field), Ok)?;
            id(value).ok_or_else(|| error(EntryProblem::Id { field: field.name(), value }))
        };
        let mtime = || Ok(Timestamp { seconds: number(Number::ModificationTime)?, nanoseconds: 0 });
        Ok(TarEntry {
            kind,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "masked to 12 bits")]
            permissions: (number(Number::Mode)? & 0o7777) as u16,
            uid: id(pax.uid, Number::Uid)?,
            gid: id(pax.gid, Number::Gid)?,
            mtime: pax.mtime.map_or_else(mtime, Ok)?,
            xattrs: pax.xattrs,
            name,
        })
    }

    /// Reads one header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let start = self.offset;
        match self.next_block()? {
            Block::Zeros => self.end().map(|()| None),
            Block::End => Ok(None),
            Block::Part => Err(self.ends_early()),
            Block::Full(block) => Header::new(block).map(Some).map_err(|reason| self.header_error(start, reason)),
        }
    }

    /// Looks behind a block of zeros: two end the archive, and one does where nothing follows. Entries behind it would be lost.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let start = self.offset;
        match self.next_block()? {
            Block::Zeros => {}
            Block::End => return Ok(()),
            Block::Part | Block::Full(_) => {
                let reason = "there is data behind a single block of zeros, and two end an archive".to_owned();
                return Err(self.header_error(start, reason));
            }
        }
        for _ in 0..MAX_PADDING {
            let start = self.offset;
            match self.next_block()? {
                Block::Zeros => {}
                Block::Full(block) if Header::new(block).is_ok() => {
                    return Err(self.header_error(start, "another archive begins behind the end".to_owned()));
                }
                // Whatever that is, it is not part of the archive.
                Block::End | Block::Part | Block::Full(_) => break,
            }
        }
        Ok(())
    }

    /// Reads what comes where a header could be.
    fn next_block(&mut self) -> Result<Block, ArchiveError> {
        let mut block = [0; BLOCK];
        let filled = self.fill(&mut block)?;
        Ok(match filled {
            0 => Block::End,
            BLOCK if block == [0; BLOCK] => Block::Zeros,
            BLOCK => Block::Full(block),
            // Zeros say nothing, however many.
            _ if block == [0; BLOCK] => Block::End,
            _ => Block::Part,
        })
    }

    /// Fills a block as far as the archive goes.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.read_inner(&mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Reads a block that has to be there.
    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        if self.fill(&mut block)? == BLOCK { Ok(block) } else { Err(self.ends_early()) }
    }

    /// Reads the data of an extended header.
    fn extended(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.number(Number::Size).and_then(|size| u64::try_from(size).ok());
        let Some(size) = size.filter(|size| *size <= MAX_EXTENDED) else {
            let size = size.map_or("an invalid size".to_owned(), |size| format!("{size} bytes"));
            let reason = format!("an extended header has {size}; at most {MAX_EXTENDED} bytes are read");
            return Err(self.header_error(self.offset, reason));
        };
        self.set_data(size);
        let mut data = Vec::new();
        let result = self.take(size).read_to_end(&mut data);
        result.map_err(|source| self.read_error(source))?;
        Ok(data)
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Length of the present entry's data that is not read yet.
    pub fn data(&self) -> u64 {
        self.data
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 4096];
        let mut left = u128::from(self.data) + u128::from(self.padding);
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            match self.read_inner(&mut buffer[..most])? {
                // Some archives end with their last entry's data.
                0 if left <= u128::from(self.padding) => break,
                0 => return Err(self.ends_early()),
                count => left -= count as u128,
            }
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    fn read_inner(&mut self, into: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.inner.read(into) {
                Ok(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.read_error(source)),
            }
        }
    }

    fn ends_early(&self) -> ArchiveError {
        self.read_error(io::ErrorKind::UnexpectedEof.into())
    }

    fn header_error(&self, offset: u64, reason: String) -> ArchiveError {
        ArchiveError::Header { offset, last: self.name.clone(), reason }
    }

    /// An error of reading, with where that was.
    pub fn read_error(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read { offset: self.offset, entry: self.name.clone(), source }
    }
}

impl<R: Read + Seek> TarStream<BufReader<R>> {
    /// Goes past the present entry's data without reading it, in an archive of `length` bytes.
    pub fn pass_data(&mut self, length: u64) -> Result<(), ArchiveError> {
        if self.offset.checked_add(self.data).is_none_or(|end| end > length) {
            return Err(self.ends_early());
        }
        let bytes = self.data.saturating_add(self.padding);
        let passed = i64::try_from(bytes).map_err(io::Error::other).and_then(|bytes| self.inner.seek_relative(bytes));
        passed.map_err(|source| self.read_error(source))?;
        self.offset = self.offset.saturating_add(bytes);
        (self.data, self.padding) = (0, 0);
        Ok(())
    }
}

/// The present entry's data; an archive that ends within it is an error.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).map_or(into.len(), |data| data.min(into.len()));
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut into[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.data -= count as u64;
        Ok(count)
    }
}

/// What may come where a header could be.
#[allow(clippy::large_enum_variant, reason = "looked at where it was made")]
enum Block {
    Full([u8; BLOCK]),
    Zeros,
    /// The archive ends within it.
    Part,
    /// Nothing more, or less than a block of zeros.
    End,
}

/// An owner or a group as `chown` takes it: negative ones wrap. -1 stands for none.
fn id(value: i64) -> Option<u32> {
    let id = u32::try_from(value).ok().or_else(|| i32::try_from(value).ok().map(i32::cast_unsigned));
    id.filter(|id| *id != u32::MAX)
}

#[cfg(test)]
#[path = "tar_stream_test.rs"]
mod tests;
