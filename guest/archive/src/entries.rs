//! The side that writes files. The stream is taken for hostile: all that is held of it is bounded.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

/// Longest name, or target of a link.
const MAX_NAME: u64 = 4096;
/// Most bytes of a PAX header.
const MAX_PAX: u64 = 64 << 10;
/// Most bytes that are read behind the end.
const MAX_REST: u64 = 1 << 20;

/// Why a stream cannot be unpacked.
#[derive(Debug)]
pub enum EntryError {
    /// It breaks off, or is no archive.
    Read(io::Error),
    /// An entry that nobody may have.
    Entry {
        /// The beginning of its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl fmt::Display for EntryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(formatter, "cannot read the archive: {error}"),
            Self::Entry { name, problem } => write!(formatter, "entry {name:?} of the archive {problem}"),
        }
    }
}

impl std::error::Error for EntryError {}

impl From<io::Error> for EntryError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A file, whose content follows.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to anything.
    Link(PathBuf),
    /// A further name of an earlier entry: its components.
    Name(PathBuf),
    /// A device, pipe or socket.
    Special,
}

/// An entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its name: normal components only, empty for the root of the archive.
    pub name: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-id bits and the sticky bit.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// The entries of a stream, to be taken one after the other.
pub struct Entries<R>(R);

impl<R: Read> Entries<R> {
    /// Those of `stream`.
    pub fn new(stream: R) -> Self {
        Self(stream)
    }

    /// Calls `each` for each entry, with its content, up to the mark that ends an archive.
    ///
    /// # Errors
    /// The stream ends without that mark, an entry is not acceptable, or `each` fails.
    pub fn each<E: From<EntryError>>(
        self,
        mut each: impl FnMut(&Entry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stream = Watched { stream: self.0, has_ended: false };
        let mut archive = tar::Archive::new(&mut stream);
        let entries = archive.entries().map_err(EntryError::Read)?.raw(true);
        // What comes before an entry, and is about it.
        let (mut long_name, mut long_link) = (None, None);
        for entry in entries {
            let mut entry = entry.map_err(EntryError::Read)?;
            let header = entry.header();
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => {
                    long_name = Some(text(&mut entry)?);
                    continue;
                }
                EntryType::GNULongLink => {
                    long_link = Some(text(&mut entry)?);
                    continue;
                }
                EntryType::XGlobalHeader => continue,
                EntryType::XHeader => {
                    pax(&mut entry, &mut long_name, &mut long_link)?;
                    continue;
                }
                _ => {}
            }
            let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
            let link = long_link.take().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            let wrong = |problem| EntryError::Entry { name: excerpt(&name), problem };
            let target = || link.clone().filter(|link| !link.is_empty()).ok_or(wrong("is a link to nothing"));
            let kind = match kind {
                EntryType::Regular | EntryType::Continuous => Kind::File,
                EntryType::Directory => Kind::Folder,
                EntryType::Symlink => Kind::Link(PathBuf::from(OsString::from_vec(target()?))),
                EntryType::Link => Kind::Name(clean(&target()?).ok_or(wrong("is a name of something outside"))?),
                EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Special,
                _ => return Err(wrong("has a type that is not known here").into()),
            };
            let number = |number: io::Result<u64>| {
                number
                    .ok()
                    .and_then(|number| u32::try_from(number).ok())
                    .ok_or(wrong("has an owner or a mode out of range"))
            };
            let parsed = Entry {
                name: clean(&name).ok_or(wrong("has a name that leads outside"))?,
                kind,
                mode: number(header.mode().map(u64::from))? & 0o7777,
                uid: number(header.uid())?,
                gid: number(header.gid())?,
                mtime: header.mtime().map_err(EntryError::Read)?,
            };
            each(&parsed, &mut entry)?;
        }
        // A block of zeros ends an archive, before the stream ends.
        if stream.has_ended {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it ends without the mark of its end");
            return Err(EntryError::Read(error).into());
        }
        // Whoever writes it is not to fail; and it may break off still.
        io::copy(&mut stream.stream.take(MAX_REST), &mut io::sink()).map_err(EntryError::Read)?;
        Ok(())
    }
}

