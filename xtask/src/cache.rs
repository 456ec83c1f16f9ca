//! Results that take long to make, kept outside the checkout under a hash of their inputs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A hash over named inputs.
#[derive(Debug, Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds an input. The hash covers names and lengths, so different lists of inputs never look the same.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds the content of a file.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(self.with(&name, fs::read(path).map_err(Error::at(path))?))
    }

    /// The hash as text.
    pub fn hex(&self) -> String {
        hex::encode(self.0.clone().finalize())
    }
}

/// The directory of all results: `$BELLOWS_CACHE`, `$XDG_CACHE_HOME/bellows` or `~/.cache/bellows`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens it, and makes it if it is missing.
    pub fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = variable("BELLOWS_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("bellows")))
            .or_else(|| Some(variable("HOME")?.join(".cache/bellows")))
            .ok_or_else(|| Error::other("no folder for the cache: set BELLOWS_CACHE or HOME"))?;
        fs::create_dir_all(&root).map_err(Error::at(&root))?;
        Ok(Self { root })
    }

    /// A directory for temporary files.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// A directory for what another tool keeps there, under names of its own.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(Error::at(&path))?;
        Ok(path)
    }

    /// The result `name` for `key`: a directory, which `make` fills if it is missing.
    ///
    /// An interrupted `make` leaves nothing that looks like a result, and two processes do not make it twice.
    pub fn get(&self, name: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let family = self.root.join(name);
        fs::create_dir_all(&family).map_err(Error::at(&family))?;
        let entry = family.join(&key.hex()[..32]);
        if entry.exists() {
            return Ok(entry);
        }
        let lock_path = entry.with_extension("lock");
        let lock = File::create(&lock_path).map_err(Error::at(&lock_path))?;
        if lock.try_lock().is_err() {
            eprintln!("{name}: another process is making it; waiting");
            lock.lock().map_err(Error::at(&lock_path))?;
        }
        if entry.exists() {
            return Ok(entry);
        }
        let partial = entry.with_extension("partial");
        remove_tree(&partial)?;
        fs::create_dir(&partial).map_err(Error::at(&partial))?;
        make(&partial)?;
        fs::rename(&partial, &entry).map_err(Error::at(&entry))?;
        Ok(entry)
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_the_boundaries_of_inputs() {
        let split = Key::default().with("a", "bc").hex();
        assert_ne!(split, Key::default().with("ab", "c").hex());
        assert_eq!(split, Key::default().with("a", "bc").hex());
    }

    #[test]
    fn makes_once_and_leaves_no_half_results() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache { root: directory.path().to_path_buf() };
        let key = Key::default().with("x", "1");
        assert!(cache.get("thing", &key, |_| Err(Error::other("broken"))).is_err());
        let entry = cache.get("thing", &key, |path| fs::write(path.join("a"), "1").map_err(Error::at(path))).unwrap();
        assert_eq!(fs::read(entry.join("a")).unwrap(), b"1");
        let again = cache.get("thing", &key, |_| Err(Error::other("made twice"))).unwrap();
        assert_eq!(entry, again);
    }
}
