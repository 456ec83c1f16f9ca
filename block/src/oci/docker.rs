//! Archives of `docker save`, and of what writes the same (`docker-archive` in other tools' words).

use serde::Deserialize;

use super::blob::{BlobError, Digests};
use super::error::OciError;
use super::file_set::FileSet;
use super::image::{SourceImage, SourceLayer};
use super::names::{list, named};
use super::platform::{Platform, Rank};
use super::spec::{ConfigFile, parse};
use super::words::{listed, quoted};
use crate::digest::Digest;

/// The file that makes an archive one of Docker's.
pub(super) const MANIFEST: &str = "manifest.json";

/// An archive of Docker's; nothing of it has been read.
#[derive(Clone, Debug)]
pub struct DockerArchive {
    files: FileSet,
}

/// An image in `manifest.json`. Names are those of files in the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Entry {
    fn names(&self) -> Vec<&str> {
        self.repo_tags.iter().flatten().map(String::as_str).chain([self.config.as_str()]).collect()
    }

    /// What messages call it.
    fn shown(&self) -> String {
        quoted(self.names().first().copied().unwrap_or_default())
    }

    /// The digest that its configuration's name is made of, with or without the algorithm.
    fn digest(&self) -> Option<Digest> {
        let name = self.config.rsplit('/').next()?;
        let hex = name.strip_prefix("sha256:").unwrap_or(name).trim_end_matches(".json");
        format!("sha256:{hex}").parse().ok()
    }
}

impl DockerArchive {
    pub(super) fn of(files: FileSet) -> Self {
        Self { files }
    }

    /// Finds the image for `platform`, called `reference` where that is given: a name, only a tag, or a digest.
    ///
    /// # Errors
    /// No image matches, or several do; or one of the documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        let path = self.files.path(MANIFEST);
        let entries: Vec<Entry> = parse(&path, &self.files.document(MANIFEST)?)?;
        let wanted = match reference {
            Some(reference) => named(&entries, reference, Entry::digest, Entry::names),
            None => entries.iter().collect(),
        };
        let mut found: Vec<(Rank, &Entry, SourceImage)> = Vec::new();
        let mut passed_over = Vec::new();
        for entry in &wanted {
            let (config_path, digest, config) = self.config(entry)?;
            match config.platform.rank(platform) {
                // The same image under two names is still one image.
                Some(_) if found.iter().any(|(_, _, image)| image.digest == Some(digest)) => {}
                Some(rank) => {
                    let names = entry.layers.as_deref().unwrap_or_default();
                    let diff_ids = config.diff_ids(&config_path, digest, names.len())?;
                    let layers = self.layers(entry, names, diff_ids)?;
                    let config = config.config.unwrap_or_default().into();
                    found.push((rank, entry, SourceImage { digest: Some(digest), config, layers }));
                }
                None => passed_over.push(format!("`{}` ({})", entry.shown(), quoted(config.platform.complete()))),
            }
        }
        let best = found.iter().map(|(rank, ..)| *rank).max();
        found.retain(|(rank, ..)| Some(*rank) == best);
        let shown = |entry: &Entry| (format!("`{}`", entry.shown()), entry.digest().unwrap_or_else(|| Digest::of(&[])));
        let platform = Box::new(platform.clone());
        match found.len() {
            0 => {
                let all = || list(&entries.iter().map(shown).collect::<Vec<_>>());
                let found = if wanted.is_empty() { all() } else { listed(&passed_over) };
                Err(OciError::NoImage { path, platform, reference: reference.map(str::to_owned), found })
            }
            1 => Ok(found.remove(0).2),
            _ => {
                let found = list(&found.iter().map(|(_, entry, _)| shown(entry)).collect::<Vec<_>>());
                Err(OciError::Ambiguous { path, platform, found })
            }
        }
    }

    /// Reads an image's configuration; the name of its file is compared with its digest where it looks like one.
    fn config(&self, entry: &Entry) -> Result<(std::path::PathBuf, Digest, ConfigFile), OciError> {
        let path = self.files.path(&entry.config);
        let data = self.files.document(&entry.config)?;
        let digest = Digest::of(&data);
        BlobError::check(entry.digest(), digest).map_err(|source| OciError::Blob { path: path.clone(), source })?;
        let config = parse(&path, &data)?;
        Ok((path, digest, config))
    }

    fn layers(&self, entry: &Entry, names: &[String], diff_ids: &[Digest]) -> Result<Vec<SourceLayer>, OciError> {
        let layer = |(number, (name, diff_id)): (usize, (&String, &Digest))| {
            if name.is_empty() {
                let (path, image) = (self.files.path(MANIFEST), entry.shown());
                return Err(OciError::LayerName { path, image, number: number + 1 });
            }
            let digests = Digests { blob: None, diff_id: Some(*diff_id) };
            Ok(SourceLayer::member(&self.files, name.clone(), None, digests))
        };
        std::iter::zip(names, diff_ids).enumerate().map(layer).collect()
    }
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
