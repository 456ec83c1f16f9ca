//! A directory as a tar stream, so that it is imported the way an archive is and has a digest as one has.
//!
//! The stream depends on nothing but what is in the directory: names are sorted, and holes are where the file system has
//! them. Symbolic links are not followed.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use tar::{EntryType, Header};

use super::pax::{SOCKET, write_record};

const BLOCK: u64 = 512;
/// Largest number that eleven octal digits hold.
const MAX_SIZE: u64 = (1 << 33) - 1;
/// Largest number that seven octal digits hold.
const MAX_ID: u32 = (1 << 21) - 1;

/// A file or directory, whatever names lead to it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// What `path` leads to.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::metadata(path)?))
    }

    /// Whether `path` is in this directory, however deep, or the directory itself.
    pub fn holds(self, path: &Path) -> io::Result<bool> {
        for directory in fs::canonicalize(path)?.ancestors() {
            if Self::of(directory)? == self {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Reads as the archive of a directory.
pub(crate) struct DirectoryArchive {
    root: PathBuf,
    /// The root itself, once it is being read.
    folder: Option<OwnedFd>,
    /// A directory that is not taken for part of it.
    left_out: Option<FileId>,
    /// What is still to come, next one last, as names below the root.
    pending: Vec<PathBuf>,
    /// The first name of files that have several.
    names: HashMap<FileId, Vec<u8>>,
    /// Headers that were not read yet.
    headers: VecDeque<u8>,
    data: Option<Data>,
    ended: bool,
}

/// What a name led to when it was read first, and what it is from then on, whatever takes its place.
struct Found {
    descriptor: OwnedFd,
}

impl Found {
    /// What `relative` leads to below `folder`. No link is followed on the way: somebody may just have put one there.
    fn below(folder: &OwnedFd, relative: &Path) -> io::Result<Self> {
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        Ok(Self { descriptor: openat2(folder, relative, OpenHow::new().flags(flags).resolve(resolve))? })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        fs::metadata(self.path())
    }

    /// A path that leads to it; it is not followed further where it is a link.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()).into()
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read `{}`: {error}", path.display()))
}

/// A file's data that was not read yet.
struct Data {
    path: PathBuf,
    file: File,
    segments: VecDeque<(u64, u64)>,
    padding: u64,
}

impl DirectoryArchive {
    /// The archive of `root`, which is read as the archive is, without the directory `left_out`.
    pub fn new(root: PathBuf, left_out: Option<FileId>) -> Self {
        Self {
            root,
            folder: None,
            left_out,
            pending: vec![PathBuf::new()],
            names: HashMap::new(),
            headers: VecDeque::new(),
            data: None,
            ended: false,
        }
    }

    /// Prepares the next entry, or the end.
    fn next(&mut self) -> io::Result<()> {
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => open(&self.root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|error| named(&self.root, error.into()))?,
        };
        let folder = self.folder.insert(folder);
        let Some(relative) = self.pending.pop() else {
            self.headers.extend([0; 2 * BLOCK as usize]);
            self.ended = true;
            return Ok(());
        };
        let path = self.root.join(&relative);
        let named = |error: io::Error| named(&path, error);
        let found = Found::below(folder, &relative).map_err(named)?;
        let metadata = found.metadata().map_err(named)?;
        if metadata.is_dir() {
            if self.left_out == Some(FileId::from(&metadata)) {
                return Ok(());
            }
            let entries = fs::read_dir(found.path()).and_then(|entries| {
                entries.map(|entry| Ok(relative.join(entry?.file_name()))).collect::<io::Result<Vec<_>>>()
            });
            let mut entries = entries.map_err(named)?;
            entries.sort_unstable_by(|a, b| b.cmp(a));
            self.pending.extend(entries);
        }
        self.entry(&relative, &found, &metadata).map_err(named)
    }

    fn entry(&mut self, relative: &Path, found: &Found, metadata: &Metadata) -> io::Result<()> {
        let mut name = relative.as_os_str().as_bytes().to_vec();
        if metadata.is_dir() {
            name.extend(if name.is_empty() { &b"./"[..] } else { b"/" });
        }
        let mut pax = Vec::new();
        let mut link = Vec::new();
        let mut size = 0;
        let kind = metadata.file_type();
        let first = if metadata.nlink() > 1 && !metadata.is_dir() {
            self.names.insert(FileId::from(metadata), name.clone())
        } else {
            None
        };
        let entry_type = if let Some(first) = first {
            link.clone_from(&first);
            self.names.insert(FileId::from(metadata), first);
            EntryType::Link
        } else {
            for attribute in xattr::list_deref(found.path())? {
                let value = xattr::get_deref(found.path(), &attribute)?.unwrap_or_default();
                write_record(&mut pax, &[b"SCHILY.xattr.", attribute.as_bytes()].concat(), &value);
            }
            if kind.is_symlink() {
                link = readlinkat(&found.descriptor, "")?.into_vec();
                EntryType::Symlink
            } else if kind.is_dir() {
                EntryType::Directory
            } else if kind.is_fifo() {
                EntryType::Fifo
            } else if kind.is_char_device() {
                EntryType::Char
            } else if kind.is_block_device() {
                EntryType::Block
            } else if kind.is_socket() {
                write_record(&mut pax, SOCKET, b"1");
                EntryType::Regular
            } else {
                size = self.open(relative, found, &name, &mut pax)?;
                EntryType::Regular
            }
        };
        if metadata.mtime_nsec() != 0 || metadata.mtime() < 0 {
            write_record(&mut pax, b"mtime", &time(metadata.mtime(), metadata.mtime_nsec()));
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(entry_type);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0).min(MAX_SIZE));
        if metadata.mtime() > MAX_SIZE.cast_signed() {
            write_record(&mut pax, b"mtime", &time(metadata.mtime(), metadata.mtime_nsec()));
        }
        for (keyword, id) in [(&b"uid"[..], metadata.uid()), (b"gid", metadata.gid())] {
            if id > MAX_ID {
                write_record(&mut pax, keyword, id.to_string().as_bytes());
            }
        }
        header.set_uid(metadata.uid().min(MAX_ID).into());
        header.set_gid(metadata.gid().min(MAX_ID).into());
        if size > MAX_SIZE {
            write_record(&mut pax, b"size", size.to_string().as_bytes());
        }
        header.set_size(size.min(MAX_SIZE));
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(libc::major(metadata.rdev()))?;
            header.set_device_minor(libc::minor(metadata.rdev()))?;
        }
        let fields = header.as_ustar_mut().ok_or(io::ErrorKind::InvalidData)?;
        put(&mut fields.name, &name, b"path", &mut pax);
        put(&mut fields.linkname, &link, b"linkpath", &mut pax);
        header.set_cksum();
        if !pax.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.set_size(pax.len() as u64);
            extended.set_cksum();
            self.headers.extend(extended.as_bytes());
            self.headers.extend(&pax);
            self.headers.extend(vec![0; padding(pax.len() as u64)]);
        }
        self.headers.extend(header.as_bytes());
        if let Some(map) = self.data.as_ref().and_then(Data::map) {
            self.headers.extend(map);
        }
        Ok(())
    }

    /// Opens a regular file; how many bytes the archive holds of it, the list of its holes included.
    fn open(&mut self, relative: &Path, found: &Found, name: &[u8], pax: &mut Vec<u8>) -> io::Result<u64> {
        let file = File::open(found.path())?;
        let metadata = file.metadata()?;
        let bytes = metadata.len();
        let mut segments = VecDeque::from([(0, bytes)]);
        let mut size = bytes;
        let path = self.root.join(relative);
        let mut data = Data { path, file, segments: VecDeque::new(), padding: 0 };
        if metadata.blocks() * BLOCK < bytes {
            segments = data_segments(&data.file, bytes)?;
        }
        let sparse = segments != [(0, bytes)] && bytes > 0;
        data.segments = segments;
        if sparse {
            for (keyword, value) in [("major", "1"), ("minor", "0"), ("realsize", &bytes.to_string())] {
                write_record(pax, format!("GNU.sparse.{keyword}").as_bytes(), value.as_bytes());
            }
            write_record(pax, b"GNU.sparse.name", name);
            let stored = data.segments.iter().map(|(_, length)| length).sum::<u64>();
            size = stored + data.map().map_or(0, |map| map.len() as u64);
        }
        data.padding = padding(size) as u64;
        self.data = Some(data);
        Ok(size)
    }
}

