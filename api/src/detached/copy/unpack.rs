//! Unpacking what an instance has given. It is taken for hostile: nothing is written outside of the destination, through no link, and
//! neither devices nor, unless that is asked for, set-id bits and owners come with it.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bellows_archive::{Entry, Kind};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::place::{There, is_contents, name, place};
use crate::error::UnpackError;

/// Most folders whose permissions wait until all is in them.
const MAX_CLOSED: usize = 65_536;

/// A stream that is being unpacked.
pub(super) struct Unpacking<'a> {
    source: &'a str,
    destination: &'a str,
    there: There,
    /// Owners and set-id bits are kept.
    archive: bool,
    /// From the first entry on.
    target: Option<Target>,
    /// Folders that its owner cannot write to, in the end.
    closed: Vec<(PathBuf, u32)>,
}

/// Where entries go.
struct Target {
    folder: OwnedFd,
    /// What the first component of all names becomes; nothing leaves it out.
    name: PathBuf,
}

impl<'a> Unpacking<'a> {
    /// What comes of `source`, to `destination`, where there is what is `there`.
    pub(super) fn new(source: &'a str, destination: &'a str, there: There, archive: bool) -> Self {
        Self { source, destination, there, archive, target: None, closed: Vec::new() }
    }

    /// Writes an entry.
    pub(super) fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), UnpackError> {
        let target = match self.target.take() {
            Some(target) => target,
            None => self.begin(entry)?,
        };
        let target = self.target.insert(target);
        // The root of the instance has no name that all others begin with.
        let mut components = entry.name.components();
        if self.source != "/" {
            components.next();
        }
        let path = target.name.join(components.as_path());
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let mode = if self.archive { entry.mode } else { entry.mode & 0o777 };
        let written = target.write(&path, entry, content, mode, self.archive);
        written.map_err(|source| UnpackError::Write { path: path.clone(), source })?;
        if entry.kind == Kind::Folder && mode & 0o700 != 0o700 {
            if self.closed.len() == MAX_CLOSED {
                return Err(UnpackError::Place(format!("more than {MAX_CLOSED} folders forbid their owner to write")));
            }
            self.closed.push((path, mode));
        }
        Ok(())
    }

    /// What can only be done once all entries are there.
    pub(super) fn finish(self) -> Result<(), UnpackError> {
        let Some(target) = self.target else { return Ok(()) };
        for (path, mode) in self.closed.iter().rev() {
            let set = target.open_folder(path, OFlag::O_RDONLY).map(File::from);
            let set = set.and_then(|folder| folder.set_permissions(Permissions::from_mode(*mode)));
            set.map_err(|source| UnpackError::Write { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Finds the place, which depends on what the first entry is.
    fn begin(&self, first: &Entry) -> Result<Target, UnpackError> {
        let is_folder = self.source == "/" || first.kind == Kind::Folder;
        let (source, called) = match self.source {
            "/" => ("/.", ".".into()),
            source if is_contents(source) => (source, name(source).unwrap_or_else(|_| ".".into())),
            source => (source, name(source).map_err(UnpackError::Place)?),
        };
        let place = place(is_folder, source, &called, self.there, self.destination).map_err(UnpackError::Place)?;
        let failed = |error: Errno| UnpackError::Write { path: place.folder.clone().into(), source: error.into() };
        // The user's own path: its links count.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(&*place.folder, flags, Mode::empty()).map_err(failed)?;
        let name = if place.name == "." { PathBuf::new() } else { PathBuf::from(&place.name) };
        let target = Target { folder, name };
        if self.source == "/" && !target.name.as_os_str().is_empty() {
            // It has no entry of its own.
            mkdirat(&target.folder, &target.name, Mode::S_IRWXU).map_err(failed)?;
        }
        Ok(target)
    }
}

impl Target {
    fn write(&self, path: &Path, entry: &Entry, content: &mut dyn Read, mode: u32, with_owner: bool) -> io::Result<()> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = self.open_folder(parent, OFlag::O_PATH)?;
        let found = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Some(SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error.into()),
        };
        match (&entry.kind, found) {
            (Kind::Folder, Some(true)) => return Ok(()),
            (Kind::Folder, Some(false)) => return Err(io::Error::other("a file is in the place of a folder")),
            (_, Some(true)) => return Err(io::Error::other("a folder is in the place of a file")),
            (Kind::File | Kind::Link(_), Some(false)) => unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?,
            _ => {}
        }
        let owner = with_owner.then_some((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)));
        match &entry.kind {
            Kind::Folder => {
                mkdirat(&parent, name, Mode::S_IRWXU)?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let folder = File::from(openat(&parent, name, flags, Mode::empty())?);
                if let Some((uid, gid)) = owner {
                    fchown(&folder, Some(uid.as_raw()), Some(gid.as_raw()))?;
                }
                folder.set_permissions(Permissions::from_mode(mode | 0o700))
            }
            Kind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut file = File::from(openat(&parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                io::copy(content, &mut file)?;
                if let Some((uid, gid)) = owner {
                    fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
                }
                file.set_permissions(Permissions::from_mode(mode))?;
                // A time that the system cannot have is not worth a failure.
                match SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(entry.mtime)) {
                    Some(time) => file.set_times(FileTimes::new().set_modified(time)),
                    None => Ok(()),
                }
            }
            Kind::Link(target) => {
                symlinkat(target, &parent, name)?;
                if let Some((uid, gid)) = owner {
                    fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
                Ok(())
            }
            Kind::Name(_) | Kind::Special => Err(io::Error::other("only files, folders and symbolic links are copied")),
        }
    }

    /// A folder below the target, through no link.
    fn open_folder(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve);
        Ok(openat2(&self.folder, path, how)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn entry(name: &str, kind: Kind, mode: u32) -> Entry {
        Entry { name: name.into(), kind, mode, uid: 12345, gid: 12345, mtime: 77 }
    }

    fn unpack(source: &str, destination: &Path, there: There, entries: &[Entry]) -> Result<(), String> {
        let destination = destination.to_str().unwrap();
        let mut unpacking = Unpacking::new(source, destination, there, false);
        let all = entries.iter().try_for_each(|entry| unpacking.add(entry, &mut &b"content"[..]));
        all.and_then(|()| unpacking.finish()).map_err(|error| crate::error::with_causes(&error))
    }

    #[test]
    fn files_come_without_owners_and_set_id_bits() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [
            entry("d", Kind::Folder, 0o2550),
            entry("d/f", Kind::File, 0o6755),
            entry("d/l", Kind::Link("/etc/passwd".into()), 0o777),
            entry("d/e", Kind::Folder, 0o755),
        ];
        unpack("/srv/d", folder.path(), There::Folder, &entries).unwrap();
        let found = |name: &str| fs::symlink_metadata(folder.path().join(name)).unwrap();
        assert_eq!(found("d").mode() & 0o7777, 0o550);
        assert_eq!((found("d/f").mode() & 0o7777, found("d/f").mtime()), (0o755, 77));
        assert_eq!(found("d/f").uid(), nix::unistd::geteuid().as_raw());
        assert_eq!(fs::read_to_string(folder.path().join("d/f")).unwrap(), "content");
        assert_eq!(fs::read_link(folder.path().join("d/l")).unwrap(), Path::new("/etc/passwd"));
        // Again: a file is replaced, and a link is not followed.
        unpack("/srv/f", &folder.path().join("d/l"), There::File, &[entry("f", Kind::File, 0o600)]).unwrap();
        assert!(found("d/l").is_file());
    }

    #[test]
    fn names_follow_the_destination() {
        let folder = tempfile::tempdir().unwrap();
        let tree = [entry("d", Kind::Folder, 0o755), entry("d/f", Kind::File, 0o644)];
        let to = |name: &str| folder.path().join(name);
        unpack("/srv/d", &to("new"), There::Nothing, &tree).unwrap();
        unpack("/srv/d/.", folder.path(), There::Folder, &tree).unwrap();
        unpack("/", &to("root"), There::Nothing, &[entry("etc", Kind::Folder, 0o755)]).unwrap();
        for name in ["new/f", "f", "root/etc"] {
            assert!(to(name).exists(), "{name}");
        }
        let refused = unpack("/srv/d", &to("f"), There::File, &tree).unwrap_err();
        assert!(refused.contains("is a file"), "{refused}");
    }

    /// Neither what the stream has made before, nor what was there, leads it outside.
    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("old")).unwrap();
        let link = || Kind::Link(outside.clone());
        for entries in [
            vec![entry("d", Kind::Folder, 0o755), entry("d/l", link(), 0o777), entry("d/l/f", Kind::File, 0o644)],
            vec![entry("d", link(), 0o777), entry("d/f", Kind::File, 0o644)],
        ] {
            unpack("/d", &inside, There::Folder, &entries).unwrap_err();
        }
        unpack("/d/.", &inside, There::Folder, &[entry("d", Kind::Folder, 0o755), entry("d/old/f", Kind::File, 0o644)])
            .unwrap_err();
        for kind in [Kind::Special, Kind::Name("x".into())] {
            unpack("/d", &inside, There::Folder, &[entry("d", kind, 0o644)]).unwrap_err();
        }
        assert!(fs::read_dir(&outside).unwrap().next().is_none());
    }
}
