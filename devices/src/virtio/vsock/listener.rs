//! The Unix socket where host clients ask for streams to the guest.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::bound::BoundSocket;

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
    /// The path is in use or unusable.
    #[error("cannot listen on the vsock socket `{}`", path.display())]
    Bind {
        /// The path in question.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct HostListener(BoundSocket);

impl HostListener {
    /// Listens at `path`, which must be free or hold the socket of a killed monitor.
    ///
    /// # Errors
    /// See [`ListenError`]; nothing is left behind.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().as_bytes().len() > MAX_PATH - MAX_SUFFIX {
            return Err(ListenError::PathTooLong { path: path.to_owned() });
        }
        BoundSocket::bind(path).map(Self).map_err(|source| ListenError::Bind { path: path.to_owned(), source })
    }

    /// The next waiting client, or [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// No client waits, or descriptors have run out.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.0.accept().map(|(stream, _)| stream)
    }

    /// The path of the socket that serves host port `port`, if there is one.
    #[must_use]
    pub fn port_path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(self.0.path());
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for HostListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_error_names_a_path_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let _first = HostListener::bind(&path).unwrap();
        let second = HostListener::bind(&path).unwrap_err();
        assert!(second.to_string().contains(path.to_str().unwrap()), "{second}");
        assert!(second.source().is_some());
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
