//! Reads a tar stream entry by entry: ustar, GNU long names and sparse files, PAX extended headers.
//!
//! The crate `tar` decodes single headers; its own iterator neither bounds extended headers nor keeps binary attribute
//! values whole.

use std::io::{self, BufReader, Read, Seek};

use tar::Header;

use super::pax::PaxHeader;
use super::{ArchiveError, EntryName, EntryProblem, acl, gnu_sparse};
use crate::erofs::{Device, SparseMap, Timestamp};

const BLOCK: u64 = 512;

/// No extended header is larger: names of 1 MiB exist in archives made to harm only.
const MAX_EXTENDED: u64 = 1 << 20;

/// Extended headers that may precede one entry.
const MAX_EXTENDED_COUNT: usize = 16;

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
            let error = |reason: String| ArchiveError::Header { offset: start, reason };
            let size = header.entry_size().map_err(|source| error(source.to_string()))?;
            match header.as_bytes()[156] {
                b'x' => pax = PaxHeader::parse(&self.extended(size)?).map_err(error)?,
                // Comments of the tool that made the archive, such as git's.
                b'g' => drop(self.extended(size)?),
                b'L' => long_name = Some(until_zero(self.extended(size)?)),
                b'K' => long_link = Some(until_zero(self.extended(size)?)),
                _ => return self.entry(&header, pax, long_name, long_link).map(Some),
            }
        }
        Err(ArchiveError::Header { offset: self.offset, reason: "too many extended headers in a row".to_owned() })
    }

    fn entry(
        &mut self,
        header: &Header,
        mut pax: PaxHeader,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry, ArchiveError> {
        let name =
            pax.sparse.name.take().or(pax.path).or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let error = |reason| ArchiveError::Entry { name: EntryName::new(&name), reason };
        let field = |name| move |_: io::Error| EntryProblem::Field(name);
        self.name = Some(EntryName::new(&name));
        let link = || {
            let link = pax.link.or(long_link).or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
            link.filter(|link| !link.is_empty() && !link.contains(&0)).ok_or(EntryProblem::Field("link target"))
        };
        let device = || {
            let major = header.device_major().map_err(field("device number"))?.unwrap_or_default();
            let minor = header.device_minor().map_err(field("device number"))?.unwrap_or_default();
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(EntryProblem::Field("device number"));
            }
            Ok(Device { major, minor })
        };
        let mut kind = match header.as_bytes()[156] {
            // Before there was a type for directories, a slash at the end made one.
            b'0' | b'\0' if name.ends_with(b"/") => Ok(TarKind::Directory),
            b'0' | b'\0' if pax.socket => Ok(TarKind::Socket),
            b'0' | b'\0' | b'7' | b'S' => Ok(TarKind::File(None)),
            b'1' => link().map(TarKind::HardLink),
            b'2' => link().map(TarKind::Symlink),
            b'3' => device().map(TarKind::CharDevice),
            b'4' => device().map(TarKind::BlockDevice),
            b'5' => Ok(TarKind::Directory),
            b'6' => Ok(TarKind::Fifo),
            other => Err(EntryProblem::Type(other)),
        }
        .map_err(error)?;
        // Other types have no data, whatever their size field says.
        if matches!(kind, TarKind::File(_)) {
            let size = header.entry_size().map_err(field("size")).map_err(error)?;
            let stored = pax.size.unwrap_or(size);
            if header.as_bytes()[156] == b'S' {
                let map = gnu_sparse::old_map(header.as_bytes(), stored, || self.block())?;
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
        let id = |pax: Option<u32>, own: io::Result<u64>, name| match pax {
            Some(id) => Ok(id),
            None => own.ok().and_then(|id| u32::try_from(id).ok()).ok_or(EntryProblem::Field(name)),
        };
        let mtime = || {
            let seconds = header.mtime().map_err(field("modification time"))?.cast_signed();
            Ok(Timestamp { seconds, nanoseconds: 0 })
        };
        let permissions = header.mode().map_err(field("mode")).map_err(error)? & 0o7777;
        Ok(TarEntry {
            kind,
            #[allow(clippy::cast_possible_truncation, reason = "masked to 12 bits")]
            permissions: permissions as u16,
            uid: id(pax.uid, header.uid(), "owner").map_err(error)?,
            gid: id(pax.gid, header.gid(), "group").map_err(error)?,
            mtime: pax.mtime.map_or_else(mtime, Ok).map_err(error)?,
            xattrs: pax.xattrs,
            name,
        })
    }

    /// Reads one header; `None` at the end: a block of zeros, or nothing more.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let start = self.offset;
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if !self.fill(block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum of all bytes, those of the checksum itself taken for spaces.
        let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let actual = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(stated) if stated == actual => Ok(Some(header)),
            Ok(stated) => Err(ArchiveError::Header {
                offset: start,
                reason: format!("its checksum is {actual}, it states {stated}"),
            }),
            Err(source) => Err(ArchiveError::Header { offset: start, reason: source.to_string() }),
        }
    }

    /// Fills a block; `false` if the archive has ended.
    fn fill(&mut self, block: &mut [u8]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.read_inner(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.ends_early()),
                count => filled += count,
            }
        }
        Ok(true)
    }

    /// Reads a block that has to be there.
    fn block(&mut self) -> Result<[u8; 512], ArchiveError> {
        let mut block = [0; 512];
        if self.fill(&mut block)? { Ok(block) } else { Err(self.ends_early()) }
    }

    /// Reads the data of an extended header.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENDED {
            let reason = format!("an extended header has {size} bytes; at most {MAX_EXTENDED} are read");
            return Err(ArchiveError::Header { offset: self.offset, reason });
        }
        self.set_data(size);
        let mut data = Vec::new();
        let result = self.take(size).read_to_end(&mut data);
        result.map_err(|source| self.read_error(source))?;
        Ok(data)
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK;
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

    /// An error of reading, with where that was.
    pub fn read_error(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read { offset: self.offset, entry: self.name.clone(), source }
    }
}

impl<R: Read + Seek> TarStream<BufReader<R>> {
    /// Goes past the present entry's data without reading it.
    pub fn pass_data(&mut self) -> Result<(), ArchiveError> {
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

fn until_zero(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}
