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
    publish(file, path, |_| Ok(false))
}

/// Gives a finished file its name: its content is on the disk before its name is. `seal` is called with the file when
/// nobody has it open for writing any more.
pub(super) fn publish(
    file: NamedTempFile,
    path: &Path,
    seal: impl FnOnce(&File) -> io::Result<bool>,
) -> Result<(), StoreError> {
    file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(io_error("protect", file.path()))?;
    file.as_file().sync_all().map_err(io_error("flush", file.path()))?;
    let file = file.into_temp_path();
    File::open(&file).and_then(|file| seal(&file)).map_err(io_error("seal", &file))?;
    file.persist(path).map_err(|error| io_error("rename a file to", path)(error.error))?;
    flush_directory(path)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => flush_directory(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// Brings the change of the name `path` to the disk.
fn flush_directory(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(directory) => File::open(directory).and_then(|d| d.sync_all()).map_err(io_error("flush", directory)),
        None => Ok(()),
    }
}

/// Opens a lock file, making it where it is missing.
pub(super) fn open_lock(path: &Path) -> Result<File, StoreError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).open(path).map_err(io_error("open", path))
}
