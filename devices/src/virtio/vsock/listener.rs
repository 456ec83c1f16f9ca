//! The Unix socket where host clients ask for streams to the guest.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bellows_memory::limited;

/// Bytes that a Unix socket's path may have, without its end.
const MAX_PATH: usize = 107;

/// Longest suffix of the socket that serves a port: `_4294967295`.
const MAX_SUFFIX: usize = 11;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path leaves no room for the port's number after it.
    #[error("the vsock socket path `{}` is longer than {} bytes", path.display(), MAX_PATH - MAX_SUFFIX)]
    PathTooLong {
        /// The path in question.
        path: PathBuf,
    },
    /// The path is in use or can't be used. A file left behind by a monitor that was killed is for its owner to remove.
    #[error("cannot listen on the vsock socket `{}`", path.display())]
    Bind {
        /// The path in question.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// A listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct HostListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    file: (u64, u64),
}

impl HostListener {
    /// Listens at `path`, where nothing may be yet.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing was left behind.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().as_bytes().len() > MAX_PATH - MAX_SUFFIX {
            return Err(ListenError::PathTooLong { path: path.to_owned() });
        }
        let error = |source| ListenError::Bind { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(error)?;
        let file = match listener.set_nonblocking(true).and_then(|()| identity(path)) {
            Ok(file) => file,
            Err(source) => {
                // The first error is the one to tell.
                let _ = fs::remove_file(path);
                return Err(error(source));
            }
        };
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// The next client that waits, or [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// There is none, or no descriptor for it.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// The socket that serves the host port `port`, if somebody listens there.
    #[must_use]
    pub fn port_path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for HostListener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        // Somebody may have put another file there, which is not ours to remove.
        if identity(&self.path).ok() == Some(self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            limited!(warn, path = %self.path.display(), %error, "cannot remove the vsock socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn leaves_files_of_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let first = HostListener::bind(&path).unwrap();
        let second = HostListener::bind(&path).unwrap_err();
        assert!(second.to_string().contains(path.to_str().unwrap()), "{second}");
        assert!(second.source().is_some());
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());

        // A socket whose owner was killed.
        drop(UnixListener::bind(&path).unwrap());
        assert!(HostListener::bind(&path).is_err());
        assert!(path.exists());
        fs::remove_file(&path).unwrap();

        let replaced = HostListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(replaced);
        assert!(path.exists());
    }

    #[test]
    fn every_port_must_fit_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let room = MAX_PATH - MAX_SUFFIX - dir.path().as_os_str().len() - 1;
        let listener = HostListener::bind(&dir.path().join("x".repeat(room))).unwrap();
        let _port = UnixListener::bind(listener.port_path(u32::MAX)).unwrap();
        let error = HostListener::bind(&dir.path().join("x".repeat(room + 1))).unwrap_err();
        assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
    }
}
