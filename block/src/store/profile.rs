//! Profiles of the store: which pages a run of an image read. What is wrong with one costs the image nothing but the profile.

use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

use super::files::{io_error, open_or_create_dir, write_atomically};
use super::flat::flat_digest;
use super::record::{self, Image};
use super::stack::stack_digest;
use super::{Store, StoreError};
use crate::digest::LayerDigest;
use crate::profile::Profile;

/// Largest record that is read: 16 MiB are a million ranges.
const MAX_RECORD: u64 = 16 << 20;

impl Store {
    /// What a run of `image` read, where that is known. A record that is damaged, or not this image's, counts as none and is
    /// logged.
    #[must_use]
    pub fn profile(&self, image: &Image) -> Option<Profile> {
        self.read_profile(image).unwrap_or_else(|error| {
            warn!(image = %image.digest, %error, "nothing is read ahead");
            None
        })
    }

    fn read_profile(&self, image: &Image) -> Result<Option<Profile>, StoreError> {
        let path = self.profile_path(&image.digest);
        let wrong = |wrong| StoreError::Profile { path: path.clone(), wrong };
        match fs::metadata(&path) {
            Ok(found) if found.len() > MAX_RECORD => {
                return Err(wrong(format!("has {} bytes; expected at most {MAX_RECORD}", found.len())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(io_error("open", &path))?,
        };
        let Some(profile) = record::read::<Profile>(&path)? else { return Ok(None) };
        let made = [flat_digest(image), stack_digest(image)];
        let stranger = profile.files().find(|file| !made.contains(file) && !image.layers.contains(file));
        if let Some(file) = stranger {
            return Err(wrong(format!("knows {file}, which is none of the image's files")));
        }
        Ok(Some(profile))
    }

    /// Keeps what a run of `image` read, in the place of what is known. Files that are not the image's are left out.
    ///
    /// # Errors
    /// The store can't be written, or it is more than a profile may be.
    pub fn keep_profile(&self, image: &Image, profile: &Profile) -> Result<(), StoreError> {
        let path = self.profile_path(&image.digest);
        let mut kept = Profile::default();
        for digest in image.layers.iter().chain([&flat_digest(image), &stack_digest(image)]) {
            kept.insert(*digest, profile.pages(digest).cloned().unwrap_or_default());
        }
        let record = serde_json::to_vec(&kept).map_err(|source| StoreError::Record { path: path.clone(), source })?;
        if record.len() as u64 > MAX_RECORD {
            let wrong = format!("would have {} bytes; expected at most {MAX_RECORD}", record.len());
            return Err(StoreError::Profile { path, wrong });
        }
        let _lock = self.lock_for_import()?;
        open_or_create_dir(&self.root.join("profiles"))?;
        write_atomically(&self.tmp(), &path, &record)?;
        info!(image = %image.digest, bytes = kept.bytes(), "kept what a run has read");
        Ok(())
    }

    pub(super) fn profile_path(&self, image: &LayerDigest) -> PathBuf {
        self.root.join("profiles").join(format!("{}.json", image.hex()))
    }
}

#[cfg(test)]
#[path = "profile_test.rs"]
mod tests;
