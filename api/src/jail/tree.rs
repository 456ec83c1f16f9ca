//! Directories by descriptor: no path is looked up twice, and no symbolic link is ever followed below the base.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::error::{JailError, system};
use super::undo::Made;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    /// Its name, for messages.
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens a directory that the caller of the program has named. Links in its name are resolved once, here.
    ///
    /// # Errors
    /// It cannot be opened, or is no directory.
    pub(super) fn open(path: &Path) -> Result<Self, JailError> {
        let path = fs::canonicalize(path).map_err(system("find", path))?;
        let links = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(DIRECTORY).resolve(links);
        let fd = openat2(nix::fcntl::AT_FDCWD, &path, how).map_err(system("open the directory", &path))?;
        Ok(Self { fd, path })
    }

    /// The directory `name` in this one, which is made if it is missing.
    ///
    /// # Errors
    /// It is something else, such as a link, or the system refused.
    pub(super) fn child(&self, name: &str, mode: u32, made: &mut Made) -> Result<Self, JailError> {
        let path = self.path.join(name);
        let is_new = match mkdirat(&self.fd, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(system("make the directory", &path)(error)),
        };
        if is_new {
            made.directory(self.duplicate()?, name);
        }
        let fd = openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(system("open the directory", &path))?;
        if is_new {
            // Whatever the process's umask is.
            fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(system("set the mode of", &path))?;
        }
        Ok(Self { fd, path })
    }

    /// Holds that nobody but one of `owners` can change what is in it.
    pub(super) fn expect_owner(&self, owners: &[Uid]) -> Result<(), JailError> {
        let status = self.status()?;
        let (found, mode) = (status.st_uid, status.st_mode & 0o7777);
        if owners.contains(&Uid::from_raw(found)) && mode & 0o022 == 0 {
            return Ok(());
        }
        let expected = owners.last().copied().unwrap_or(Uid::from_raw(0)).as_raw();
        Err(JailError::Owner { path: self.path.clone(), found, mode, expected })
    }

    /// Gives it to a user.
    pub(super) fn give(&self, uid: Uid, gid: Gid, mode: u32) -> Result<(), JailError> {
        fchown(&self.fd, Some(uid), Some(gid)).map_err(system("give away", &self.path))?;
        fchmod(&self.fd, Mode::from_bits_truncate(mode)).map_err(system("set the mode of", &self.path))
    }

    /// A new, empty file, in the place of a regular one that may be there.
    ///
    /// # Errors
    /// Something else is there, or the system refused.
    pub(super) fn new_file(&self, name: &str, mode: u32, made: &mut Made) -> Result<File, JailError> {
        let path = self.path.join(name);
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            Ok(status) if SFlag::from_bits_truncate(status.st_mode & libc::S_IFMT) == SFlag::S_IFREG => {
                unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir).map_err(system("replace", &path))?;
            }
            Ok(_) => return Err(system("replace", &path)(Errno::EEXIST)),
            Err(error) => return Err(system("look at", &path)(error)),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(system("make", &path))?;
        made.file(self.duplicate()?, name);
        fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(system("set the mode of", &path))?;
        Ok(File::from(fd))
    }

    /// A regular file in it, to write to.
    pub(super) fn existing_file(&self, name: &str) -> Result<File, JailError> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(system("open", self.path.join(name)))?;
        Ok(File::from(fd))
    }

    /// Its name, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn duplicate(&self) -> Result<OwnedFd, JailError> {
        self.fd.try_clone().map_err(system("open", &self.path))
    }

    fn status(&self) -> Result<FileStat, JailError> {
        fstat(&self.fd).map_err(system("look at", &self.path))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
