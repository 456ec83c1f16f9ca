//! Flat images of the store: made when they are asked for, and kept.

use std::io::Seek as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tracing::info;

use super::files::{io_error, open_or_create_dir, publish, write_atomically};
use super::record::{self, Image};
use super::unpack::UnpackedLayers;
use super::{Store, StoreError, file_digest, verity};
use crate::digest::Digest;
use crate::erofs::{BLOCK_SIZE, ExtraDevice, ImageWriter};
use crate::flat::FlatImage;
use crate::import::inlined;
use crate::stored_file::StoredFile;

/// Changes where the same layers would give other metadata.
const VERSION: &str = "bellows flat image 2";

/// What the store remembers of a flat image.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct FlatRecord {
    /// Size of the metadata's file.
    bytes: u64,
    /// Digest of the metadata's file.
    sha256: Digest,
    /// The block that each layer begins at.
    mapped: Vec<u32>,
}

impl Store {
    /// The flat image of `image`'s layers. It is made of their metadata where it is not there yet; no file's data is read.
    ///
    /// # Errors
    /// A layer is missing or damaged, or the store cannot be written.
    pub fn flat(&self, image: &Image) -> Result<FlatImage, StoreError> {
        let digest = flat_digest(image);
        let layers = self.distinct_layers(image)?;
        let record = match self.stored_flat(&digest, layers.len())? {
            Some(record) => record,
            None => {
                let _lock = self.lock_for_import()?;
                self.make_flat(&digest, image, &layers)?
            }
        };
        let starts = record.mapped.into_iter().map(|block| u64::from(block) * BLOCK_SIZE);
        let layers = starts.zip(layers).collect();
        Ok(FlatImage { digest, path: self.flat_path(&digest), bytes: record.bytes, layers })
    }

    /// The record of a flat image that is there as a whole.
    fn stored_flat(&self, digest: &Digest, layers: usize) -> Result<Option<FlatRecord>, StoreError> {
        let record: Option<FlatRecord> = record::read(&self.flat_record_path(digest))?;
        let file = std::fs::metadata(self.flat_path(digest));
        Ok(record.filter(|r| r.mapped.len() == layers && file.is_ok_and(|metadata| metadata.len() == r.bytes)))
    }

    fn make_flat(&self, digest: &Digest, image: &Image, layers: &[StoredFile]) -> Result<FlatRecord, StoreError> {
        let folder = self.root.join("flat");
        open_or_create_dir(&folder)?;
        let error = |source| StoreError::Flat { digest: *digest, source };
        let UnpackedLayers { trees, unpacked } = self.unpack(image, layers)?;
        let inlined = layers.iter().zip(&trees).find(|(_, layer)| inlined(&layer.tree).is_some());
        if let Some((layer, _)) = inlined {
            return Err(StoreError::NotFlat { layer: layer.digest });
        }
        let device = |layer: &StoredFile| {
            let mut tag = [0; 64];
            tag.copy_from_slice(layer.digest.hex().as_bytes());
            // A layer has at most as many blocks as its own image could name.
            ExtraDevice { tag, blocks: u32::try_from(layer.bytes / BLOCK_SIZE).unwrap_or(u32::MAX) }
        };
        let tmp = self.tmp();
        let mut file = NamedTempFile::new_in(&tmp).map_err(io_error("create a file in", &tmp))?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest.as_bytes()[..16]);
        let written = ImageWriter::with_devices(file.as_file(), layers.iter().map(device).collect())
            .and_then(|writer| writer.finish(&unpacked.tree, uuid))
            .map_err(error)?;
        let (bytes, mapped) = (written.bytes, written.mapped);
        let handle = file.as_file_mut();
        let sha256 = handle.rewind().and_then(|()| file_digest(handle)).map_err(io_error("read", file.path()))?;
        publish(file, &self.flat_path(digest), verity::enable)?;
        let record = FlatRecord { bytes, sha256, mapped };
        let path = self.flat_record_path(digest);
        write_atomically(&tmp, &path, &record::encode(&path, &record)?)?;
        info!(image = %digest, bytes, layers = layers.len(), "made a flat image");
        Ok(record)
    }

    /// The file that has the metadata of `image`'s flat image, once that was asked for.
    #[must_use]
    pub fn flat_metadata(&self, image: &Image) -> PathBuf {
        self.flat_path(&flat_digest(image))
    }

    pub(super) fn flat_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("flat").join(format!("{}.erofs", digest.hex()))
    }

    pub(super) fn flat_record_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("flat").join(format!("{}.json", digest.hex()))
    }
}

/// What the flat image of `image` is known by: images of the same layers have the same.
pub(super) fn flat_digest(image: &Image) -> Digest {
    let lines = image.layers.iter().map(Digest::to_string);
    Digest::of([VERSION.to_owned()].into_iter().chain(lines).collect::<Vec<_>>().join("\n").as_bytes())
}
