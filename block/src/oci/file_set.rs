//! The files that an image's documents and layers are in: those of a directory, or those of an archive.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::OciError;
use crate::archive::{EntryName, TarKind, TarStream, components};
use crate::erofs::SparseMap;

/// No JSON document of an image is larger than this; the registries' own limit.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;
/// Most files of an image archive: more than the layers and documents of any image.
const MAX_FILES: usize = 1 << 16;
/// How many links may follow each other.
const MAX_LINKS: usize = 8;

/// Named files, read-only.
#[derive(Clone, Debug)]
pub(super) enum FileSet {
    /// A directory.
    Directory(PathBuf),
    /// An uncompressed archive.
    Archive(Arc<Archive>),
}

/// An archive and where its files are in it.
#[derive(Debug)]
pub(super) struct Archive {
    /// For messages.
    path: PathBuf,
    file: File,
    files: BTreeMap<Vec<u8>, Member>,
}

#[derive(Clone, Debug)]
enum Member {
    File {
        offset: u64,
        /// Where in the file the bytes are that the archive has from `offset` on, without the holes.
        map: SparseMap,
    },
    /// Another name, by where it is or from the archive's root on.
    Link { target: Vec<u8>, symbolic: bool },
}

impl FileSet {
    /// Finds the files in an uncompressed archive; `path` is what messages call it.
    pub fn archive(path: &Path, file: File) -> Result<Self, OciError> {
        let read = |source| OciError::Read { path: path.to_owned(), source };
        let error = |source| OciError::Archive { path: path.to_owned(), source: Box::new(source) };
        let length = file.metadata().map_err(read)?.len();
        let reader = BufReader::with_capacity(4096, file.try_clone().map_err(read)?);
        let mut archive = TarStream::new(reader);
        let mut files = BTreeMap::new();
        while let Some(entry) = archive.next().map_err(error)? {
            let name = components(&entry.name).map_err(|problem| error(entry.error(problem)))?.join(&b'/');
            let member = match &entry.kind {
                TarKind::File(map) => {
                    let (offset, bytes) = (archive.offset(), archive.data());
                    archive.pass_data(length).map_err(error)?;
                    Member::File { offset, map: map.clone().unwrap_or_else(|| SparseMap::dense(bytes)) }
                }
                TarKind::Symlink(target) => Member::Link { target: target.clone(), symbolic: true },
                TarKind::HardLink(target) => Member::Link { target: target.clone(), symbolic: false },
                _ => continue,
            };
            files.insert(name, member);
            if files.len() > MAX_FILES {
                return Err(OciError::TooManyFiles { path: path.to_owned(), limit: MAX_FILES });
            }
        }
        Ok(Self::Archive(Arc::new(Archive { path: path.to_owned(), file, files })))
    }

    /// What messages call the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        let root = match self {
            Self::Directory(root) => root,
            Self::Archive(archive) => &archive.path,
        };
        root.join(EntryName::new(name.trim_start_matches('/').as_bytes()).to_string())
    }

    /// Whether there is a file `name`.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(root) => below(root, name).is_ok_and(|path| path.is_file()),
            Self::Archive(archive) => archive.find(name.as_bytes()).is_ok(),
        }
    }

    /// Opens the file `name`; a pipe in its place does not block.
    pub fn open(&self, name: &str) -> Result<Piece, OciError> {
        let path = self.path(name);
        let read = |source| OciError::Read { path: path.clone(), source };
        match self {
            Self::Directory(root) => {
                let (file, bytes) = open_regular(&below(root, name).map_err(read)?)?;
                Ok(Piece::new(file, 0, SparseMap::dense(bytes)))
            }
            Self::Archive(archive) => match archive.find(name.as_bytes()) {
                Ok((offset, map)) => Ok(Piece::new(archive.file.try_clone().map_err(read)?, offset, map.clone())),
                Err(Some(target)) => Err(OciError::Link { path, target: EntryName::new(target) }),
                Err(None) => Err(read(io::ErrorKind::NotFound.into())),
            },
        }
    }

    /// Reads the JSON document `name`.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, OciError> {
        let mut file = self.open(name)?;
        let actual = file.left();
        if actual > MAX_DOCUMENT {
            return Err(OciError::TooLarge { path: self.path(name), actual, limit: MAX_DOCUMENT });
        }
        let mut data = Vec::new();
        file.read_to_end(&mut data).map_err(|source| OciError::Read { path: self.path(name), source })?;
        Ok(data)
    }
}

