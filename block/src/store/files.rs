//! Files that appear as a whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::StoreError;

/// What turns an I/O error into one that says what was tried.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

pub(super) fn open_or_create_dir(path: &Path) -> Result<(), StoreError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path)(error)),
        _ => Ok(()),
    }
}

/// Makes the file `path` with `content`, read-only, in the place of one that may be there.
pub(super) fn write_atomically(tmp: &Path, path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut file = NamedTempFile::new_in(tmp).map_err(io_error("create a file in", tmp))?;
    file.write_all(content).map_err(io_error("write", file.path()))?;
    publish(file, path)
}

/// Gives a finished file its name: its content is on the disk before its name is.
pub(super) fn publish(file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
    file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(io_error("protect", file.path()))?;
    file.as_file().sync_all().map_err(io_error("flush", file.path()))?;
    file.persist(path).map_err(|error| io_error("rename a file to", path)(error.error))?;
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|d| d.sync_all()).map_err(io_error("flush", directory))?;
    }
    Ok(())
}

/// Opens a lock file, making it where it is missing.
pub(super) fn open_lock(path: &Path) -> Result<File, StoreError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).open(path).map_err(io_error("open", path))
}
