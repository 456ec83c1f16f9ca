//! The layers of an image as a stack for overlayfs, with one on top where the stack needs it.

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tracing::info;

use super::files::{io_error, open_or_create_dir, publish, write_atomically};
use super::record::{self, Image, LayerRecord};
use super::unpack::UnpackedLayers;
use super::{Store, StoreError, file_digest, verity};
use crate::digest::Digest;
use crate::erofs::{DataReader, FileData, ImageWriter, WriteError};
use crate::flat::Fixup;
use crate::stored_file::StoredFile;

/// Changes where the same layers would give another fix-up.
const VERSION: &str = "bellows stack 2";

/// What the store remembers of a stack.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct StackRecord {
    /// The layers alone do not show what unpacking them gives: a fix-up, a layer known by the stack's digest, goes on top.
    fixup: bool,
}

/// What overlayfs has to stack to show what unpacking the layers of an image over each other gives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stack {
    /// Each layer once, lowest first.
    pub layers: Vec<StoredFile>,
    /// What goes on top where these alone do not do it.
    pub fixup: Option<StoredFile>,
}

impl Store {
    /// The stack of `image`. Its fix-up is made where it is not there yet.
    ///
    /// # Errors
    /// A layer is missing or damaged, the layers cannot be unpacked over each other, or the store cannot be written.
    pub fn stack(&self, image: &Image) -> Result<Stack, StoreError> {
        let layers = self.distinct_layers(image)?;
        let fixup = match self.stored_stack(image)? {
            Some(fixup) => fixup,
            None => {
                let _lock = self.lock_for_import()?;
                let unpacked = self.unpack(image, &layers)?;
                self.make_stack(image, &layers, &unpacked)?
            }
        };
        Ok(Stack { layers, fixup })
    }

    /// The fix-up of `image`'s stack, where it has one and that was made.
    ///
    /// # Errors
    /// A record is damaged.
    pub fn fixup(&self, image: &Image) -> Result<Option<StoredFile>, StoreError> {
        Ok(self.stored_stack(image)?.flatten())
    }

    /// The fix-up of a stack that was made as a whole; `None` if it was not.
    fn stored_stack(&self, image: &Image) -> Result<Option<Option<StoredFile>>, StoreError> {
        let digest = stack_digest(image);
        let record: Option<StackRecord> = record::read(&self.stack_path(&digest))?;
        match record {
            Some(StackRecord { fixup: true }) => match self.layer(&digest) {
                Err(StoreError::NoLayer { .. }) => Ok(None),
                layer => Ok(Some(Some(layer?))),
            },
            Some(StackRecord { fixup: false }) => Ok(Some(None)),
            None => Ok(None),
        }
    }

    /// Makes the fix-up of `image`, if it needs one, and remembers whether it does.
    pub(super) fn make_stack(
        &self,
        image: &Image,
        layers: &[StoredFile],
        unpacked: &UnpackedLayers,
    ) -> Result<Option<StoredFile>, StoreError> {
        let digest = stack_digest(image);
        let layer = match Fixup::new(&unpacked.trees, &unpacked.unpacked) {
            Some(fixup) => Some(self.write_fixup(&digest, layers, &fixup)?),
            None => None,
        };
        open_or_create_dir(&self.root.join("stacks"))?;
        let path = self.stack_path(&digest);
        let record = StackRecord { fixup: layer.is_some() };
        write_atomically(&self.tmp(), &path, &record::encode(&path, &record)?)?;
        Ok(layer)
    }

    fn write_fixup(&self, digest: &Digest, layers: &[StoredFile], fixup: &Fixup<'_>) -> Result<StoredFile, StoreError> {
        let error = |source| StoreError::Fixup { digest: *digest, source };
        let tmp = self.tmp();
        let mut file = NamedTempFile::new_in(&tmp).map_err(io_error("create a file in", &tmp))?;
        let mut writer = ImageWriter::new(file.as_file()).map_err(error)?;
        let tree = fixup.build(|data| {
            let layer = layers.get(usize::from(data.device).saturating_sub(1));
            copy(layer, data, &mut writer).map_err(error)
        })?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest.as_bytes()[..16]);
        let bytes = writer.finish(&tree, uuid).map_err(error)?.bytes;
        let handle = file.as_file_mut();
        let sha256 = handle.rewind().and_then(|()| file_digest(handle)).map_err(io_error("read", file.path()))?;
        publish(file, &self.layer_path(digest), verity::enable)?;
        let path = self.record_path(digest);
        let record = LayerRecord { bytes, sha256, opaque_root: false, native: false };
        write_atomically(&tmp, &path, &record::encode(&path, &record)?)?;
        info!(stack = %digest, bytes, layers = layers.len(), "made a fix-up");
        Ok(StoredFile { digest: *digest, path: self.layer_path(digest), bytes })
    }

    pub(super) fn stack_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("stacks").join(format!("{}.json", digest.hex()))
    }
}

/// Copies a file's data out of a layer.
fn copy(layer: Option<&StoredFile>, data: &FileData, writer: &mut ImageWriter<&File>) -> Result<FileData, WriteError> {
    let invalid = || WriteError::Read(io::ErrorKind::InvalidData.into());
    let file = File::open(&layer.ok_or_else(invalid)?.path).map_err(WriteError::Read)?;
    let (map, mut reader) = DataReader::new(&file, data).ok_or_else(invalid)?;
    writer.append_sparse(&map, &mut reader)
}

/// What the stack of `image` is known by, and its fix-up: images of the same layers have the same.
pub(super) fn stack_digest(image: &Image) -> Digest {
    let lines = image.layers.iter().map(Digest::to_string);
    Digest::of([VERSION.to_owned()].into_iter().chain(lines).collect::<Vec<_>>().join("\n").as_bytes())
}

#[cfg(test)]
#[path = "stack_test.rs"]
mod tests;
