//! A listening Unix socket that removes its file when dropped.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use bellows_memory::limited;

use crate::socket;

/// A listening socket that does not block; its file is removed when this is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    file: (u64, u64),
}

impl BoundSocket {
    /// Listens at `path`, which must be free or hold a socket without a listener, such as a killed process leaves.
    ///
    /// # Errors
    /// The path is in use or unusable; nothing is left behind.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = bind(path)?;
        let file = match listener.set_nonblocking(true).and_then(|()| identity(path)) {
            Ok(file) => file,
            Err(error) => {
                // Report the first error.
                let _ = fs::remove_file(path);
                return Err(error);
            }
        };
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for BoundSocket {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Another program may have put its own file there.
        if identity(&self.path).ok() == Some(self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            limited!(warn, path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

/// Binds at `path` and listens. A lock on its directory keeps two monitors from treating each other's new socket as abandoned.
/// If another process holds that lock, this does not wait, and leaves an existing file alone.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = File::open(parent).ok().filter(|directory| directory.try_lock().is_ok());
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && locked.is_some() && is_abandoned(path) => {
            tracing::debug!(path = %path.display(), "replaced the socket of a killed process");
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Whether `path` is a socket without a listener.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && socket::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_a_socket_without_a_listener_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = BoundSocket::bind(&path).unwrap();
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());

        // A socket of a killed process.
        drop(UnixListener::bind(&path).unwrap());
        let next = BoundSocket::bind(&path).unwrap();
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(next);
        assert!(!path.exists());

        // A file that is not a socket.
        fs::write(&path, "precious").unwrap();
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_listener_that_is_too_busy_to_accept_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let busy = BoundSocket::bind(&path).unwrap();
        // SAFETY: no pointers are passed; the socket listens already, and gets a shorter queue.
        assert_eq!(unsafe { libc::listen(busy.as_raw_fd(), 0) }, 0);
        let mut clients = Vec::new();
        while let Ok(client) = socket::connect(&path) {
            clients.push(client);
        }
        assert_eq!(BoundSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(busy);
    }

    #[test]
    fn dropping_it_leaves_files_of_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let replaced = BoundSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(replaced);
        assert!(path.exists());
    }
}