impl Archive {
    /// Finds a file: where it begins in the archive, and what of it is there. Links are followed wherever they are in the name, and
    /// never lead outside; the error is the target of the last link that was followed, if any.
    fn find(&self, name: &[u8]) -> Result<(u64, &SparseMap), Option<&[u8]>> {
        let mut last = None;
        let mut path = components(name).map_err(|_| None)?;
        for _ in 0..MAX_LINKS {
            let prefixes = (1..=path.len()).map(|depth| (depth, self.files.get(&path[..depth].join(&b'/'))));
            let first = prefixes.into_iter().find_map(|(depth, member)| Some((depth, member?)));
            match first {
                Some((depth, Member::File { offset, map })) if depth == path.len() => return Ok((*offset, map)),
                Some((depth, Member::Link { target, symbolic })) => {
                    last = Some(target.as_slice());
                    let relative = *symbolic && !target.starts_with(b"/");
                    let from = if relative { path[..depth - 1].to_vec() } else { Vec::new() };
                    path = joined(from, target, &path[depth..]).ok_or(last)?;
                }
                _ => return Err(last),
            }
        }
        Err(last)
    }
}

/// Opens a regular file; returns it with its size in bytes. A pipe in its place does not block.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), OciError> {
    let read = |source| OciError::Read { path: path.to_owned(), source };
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(OciError::NotAFile { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

/// The path that a link's `target` and what follows it make from a directory on; `None` if it leaves the root.
fn joined<'a>(from: Vec<&'a [u8]>, target: &'a [u8], rest: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let mut path = from;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()?),
            _ => path.push(component),
        }
    }
    path.extend(rest);
    Some(path)
}

/// Where the file `name` is in the directory `root`: a document must not name others.
fn below(root: &Path, name: &str) -> io::Result<PathBuf> {
    let components = components(name.as_bytes()).map_err(|problem| io::Error::other(format!("it {problem}")))?;
    Ok(components.into_iter().fold(root.to_owned(), |path, component| path.join(OsStr::from_bytes(component))))
}

/// A file, or a part of one; what its map has no data for reads as zeros. Pieces of one file can be read side by side.
#[derive(Debug)]
pub(super) struct Piece {
    file: File,
    /// Where in `file` the data of the next segment is.
    offset: u64,
    position: u64,
    bytes: u64,
    /// Start and length of what has data, without what was read.
    segments: VecDeque<(u64, u64)>,
}

impl Piece {
    fn new(file: File, offset: u64, map: SparseMap) -> Self {
        Self { file, offset, position: 0, bytes: map.bytes(), segments: map.segments().iter().copied().collect() }
    }

    /// Bytes that are left to read.
    pub fn left(&self) -> u64 {
        self.bytes - self.position
    }
}

impl Read for Piece {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.segments.front().is_some_and(|(_, length)| *length == 0) {
            self.segments.pop_front();
        }
        let (start, length) = self.segments.front().copied().unwrap_or((self.bytes, 0));
        let hole = start.saturating_sub(self.position);
        let most = if hole > 0 { hole } else { length };
        let most = usize::try_from(most).map_or(into.len(), |most| most.min(into.len()));
        let into = &mut into[..most];
        let count = if hole > 0 {
            into.fill(0);
            most
        } else {
            self.file.read_at(into, self.offset)?
        };
        self.position += count as u64;
        if let Some((_, length)) = self.segments.front_mut().filter(|_| hole == 0) {
            *length -= count as u64;
            self.offset += count as u64;
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "file_set_test.rs"]
mod tests;
