//! The files that an image's documents and layers are in: those of a directory, or those of an archive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::OciError;
use super::source::starts_with_digest;
use crate::archive::{TarKind, TarStream, components};

/// No JSON document of an image is larger than this; the registries' own limit.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;
/// Most files of an image archive: more than the layers and documents of any image.
const MAX_FILES: usize = 1 << 16;
/// How many links may follow each other.
const MAX_LINKS: usize = 8;

/// Named files, read-only.
#[derive(Clone, Debug)]
pub(super) enum Container {
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
        bytes: u64,
    },
    /// Another name.
    Link(Vec<u8>),
}

impl Container {
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
                TarKind::File(None) => {
                    let (offset, bytes) = (archive.offset(), archive.data());
                    if offset.checked_add(bytes).is_none_or(|end| end > length) {
                        return Err(error(archive.read_error(io::ErrorKind::UnexpectedEof.into())));
                    }
                    archive.pass_data().map_err(error)?;
                    Member::File { offset, bytes }
                }
                TarKind::Symlink(target) => Member::Link(resolve(&name, target)),
                TarKind::HardLink(target) => Member::Link(target.clone()),
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
        match self {
            Self::Directory(root) => root.join(name),
            Self::Archive(archive) => archive.path.join(name),
        }
    }

    /// Whether there is a file `name`.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(root) => root.join(name).is_file(),
            Self::Archive(archive) => archive.find(name).is_some(),
        }
    }

    /// Whether files of an archive are called by digests.
    pub fn has_digests(&self) -> bool {
        match self {
            Self::Directory(_) => false,
            Self::Archive(archive) => {
                archive.files.keys().any(|name| starts_with_digest(name.strip_prefix(b"blobs/sha256/").unwrap_or(name)))
            }
        }
    }

    /// Opens the file `name`; a pipe in its place does not block.
    pub fn open(&self, name: &str) -> Result<Piece, OciError> {
        let path = self.path(name);
        let read = |source| OciError::Read { path: path.clone(), source };
        match self {
            Self::Directory(_) => {
                let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
                let file = file.map_err(read)?;
                let metadata = file.metadata().map_err(read)?;
                if !metadata.is_file() {
                    return Err(OciError::NotAFile { path });
                }
                Ok(Piece { file, offset: 0, left: metadata.len() })
            }
            Self::Archive(archive) => {
                let (offset, left) = archive.find(name).ok_or_else(|| read(io::ErrorKind::NotFound.into()))?;
                Ok(Piece { file: archive.file.try_clone().map_err(read)?, offset, left })
            }
        }
    }

    /// Reads the JSON document `name`.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, OciError> {
        let mut file = self.open(name)?;
        if file.left > MAX_DOCUMENT {
            return Err(OciError::TooLarge { path: self.path(name), actual: file.left, limit: MAX_DOCUMENT });
        }
        let mut data = Vec::new();
        file.read_to_end(&mut data).map_err(|source| OciError::Read { path: self.path(name), source })?;
        Ok(data)
    }
}

impl Archive {
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name.as_bytes().to_vec();
        for _ in 0..MAX_LINKS {
            match self.files.get(&name)? {
                Member::File { offset, bytes } => return Some((*offset, *bytes)),
                Member::Link(target) => name = components(target).ok()?.join(&b'/'),
            }
        }
        None
    }
}

/// Where a symbolic link called `name` leads within its archive; one that leaves it leads nowhere.
fn resolve(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut path: Vec<_> = name.split(|byte| *byte == b'/').collect();
    path.pop();
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            _ => path.push(component),
        }
    }
    path.join(&b'/')
}

/// A part of a file. Pieces of one file can be read side by side.
#[derive(Debug)]
pub(super) struct Piece {
    file: File,
    offset: u64,
    left: u64,
}

impl Piece {
    /// Bytes that are left to read.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Piece {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let count = self.file.read_at(&mut into[..most], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
