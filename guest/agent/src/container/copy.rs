//! Reading and writing files of a container as a process in it: in its namespaces and its cgroup, with the rights of its root. What a path
//! means, and what memory that takes, is therefore the container's affair.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bellows_archive::{Entries, Entry, EntryError, Kind, Owner, pack};
use serde::{Deserialize, Serialize};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// In which direction.
    pub direction: Direction,
    /// An absolute path.
    pub path: String,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Says on standard output what is there: `folder`, `file` or `nothing`.
    Look,
    /// Writes an archive of the file or folder to standard output.
    Out,
    /// Unpacks an archive from standard input into the folder.
    In,
}

/// Does it; returns the exit code.
pub(super) fn run(copying: &Copying) -> i32 {
    let path = Path::new(&copying.path);
    let done = match copying.direction {
        Direction::Look => look(path),
        // A folder that is named by what is in it is called like the folder.
        Direction::Out => pack(path, name(path), Owner::Kept, io::stdout().lock()).map_err(|error| error.to_string()),
        Direction::In => unpack(path, io::stdin().lock()).map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    }
}

/// The name of what is at `path` in an archive.
fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or(".")
}

fn look(path: &Path) -> Result<(), String> {
    let found = match fs::metadata(path) {
        Ok(found) if found.is_dir() => "folder",
        Ok(_) => "file",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing",
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    writeln!(io::stdout(), "{found}").map_err(|error| error.to_string())
}

fn unpack(folder: &Path, stream: impl Read) -> Result<(), EntryError> {
    let named = |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if !fs::metadata(folder).map_err(|error| named(folder, error))?.is_dir() {
        return Err(named(folder, io::ErrorKind::NotADirectory.into()).into());
    }
    // Folders may forbid to write to them, and their times change with what is in them.
    let mut folders: Vec<(PathBuf, Entry)> = Vec::new();
    Entries::new(stream).each(|entry, content| {
        let path = folder.join(&entry.name);
        if !entry.name.as_os_str().is_empty() {
            add(folder, &path, entry, content).map_err(|error| named(&path, error))?;
            if entry.kind == Kind::Folder {
                folders.push((path, entry.clone()));
            }
        }
        Ok::<_, EntryError>(())
    })?;
    for (path, entry) in folders.iter().rev() {
        let set = fs::set_permissions(path, Permissions::from_mode(entry.mode));
        set.and_then(|()| set_time(&File::open(path)?, entry)).map_err(|error| named(path, error))?;
    }
    Ok(())
}

fn add(folder: &Path, path: &Path, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
    let found = fs::symlink_metadata(path);
    match (&entry.kind, found) {
        (Kind::Folder, Ok(found)) if found.is_dir() => return Ok(()),
        (Kind::Folder, Ok(_)) => return Err(io::Error::other("a file is in the place of a folder")),
        (_, Ok(found)) if found.is_dir() => return Err(io::Error::other("a folder is in the place of a file")),
        (_, Ok(_)) => fs::remove_file(path)?,
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
        }
        (_, Err(error)) => return Err(error),
    }
    match &entry.kind {
        Kind::Folder => {
            fs::create_dir(path)?;
            lchown(path, Some(entry.uid), Some(entry.gid))
        }
        Kind::File => {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
            io::copy(content, &mut file)?;
            // It takes set-id bits away.
            std::os::unix::fs::fchown(&file, Some(entry.uid), Some(entry.gid))?;
            file.set_permissions(Permissions::from_mode(entry.mode))?;
            set_time(&file, entry)
        }
        Kind::Link(target) => {
            symlink(target, path)?;
            lchown(path, Some(entry.uid), Some(entry.gid))
        }
        Kind::Name(first) => fs::hard_link(folder.join(first), path),
        Kind::Special => Err(io::Error::other("devices, pipes and sockets are not copied")),
    }
}

fn set_time(file: &File, entry: &Entry) -> io::Result<()> {
    // A time that the system cannot have is not worth a failure.
    let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(entry.mtime)) else { return Ok(()) };
    file.set_times(FileTimes::new().set_modified(time))
}
