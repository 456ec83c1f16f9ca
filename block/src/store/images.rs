//! What the store holds: listing it, removing from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use serde::Serialize;
use tracing::info;

use super::files::{io_error, open_lock, remove};
use super::flat::flat_digest;
use super::record::{Image, ImageName};
use super::stack::stack_digest;
use super::{Store, StoreError};
use crate::digest::Digest;

/// An image of the store with the names it was imported under.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedImage {
    /// The image.
    pub image: Image,
    /// Its names, sorted; its digest is not among them.
    pub names: Vec<ImageName>,
}

/// What [`Store::collect`] did.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Collected {
    /// Layers that were removed.
    pub layers: Vec<Digest>,
    /// Layers that no image has but a VM still uses.
    pub in_use: Vec<Digest>,
    /// Bytes of all files that were removed.
    pub bytes: u64,
}

impl Store {
    /// All images, by digest.
    ///
    /// # Errors
    /// A record is damaged or unreadable.
    pub fn images(&self) -> Result<Vec<NamedImage>, StoreError> {
        let folder = self.root.join("images");
        let mut images: BTreeMap<Digest, NamedImage> = BTreeMap::new();
        for file in list(&folder)? {
            let Some(name) = file.to_str().and_then(ImageName::from_file_name) else { continue };
            let image = match self.image(&name) {
                // Somebody removed it since.
                Err(StoreError::NoImage { .. }) => continue,
                image => image?,
            };
            let is_digest = name == ImageName::from(&image.digest);
            let named = images.entry(image.digest).or_insert_with(|| NamedImage { image, names: Vec::new() });
            if !is_digest {
                named.names.push(name);
            }
        }
        images.values_mut().for_each(|named| named.names.sort());
        Ok(images.into_values().collect())
    }

    /// Removes the name of an image, and the image with its last name; by its digest, the image with all its names. Its
    /// layers stay until [`Store::collect`]. Says whether the image is gone.
    ///
    /// # Errors
    /// The image is missing, or the store cannot be written.
    pub fn remove(&self, name: &ImageName) -> Result<bool, StoreError> {
        let image = self.image(name)?;
        let digest = ImageName::from(&image.digest);
        let named = self.images()?.into_iter().find(|named| named.image.digest == image.digest);
        let names = named.map(|named| named.names).unwrap_or_default();
        let last = *name == digest || names.iter().all(|other| other == name);
        if last {
            for name in names.iter().chain([&digest]) {
                remove(&self.image_path(name))?;
            }
            remove(&self.read_set_path(&image.digest))?;
        } else {
            remove(&self.image_path(name))?;
        }
        Ok(last)
    }

    /// Removes every layer that no image has and no VM uses, and what interrupted imports left behind.
    ///
    /// # Errors
    /// An import is running, a record is damaged, or the store cannot be written.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let path = self.lock_path();
        let lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path: self.root.clone() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        self.remove_leftovers()?;
        let images = self.images()?;
        let stacks: BTreeSet<_> = images.iter().map(|named| stack_digest(&named.image)).collect();
        let layers = images.iter().flat_map(|named| &named.image.layers).chain(&stacks);
        let needed: BTreeSet<_> = layers.copied().collect();
        let mut collected = Collected::default();
        for layer in digests(&self.root.join("layers"))?.difference(&needed) {
            match remove_unused(&self.layer_path(layer), &self.record_path(layer))? {
                Some(bytes) => {
                    info!(%layer, bytes, "removed a layer");
                    collected.layers.push(*layer);
                    collected.bytes += bytes;
                }
                None => collected.in_use.push(*layer),
            }
        }
        let needed: BTreeSet<_> = images.iter().map(|named| flat_digest(&named.image)).collect();
        for image in self.digests_in("flat")?.difference(&needed) {
            // A user of it uses its layers, and is counted there.
            collected.bytes += remove_unused(&self.flat_path(image), &self.flat_record_path(image))?.unwrap_or(0);
        }
        let needed: BTreeSet<_> = images.iter().map(|named| named.image.digest).collect();
        for image in self.digests_in("profiles")?.difference(&needed) {
            remove(&self.read_set_path(image))?;
        }
        for stack in self.digests_in("stacks")?.difference(&stacks) {
            remove(&self.stack_path(stack))?;
        }
        Ok(collected)
    }

    /// What the files are called by in a folder that need not be there.
    fn digests_in(&self, folder: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let folder = self.root.join(folder);
        if folder.exists() { digests(&folder) } else { Ok(BTreeSet::new()) }
    }
}

/// Removes a file with its record, the record first, so that a crash leaves no record without its file; how many bytes that
/// were. `None` if somebody uses it.
fn remove_unused(file: &Path, record: &Path) -> Result<Option<u64>, StoreError> {
    let mut bytes = 0;
    // Held until the name is gone: a process that opens it in between notices.
    let _lock = match File::open(file) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => {
                bytes = lock.metadata().map_err(io_error("open", file))?.len();
                Some(lock)
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", file)(source)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error("open", file)(error)),
    };
    remove(record)?;
    remove(file)?;
    Ok(Some(bytes))
}

/// What the files in a folder are called by.
fn digests(folder: &Path) -> Result<BTreeSet<Digest>, StoreError> {
    let digest = |name: &OsString| {
        let stem = Path::new(name).file_stem()?.to_str()?;
        format!("sha256:{stem}").parse::<Digest>().ok()
    };
    Ok(list(folder)?.iter().filter_map(digest).collect())
}

/// The names of the files in a folder.
fn list(folder: &Path) -> Result<Vec<OsString>, StoreError> {
    let entries = fs::read_dir(folder).map_err(io_error("list", folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>();
    names.map_err(io_error("list", folder))
}

#[cfg(test)]
#[path = "images_test.rs"]
mod tests;
