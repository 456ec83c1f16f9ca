//! One layer from its blob to its image.

use std::fs::File;
use std::io::{BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::LayerError;
use super::changes::Changes;
use super::tar_stream::TarStream;
use crate::erofs::{ImageWriter, Tree, WriteError};
use crate::oci::{BlobError, Compression, OciLayer, VerifyingReader};

/// What came of importing a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImportedLayer {
    /// Size of the image in bytes.
    pub bytes: u64,
    /// The layer hides everything below it.
    pub opaque_root: bool,
}

/// Reads the blob of `layer` and writes its EROFS image to the empty file `image`. The blob's digest and its `diff_id` are
/// checked on the way; where this fails `image` holds nothing of use.
///
/// # Errors
/// The blob is damaged or no archive, the archive has an entry that a layer can't have, or writing failed.
pub fn import_layer(blob: impl Read, layer: &OciLayer, image: &File) -> Result<ImportedLayer, LayerError> {
    let mut blob = VerifyingReader::new(blob, layer.blob);
    let result = unpack(&mut blob, layer, image);
    match (result, blob.finish()) {
        // A damaged blob fails in many ways: the damage is the cause.
        (_, Err(error @ BlobError::Digest { .. })) => Err(LayerError::Blob(error)),
        (Err(error), _) => Err(error),
        (Ok(_), Err(error)) => Err(LayerError::Blob(error)),
        (Ok(imported), Ok(())) => Ok(imported),
    }
}

fn unpack(blob: &mut dyn Read, layer: &OciLayer, image: &File) -> Result<ImportedLayer, LayerError> {
    let blob = BufReader::with_capacity(128 << 10, blob);
    let plain: Box<dyn Read + '_> = match layer.compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(blob);
            Box::new(decoder.map_err(|source| LayerError::Read { offset: 0, source })?)
        }
    };
    let mut plain = VerifyingReader::new(plain, layer.diff_id);
    // Reads of single headers would otherwise all reach the decompressor.
    let mut archive = TarStream::new(BufReader::with_capacity(128 << 10, &mut plain));
    let mut writer = ImageWriter::new(image).map_err(LayerError::Write)?;
    let tree = read_archive(&mut archive, &mut writer)?;
    // What follows the archive's end belongs to the layer's digest too.
    let offset = archive.offset();
    drop(archive);
    plain.finish().map_err(|error| match error {
        BlobError::Read(source) => LayerError::Read { offset, source },
        other => LayerError::DiffId(other),
    })?;

    let opaque_root = tree.is_opaque(Tree::ROOT);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&layer.diff_id.as_bytes()[..16]);
    let (_, bytes) = writer.finish(&tree, uuid).map_err(LayerError::Write)?;
    Ok(ImportedLayer { bytes, opaque_root })
}

fn read_archive<R: Read>(archive: &mut TarStream<R>, writer: &mut ImageWriter<&File>) -> Result<Tree, LayerError> {
    let mut changes = Changes::default();
    while let Some(entry) = archive.next()? {
        changes.apply(&entry, || {
            writer.append(archive).map_err(|error| match error {
                WriteError::Read(source) => LayerError::Read { offset: archive.offset(), source },
                other => LayerError::Write(other),
            })
        })?;
    }
    Ok(changes.finish())
}

#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;
