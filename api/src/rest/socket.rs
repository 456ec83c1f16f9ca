//! The Unix socket of the API: for its owner alone, and gone with the server.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

/// A listening socket in the file system. Dropping it removes the file, unless another one is there by now.
pub(crate) struct Socket {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`, where nothing may be yet. Call it before other threads make files: it sets the mask of the process for a
    /// moment, so that the socket is never there for others.
    ///
    /// # Errors
    /// Something is there, or the system refused.
    pub(crate) fn bind(path: &Path) -> io::Result<(Self, UnixListener)> {
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        Ok((Self::at(path)?, listener))
    }
}

impl Socket {
    /// Takes over what listens at `path` and is this process's standard input.
    ///
    /// # Errors
    /// The system refused, or nothing is at `path`.
    pub(crate) fn of_stdin(path: &Path) -> io::Result<(Self, UnixListener)> {
        let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok((Self::at(path)?, listener))
    }

    /// Leaves the file to another process, which has the listener.
    pub(crate) fn leave(mut self) {
        self.path = PathBuf::new();
    }

    fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket of the API");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_and_goes_with_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let (socket, _listener) = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Socket::bind(&path).map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn anothers_file_at_the_path_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let (socket, _listener) = Socket::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::write(&path, "").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