impl Data {
    /// The list of segments that precedes the data of a file with holes; `None` for one without.
    fn map(&self) -> Option<Vec<u8>> {
        let bytes = self.file.metadata().ok()?.len();
        if self.segments == [(0, bytes)] || bytes == 0 {
            return None;
        }
        let mut map = format!("{}\n", self.segments.len());
        for (offset, length) in &self.segments {
            map += &format!("{offset}\n{length}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len() + padding(map.len() as u64), 0);
        Some(map)
    }

    /// Reads on; 0 once all was read.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some((offset, length)) = self.segments.front_mut() {
            if *length == 0 {
                self.segments.pop_front();
                continue;
            }
            let most = usize::try_from(*length).map_or(into.len(), |length| length.min(into.len()));
            let count = self.file.read_at(&mut into[..most], *offset)?;
            if count == 0 {
                return Err(io::Error::other(format!("`{}` became shorter while it was read", self.path.display())));
            }
            *offset += count as u64;
            *length -= count as u64;
            return Ok(count);
        }
        let count = usize::try_from(self.padding).map_or(into.len(), |padding| padding.min(into.len()));
        into[..count].fill(0);
        self.padding -= count as u64;
        Ok(count)
    }
}

impl Read for DirectoryArchive {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.headers.is_empty() {
                return self.headers.read(into);
            }
            if let Some(data) = &mut self.data {
                match data.read(into)? {
                    0 => self.data = None,
                    count => return Ok(count),
                }
            } else if self.ended {
                return Ok(0);
            } else {
                self.next()?;
            }
        }
    }
}

