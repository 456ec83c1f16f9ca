//! From an index to the image that it has for a platform.

use std::cmp::Reverse;
use std::fmt::Display;
use std::path::Path;

use super::blobs::Blobs;
use super::error::{MAX_DOCUMENTS, MAX_INDEX_DEPTH, OciError};
use super::image::SourceImage;
use super::names::{list, named};
use super::platform::{Platform, Rank};
use super::spec::{Descriptor, Document, Manifest};
use super::words::{MAX_LIST, listed, quoted};
use crate::digest::Digest;

/// Finds the image for `platform` among `manifests`, which the index `path` lists; called `reference` there where that is given.
///
/// Entries say which platform they are for, or leave it to the configuration of their image; those that say it come first. What is
/// no image, such as an attestation or a signature, is passed over, and so is what is not there if another image fits as well.
pub(super) fn find_image(
    blobs: &Blobs,
    path: &Path,
    manifests: &[Descriptor],
    platform: &Platform,
    reference: Option<&str>,
) -> Result<SourceImage, OciError> {
    let entries = match reference {
        Some(reference) => named(manifests, reference, |entry| Some(entry.digest), Descriptor::names),
        None => manifests.iter().collect(),
    };
    let mut search = Search { blobs, top: path, platform, documents: 0, passed_over: Vec::new(), failure: None };
    if let Some(found) = search.best(path, &entries, 1)? {
        return Ok(found.image);
    }
    match search.failure {
        Some(failure) => Err(failure),
        None => Err(OciError::NoImage {
            path: path.to_owned(),
            platform: Box::new(platform.clone()),
            reference: reference.map(str::to_owned),
            found: if entries.is_empty() {
                list(&manifests.iter().map(|entry| (shown(entry), entry.digest)).collect::<Vec<_>>())
            } else {
                listed(&search.passed_over)
            },
        }),
    }
}

/// A search for an image in an index and in the indexes that it lists.
struct Search<'a> {
    blobs: &'a Blobs,
    /// The outermost index.
    top: &'a Path,
    platform: &'a Platform,
    /// How many were read.
    documents: usize,
    /// What is not the image, and why not, for messages.
    passed_over: Vec<String>,
    /// The first of what should have been read and could not be.
    failure: Option<OciError>,
}

/// An image that fits.
struct Found {
    /// Something that was attached to an image only fits if nothing else does.
    fit: (bool, Rank),
    shown: (String, Digest),
    image: SourceImage,
}

impl Search<'_> {
    /// The image of `entries` that fits best; `depth` counts the indexes that lead to it.
    fn best(&mut self, path: &Path, entries: &[&Descriptor], depth: usize) -> Result<Option<Found>, OciError> {
        let mut described = Vec::new();
        let mut others = Vec::new();
        for entry in entries {
            match (entry.artifact(), &entry.platform) {
                (Some(kind), _) => self.pass_over(entry, format_args!("a {kind}")),
                (None, None) => others.push(*entry),
                (None, Some(offered)) => match offered.rank(self.platform) {
                    Some(rank) => described.push((rank, *entry)),
                    None => self.pass_over(entry, offered.complete()),
                },
            }
        }
        described.sort_by_key(|(rank, _)| Reverse(*rank));
        let groups =
            described.chunk_by(|(a, _), (b, _)| a == b).map(|group| group.iter().map(|(_, entry)| *entry).collect());
        for group in groups.chain([others]) {
            if let Some(found) = self.best_of_equals(path, group, depth)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn best_of_equals(
        &mut self,
        path: &Path,
        entries: Vec<&Descriptor>,
        depth: usize,
    ) -> Result<Option<Found>, OciError> {
        let mut found: Vec<Found> = Vec::new();
        for entry in entries {
            if let Some(image) = self.look(entry, depth)? {
                found.push(image);
            }
        }
        let best = found.iter().map(|image| image.fit).max();
        found.retain(|image| Some(image.fit) == best);
        // The same image under two names is still one image.
        if let Some(first) = found.first()
            && found.iter().any(|other| other.image.digest != first.image.digest)
        {
            let found = list(&found.into_iter().map(|image| image.shown).collect::<Vec<_>>());
            return Err(OciError::Ambiguous {
                path: path.to_owned(),
                platform: Box::new(self.platform.clone()),
                found,
            });
        }
        Ok(found.into_iter().next())
    }

    /// The image that an entry stands for, if it fits.
    fn look(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<Found>, OciError> {
        self.documents += 1;
        if self.documents > MAX_DOCUMENTS {
            return Err(OciError::TooManyImages { path: self.top.to_owned() });
        }
        let found = match self.blobs.manifest(entry) {
            Ok((path, Document::Index(entries))) if depth < MAX_INDEX_DEPTH => {
                return self.best(&path, &entries.iter().collect::<Vec<_>>(), depth + 1);
            }
            Ok((_, Document::Index(_))) => return Err(OciError::Depth { path: self.top.to_owned() }),
            Ok((_, Document::Manifest(manifest))) => self.image(entry, &manifest),
            Err(error) => Err(error),
        };
        match found {
            Err(error) if error.is_of_missing() || error.is_of_other_content() => {
                self.failure.get_or_insert(error);
                Ok(None)
            }
            other => other,
        }
    }

    /// Keeps for messages that `entry` is not the image, and what it is.
    fn pass_over(&mut self, entry: &Descriptor, what: impl Display) {
        // One more than a message has room for, so that it says that there are more.
        if self.passed_over.len() <= MAX_LIST {
            self.passed_over.push(format!("{} ({})", shown(entry), quoted(what)));
        }
    }

    fn image(&mut self, entry: &Descriptor, manifest: &Manifest) -> Result<Option<Found>, OciError> {
        if let Some(kind) = manifest.artifact() {
            self.pass_over(entry, format_args!("a {kind}"));
            return Ok(None);
        }
        let (path, config) = self.blobs.config(&manifest.config)?;
        let Some(rank) = config.platform.rank(self.platform) else {
            self.pass_over(entry, config.platform.complete());
            return Ok(None);
        };
        let diff_ids = config.diff_ids(&path, entry.digest, manifest.layers.len())?;
        let layers =
            std::iter::zip(&manifest.layers, diff_ids).map(|(layer, diff_id)| self.blobs.layer(layer, *diff_id));
        let layers = layers.collect();
        let image =
            SourceImage { digest: Some(entry.digest), config: config.config.unwrap_or_default().into(), layers };
        Ok(Some(Found { fit: (!manifest.is_doubtful(), rank), shown: (shown(entry), entry.digest), image }))
    }
}

/// What messages call an entry: its name, or else its digest.
fn shown(entry: &Descriptor) -> String {
    entry.names().first().map_or_else(|| entry.digest.to_string(), |name| format!("`{}`", quoted(name)))
}

#[cfg(test)]
#[path = "index_test.rs"]
mod tests;
