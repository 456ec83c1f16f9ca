//! Read sets in the store, which users know as profiles. A damaged one costs its image nothing but a warm start.

use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

use super::files::{io_error, open_or_create_dir, write_atomically};
use super::flat::flat_digest;
use super::record::{self, Image};
use super::stack::stack_digest;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::read_set::ReadSet;

/// Largest record that is read: 16 MiB are a million ranges.
const MAX_RECORD: u64 = 16 << 20;

impl Store {
    /// What a run of `image` read, where that is known. A record that is damaged, or not this image's, counts as none and is
    /// logged.
    #[must_use]
    pub fn read_set(&self, image: &Image) -> Option<ReadSet> {
        self.load_read_set(image).unwrap_or_else(|error| {
            warn!(image = %image.digest, %error, "nothing is read ahead");
            None
        })
    }

    fn load_read_set(&self, image: &Image) -> Result<Option<ReadSet>, StoreError> {
        let path = self.read_set_path(&image.digest);
        let wrong = |wrong| StoreError::ReadSet { path: path.clone(), wrong };
        match fs::metadata(&path) {
            Ok(found) if found.len() > MAX_RECORD => {
                return Err(wrong(format!("has {} bytes; expected at most {MAX_RECORD}", found.len())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(io_error("open", &path))?,
        };
        let Some(read_set) = record::read::<ReadSet>(&path)? else { return Ok(None) };
        let made = [flat_digest(image), stack_digest(image)];
        let stranger = read_set.files().find(|file| !made.contains(file) && !image.layers.contains(file));
        if let Some(file) = stranger {
            return Err(wrong(format!("names {file}, which is not a file of the image")));
        }
        Ok(Some(read_set))
    }

    /// Keeps what a run of `image` read, in the place of what is known. Files that are not the image's are left out.
    ///
    /// # Errors
    /// The store cannot be written, or it is more than a read set may be.
    pub fn keep_read_set(&self, image: &Image, read_set: &ReadSet) -> Result<(), StoreError> {
        let path = self.read_set_path(&image.digest);
        let mut kept = ReadSet::default();
        for digest in image.layers.iter().chain([&flat_digest(image), &stack_digest(image)]) {
            kept.insert(*digest, read_set.pages(digest).cloned().unwrap_or_default());
        }
        let record = serde_json::to_vec(&kept).map_err(|source| StoreError::Record { path: path.clone(), source })?;
        if record.len() as u64 > MAX_RECORD {
            let wrong = format!("would have {} bytes; expected at most {MAX_RECORD}", record.len());
            return Err(StoreError::ReadSet { path, wrong });
        }
        let _lock = self.lock_for_import()?;
        open_or_create_dir(&self.root.join("profiles"))?;
        write_atomically(&self.tmp(), &path, &record)?;
        info!(image = %image.digest, bytes = kept.bytes(), "kept what a run has read");
        Ok(())
    }

    pub(super) fn read_set_path(&self, image: &Digest) -> PathBuf {
        self.root.join("profiles").join(format!("{}.json", image.hex()))
    }
}

#[cfg(test)]
#[path = "read_set_test.rs"]
mod tests;
