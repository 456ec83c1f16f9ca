//! From an index to the image that it has for a platform.

use std::path::{Path, PathBuf};

use super::blobs::Blobs;
use super::error::{MAX_INDEX_DEPTH, OciError};
use super::source::SourceImage;
use super::spec::{
    CONFIG, ConfigFile, DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST, Manifest,
    Platform, expect_field, is_layer,
};

/// Finds the image for `platform` in `index`, which messages call `path`; called `reference` there where that is given.
pub(super) fn find_image(
    blobs: &Blobs,
    path: &Path,
    index: Index,
    platform: &Platform,
    reference: Option<&str>,
) -> Result<SourceImage, OciError> {
    let manifest = find_manifest(blobs, path, index, platform, reference)?;
    let digest = manifest.digest;
    let (path, manifest): (_, Manifest) = blobs.document(&manifest)?;
    expect_field(&path, "schemaVersion", &manifest.schema_version, "2")?;

    if ![CONFIG, DOCKER_CONFIG].contains(&manifest.config.media_type.as_str()) {
        return Err(unsupported(&manifest.config, "an image configuration"));
    }
    let (path, config): (_, ConfigFile) = blobs.document(&manifest.config)?;
    let diff_ids = config.check(&path, platform, digest, manifest.layers.len())?;
    let layers = std::iter::zip(&manifest.layers, diff_ids)
        .map(|(layer, diff_id)| {
            if !is_layer(&layer.media_type) {
                return Err(unsupported(layer, "a layer: tar, tar+gzip or tar+zstd"));
            }
            Ok(blobs.layer(layer, *diff_id))
        })
        .collect::<Result<_, OciError>>()?;
    Ok(SourceImage { digest: Some(digest), config: config.config.unwrap_or_default().into(), layers })
}

fn find_manifest(
    blobs: &Blobs,
    top: &Path,
    mut index: Index,
    platform: &Platform,
    mut reference: Option<&str>,
) -> Result<Descriptor, OciError> {
    let mut path: PathBuf = top.to_owned();
    for _ in 0..MAX_INDEX_DEPTH {
        expect_field(&path, "schemaVersion", &index.schema_version, "2")?;
        let found = choose(&path, &index, platform, reference)?;
        match found.media_type.as_str() {
            MANIFEST | DOCKER_MANIFEST => return Ok(found.clone()),
            INDEX | DOCKER_INDEX => {
                let next = blobs.document(found)?;
                (path, index) = next;
                // Tags name entries of the outermost index only.
                reference = None;
            }
            _ => return Err(unsupported(found, "an image index or manifest")),
        }
    }
    Err(OciError::Depth { path: top.to_owned() })
}

fn choose<'a>(
    path: &Path,
    index: &'a Index,
    platform: &Platform,
    reference: Option<&str>,
) -> Result<&'a Descriptor, OciError> {
    let named = || index.manifests.iter().filter(|d| reference.is_none() || d.reference() == reference);
    // The best of what fits, where several builds for one processor do.
    let rank = |d: &Descriptor| d.platform.as_ref().and_then(|offered| platform.rank(offered));
    let best = named().filter_map(&rank).min();
    let fits: Vec<_> = match best {
        Some(best) => named().filter(|d| rank(d) == Some(best)).collect(),
        // Single-platform layouts leave the platform out; the configuration will tell.
        None => named().filter(|d| d.platform.is_none()).collect(),
    };
    match fits[..] {
        [only] => Ok(only),
        // The same image under two tags is still one image.
        [first, ..] if fits.iter().all(|d| d.digest == first.digest) => Ok(first),
        [] => Err(OciError::NoImage {
            path: path.to_owned(),
            platform: Box::new(platform.clone()),
            reference: reference.map(str::to_owned),
            found: list(index.manifests.iter()),
        }),
        _ => Err(OciError::Ambiguous {
            path: path.to_owned(),
            platform: Box::new(platform.clone()),
            found: list(fits.iter().copied()),
        }),
    }
}

fn list<'a>(descriptors: impl Iterator<Item = &'a Descriptor>) -> String {
    let words: Vec<_> = descriptors
        .take(20)
        .map(|d| {
            let name = d.reference().map_or_else(|| d.digest.to_string(), |name| format!("`{name}`"));
            d.platform.as_ref().map_or(name.clone(), |platform| format!("{name} ({platform})"))
        })
        .collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

fn unsupported(descriptor: &Descriptor, expected: &'static str) -> OciError {
    OciError::MediaType { digest: descriptor.digest, media_type: descriptor.media_type.clone(), expected }
}
