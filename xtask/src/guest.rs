//! `cargo xtask guest`: puts the guest's kernel and initramfs where `bellows` finds them.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::{initramfs, kernel, packages, workspace};

/// The files that a guest boots from.
#[derive(Debug)]
pub struct Guest {
    /// Our kernel, an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

impl Guest {
    /// Builds both, or finds them in the cache.
    pub fn build(install: bool) -> Result<Self> {
        packages::ensure(&[packages::KERNEL], install)?;
        let cache = Cache::open()?;
        Ok(Self { kernel: kernel::guest(&cache)?, initramfs: initramfs::built_in(&cache, &workspace::agent()?)? })
    }

    /// Both files, with the names that `bellows` looks for.
    pub fn files(&self) -> [(&Path, &'static str); 2] {
        [(&self.kernel, "vmlinux"), (&self.initramfs, "initramfs.cpio")]
    }
}

/// Builds both and puts them into the user's own folder; prints where they are.
pub fn install(install: bool) -> Result<()> {
    let guest = Guest::build(install)?;
    let folder = folder(|name| std::env::var_os(name).map(PathBuf::from))?;
    fs::create_dir_all(&folder).map_err(Error::at(&folder))?;
    for (from, name) in guest.files() {
        let to = folder.join(name);
        replace(from, &to)?;
        println!("{}", to.display());
    }
    Ok(())
}

/// Replaces a file by a rename: a VM that boots from it meanwhile reads either the old file or the new one.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let new = NamedTempFile::new_in(folder).map_err(Error::at(folder))?;
    fs::copy(from, new.path()).map_err(Error::at(from))?;
    new.persist(to).map_err(|error| Error::at(to)(error.error))?;
    Ok(())
}

/// `$XDG_DATA_HOME/bellows` or `~/.local/share/bellows` (XDG base directory specification: paths must be absolute).
fn folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    Ok(data.ok_or_else(|| Error::other("no folder for the guest's files: set HOME"))?.join("bellows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_where_the_command_looks() {
        let of = |data: &'static str| {
            folder(move |name| Some(PathBuf::from(if name == "HOME" { "/h" } else { data }))).unwrap()
        };
        assert_eq!(of("/d"), Path::new("/d/bellows"));
        assert_eq!(of("relative"), Path::new("/h/.local/share/bellows"));
        assert!(folder(|_| None).is_err());
    }

    #[test]
    fn a_reader_of_the_old_file_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("old"), "old").unwrap();
        fs::write(path("new"), "new").unwrap();
        let reader = fs::File::open(path("old")).unwrap();
        replace(&path("new"), &path("old")).unwrap();
        assert_eq!(std::io::read_to_string(reader).unwrap(), "old");
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "new");
    }
}