/// A name or a target that has an entry of its own, without the zero at its end.
fn text(entry: &mut impl Read) -> Result<Vec<u8>, EntryError> {
    let mut bytes = Vec::new();
    entry.take(MAX_NAME + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_NAME {
        return Err(EntryError::Entry { name: excerpt(&bytes), problem: "has a name that no file can have" });
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

/// The name and the target that a PAX header has for the next entry. A size there is refused: contents are as long as headers say.
fn pax(entry: &mut impl Read, name: &mut Option<Vec<u8>>, link: &mut Option<Vec<u8>>) -> Result<(), EntryError> {
    let mut bytes = Vec::new();
    entry.take(MAX_PAX + 1).read_to_end(&mut bytes)?;
    let wrong = |problem| EntryError::Entry { name: excerpt(&bytes), problem };
    if bytes.len() as u64 > MAX_PAX {
        return Err(wrong("has a header that is too long"));
    }
    for record in tar::PaxExtensions::new(&bytes) {
        let record = record?;
        match record.key_bytes() {
            b"path" => *name = Some(record.value_bytes().to_owned()),
            b"linkpath" => *link = Some(record.value_bytes().to_owned()),
            b"size" => return Err(wrong("has its size in a header that is not read here")),
            _ => {}
        }
    }
    Ok(())
}

/// The normal components of a name; `None` if it leads out of the archive.
fn clean(name: &[u8]) -> Option<PathBuf> {
    if name.contains(&0) || name.len() as u64 > MAX_NAME {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(name.to_owned()));
    let mut clean = PathBuf::new();
    for component in Path::new(&path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

fn excerpt(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(80).collect()
}

/// A stream that knows whether it has ended.
struct Watched<R> {
    stream: R,
    has_ended: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(into)?;
        self.has_ended |= count == 0 && !into.is_empty();
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tar::{Builder, Header};

    use super::*;
    use crate::{Owner, pack};

    /// Names, kinds and contents of a stream.
    fn read(stream: &[u8]) -> Result<Vec<(String, Kind, String)>, EntryError> {
        let mut found = Vec::new();
        Entries::new(stream).each(|entry, content| {
            let mut text = String::new();
            content.read_to_string(&mut text)?;
            found.push((entry.name.to_str().unwrap().to_owned(), entry.kind.clone(), text));
            Ok::<_, EntryError>(())
        })?;
        Ok(found)
    }

    fn packed(path: &Path, name: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        pack(path, name, Owner::Root, &mut stream).unwrap();
        stream
    }

    #[test]
    fn what_is_packed_comes_out() {
        let folder = tempfile::tempdir().unwrap();
        let long = "long".repeat(60);
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b").join(&long), "content").unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("/elsewhere", folder.path().join("c")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("d"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let expected = |root: &str| {
            let name = |name: &str| if root.is_empty() { name.to_owned() } else { format!("{root}/{name}") };
            let file = |path: &str, text: &str| (name(path), Kind::File, text.to_owned());
            let link = Kind::Link("/elsewhere".into());
            vec![
                file("a", ""),
                (name("b"), Kind::Folder, String::new()),
                file(&format!("b/{long}"), "content"),
                (name("c"), link, String::new()),
            ]
        };
        assert_eq!(read(&packed(folder.path(), ".")).unwrap(), expected(""));
        let named = read(&packed(folder.path(), "x")).unwrap();
        assert_eq!((&named[0].0[..], &named[1..]), ("x", &expected("x")[..]));
        let mut mode = 0;
        let stream = packed(&folder.path().join("a"), "a");
        let look = |entry: &Entry, _: &mut dyn Read| {
            mode = entry.mode;
            Ok::<_, EntryError>(())
        };
        Entries::new(&stream[..]).each(look).unwrap();
        assert_eq!(mode, 0o4751);
        // A link itself, and what it leads to.
        symlink(folder.path().join("b"), folder.path().join("e")).unwrap();
        assert!(matches!(read(&packed(&folder.path().join("e"), "e")).unwrap()[..], [(_, Kind::Link(_), _)]));
        assert_eq!(read(&packed(&folder.path().join("e/"), "e")).unwrap().len(), 2);
    }

    #[test]
    fn a_stream_that_breaks_off_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), [0; 1024]).unwrap();
        let whole = packed(folder.path(), ".");
        assert_eq!(read(&whole).unwrap().len(), 1);
        for length in [0, 512, 600, 1024, 1536] {
            read(&whole[..length]).unwrap_err();
        }
    }

    fn one(kind: EntryType, name: &[u8], link: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        for set in [Header::set_size, Header::set_uid, Header::set_gid, Header::set_mtime] {
            set(&mut header, 0);
        }
        header.set_mode(0o644);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn no_name_leads_out_of_the_stream() {
        for name in ["../a", "a/../../b", "a/..", ".."] {
            let error = read(&one(EntryType::Regular, name.as_bytes(), b"")).unwrap_err().to_string();
            assert!(error.contains("leads outside"), "{name}: {error}");
        }
        assert_eq!(read(&one(EntryType::Regular, b"/etc/./passwd", b"")).unwrap()[0].0, "etc/passwd");
        read(&one(EntryType::Link, b"a", b"../x")).unwrap_err();
        read(&one(EntryType::Link, b"a", b"")).unwrap_err();
        read(&one(EntryType::new(b'?'), b"a", b"")).unwrap_err();
        assert_eq!(read(&one(EntryType::Block, b"a", b"")).unwrap()[0].1, Kind::Special);
    }

    /// A name takes no more memory than a name can have, whatever its entry says.
    #[test]
    fn a_long_name_is_bounded() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 40);
            header.set_cksum();
            let stream = (&header.as_bytes()[..]).chain(io::repeat(b'x'));
            let each = |_: &Entry, _: &mut dyn Read| Ok::<_, EntryError>(());
            assert!(Entries::new(stream).each(each).is_err());
        }
    }
}