/// Fills a header's field, or leaves it to a PAX record where the value is too long.
fn put(field: &mut [u8; 100], value: &[u8], keyword: &[u8], pax: &mut Vec<u8>) {
    if value.len() > field.len() {
        write_record(pax, keyword, value);
    }
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

/// Where a file has data and no hole.
fn data_segments(file: &File, bytes: u64) -> io::Result<VecDeque<(u64, u64)>> {
    let seek = |from: u64, whence| match lseek(file, i64::try_from(from).map_err(io::Error::other)?, whence) {
        Ok(at) => Ok(u64::try_from(at).map_err(io::Error::other)?.min(bytes)),
        // There is none behind `from`.
        Err(Errno::ENXIO) => Ok(bytes),
        Err(error) => Err(io::Error::from(error)),
    };
    let mut segments = VecDeque::new();
    let mut end = 0;
    while end < bytes {
        let start = seek(end, Whence::SeekData)?;
        end = seek(start, Whence::SeekHole)?.max(start);
        if end > start {
            segments.push_back((start, end - start));
        } else {
            break;
        }
    }
    Ok(segments)
}

/// A decimal number of seconds.
fn time(seconds: i64, nanoseconds: i64) -> Vec<u8> {
    if seconds < 0 && nanoseconds > 0 {
        let (whole, fraction) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
        return format!("-{whole}.{fraction:09}").into_bytes();
    }
    format!("{seconds}.{nanoseconds:09}").into_bytes()
}

/// Bytes that are missing to a whole block.
#[allow(clippy::cast_possible_truncation, reason = "below the size of a block")]
fn padding(bytes: u64) -> usize {
    (bytes.wrapping_neg() % BLOCK) as usize
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The next bytes of an archive.
    fn next(archive: &mut DirectoryArchive) -> io::Result<[u8; BLOCK as usize]> {
        let mut block = [0; BLOCK as usize];
        archive.read_exact(&mut block).map(|()| block)
    }

    /// As by somebody who may write to a part of it.
    #[test]
    fn a_link_that_takes_the_place_of_a_directory_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("a/file"), "inside").unwrap();
        fs::write(outside.join("file"), "outside").unwrap();
        for path in [&root, &root.join("a")] {
            File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let mut archive = DirectoryArchive::new(root.clone(), None);
        for name in [&b"./"[..], b"a/"] {
            assert!(next(&mut archive).unwrap().starts_with(name));
        }
        fs::rename(root.join("a"), root.join("b")).unwrap();
        symlink(&outside, root.join("a")).unwrap();
        let error = next(&mut archive).unwrap_err().to_string();
        assert!(error.contains("a/file"), "{error}");
    }
}
