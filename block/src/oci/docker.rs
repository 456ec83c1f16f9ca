//! Archives of `docker save`, and of what writes the same (`docker-archive` in other tools' words).

use serde::Deserialize;

use super::blob::{BlobError, Digests};
use super::container::Container;
use super::error::OciError;
use super::source::{SourceImage, SourceLayer};
use super::spec::{ConfigFile, Platform, parse};
use crate::digest::LayerDigest;

/// The file that makes an archive one of Docker's.
pub(super) const MANIFEST: &str = "manifest.json";

/// An archive of Docker's; nothing of it has been read.
#[derive(Clone, Debug)]
pub struct DockerArchive {
    files: Container,
}

/// An image in `manifest.json`. Names are those of files in the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Entry {
    fn is_called(&self, reference: &str) -> bool {
        let tags = self.repo_tags.iter().flatten();
        // Its whole name, or just the tag.
        tags.into_iter().any(|tag| tag == reference || tag.rsplit_once(':').is_some_and(|(_, tag)| tag == reference))
    }

    fn name(&self) -> &str {
        self.repo_tags.as_ref().and_then(|tags| tags.first()).unwrap_or(&self.config)
    }
}

impl DockerArchive {
    pub(super) fn of(files: Container) -> Self {
        Self { files }
    }

    /// Finds the image for `platform`, called `reference` where that is given: a name with its tag, or only the tag.
    ///
    /// # Errors
    /// There is no such image, or several; or one of its documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        let path = self.files.path(MANIFEST);
        let entries: Vec<Entry> = parse(&path, &self.files.document(MANIFEST)?)?;
        let fits: Vec<_> = entries.iter().filter(|e| reference.is_none_or(|wanted| e.is_called(wanted))).collect();
        let list = |entries: &[&Entry]| {
            let words: Vec<_> = entries.iter().take(20).map(|entry| format!("`{}`", entry.name())).collect();
            if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
        };
        let wanted = Box::new(platform.clone());
        let entry = match fits[..] {
            [only] => only,
            [] => {
                let found = list(&entries.iter().collect::<Vec<_>>());
                let reference = reference.map(str::to_owned);
                return Err(OciError::NoImage { path, platform: wanted, reference, found });
            }
            _ => return Err(OciError::Ambiguous { path, platform: wanted, found: list(&fits) }),
        };
        let path = self.files.path(&entry.config);
        let data = self.files.document(&entry.config)?;
        let digest = LayerDigest::of(&data);
        // The name is the digest; it is compared where it looks like one.
        let name = entry.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        let named = format!("sha256:{name}").parse().ok();
        BlobError::check(named, digest).map_err(|source| OciError::Blob { path: path.clone(), source })?;
        let config: ConfigFile = parse(&path, &data)?;
        let diff_ids = config.check(&path, platform, digest, entry.layers.len())?;
        let layer = |(name, diff_id): (&String, &LayerDigest)| {
            SourceLayer::member(&self.files, name.clone(), None, Digests { blob: None, diff_id: Some(*diff_id) })
        };
        let layers = std::iter::zip(&entry.layers, diff_ids).map(layer).collect();
        Ok(SourceImage { digest: Some(digest), config: config.config.unwrap_or_default().into(), layers })
    }
}

#[cfg(test)]
#[path = "docker_test.rs"]
mod tests;
