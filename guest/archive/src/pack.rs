//! The side that reads files.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tar::{Builder, EntryType, Header};

/// Whose the files are, for the reader of the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The user and group that they have.
    Kept,
    /// Root, whoever has them here.
    Root,
}

/// Writes what is at `path` to `sink` as a whole archive, where it is called `name`. With `.` as name only what is in a folder is
/// written, without the folder. A link is followed only where `path` ends in a slash.
///
/// # Errors
/// A file cannot be read, or `sink` fails.
pub fn pack(path: &Path, name: &str, owner: Owner, sink: impl Write) -> io::Result<()> {
    let mut packing = Packing { builder: Builder::new(sink), owner };
    // The last one is next.
    let mut pending = vec![(path.to_owned(), PathBuf::from(name))];
    while let Some((path, name)) = pending.pop() {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = fs::symlink_metadata(&path).map_err(named)?;
        if metadata.is_dir() {
            let children = fs::read_dir(&path).and_then(|children| {
                let child = |child: io::Result<fs::DirEntry>| child.map(|child| child.file_name());
                children.map(child).collect::<io::Result<Vec<_>>>()
            });
            let mut children = children.map_err(named)?;
            children.sort_unstable_by(|a, b| b.cmp(a));
            pending.extend(children.iter().map(|child| (path.join(child), name.join(child))));
        }
        packing.add(&path, &name, &metadata).map_err(named)?;
    }
    packing.builder.into_inner()?.flush()
}

struct Packing<W: Write> {
    builder: Builder<W>,
    owner: Owner,
}

impl<W: Write> Packing<W> {
    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        let name = name.strip_prefix(".").unwrap_or(name);
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        let (uid, gid) = match self.owner {
            Owner::Kept => (metadata.uid(), metadata.gid()),
            Owner::Root => (0, 0),
        };
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_size(0);
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            // The slash makes even a folder's link one of a folder to other programs.
            self.builder.append_data(&mut header, name.join(""), io::empty())
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            self.builder.append_link(&mut header, name, fs::read_link(path)?)
        } else if kind.is_file() {
            // Another file may have taken its place.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
            let found = file.metadata()?;
            if !found.is_file() {
                return Err(io::Error::other("it was replaced while it was read"));
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            self.builder.append_data(&mut header, name, Exactly { file, left: found.len() })
        } else {
            Ok(())
        }
    }
}

/// As many bytes of a file as were announced, however it grows.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let count = self.file.read(&mut into[..most])?;
        if count == 0 && most != 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
