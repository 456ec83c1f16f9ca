//! One layer from its blob to its image.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};

use super::changes::Changes;
use super::{LayerError, native};
use crate::archive::{ArchiveError, Bounded, Counted, EntryName, Limits, TarKind, TarStream};
use crate::compression::unpack;
use crate::digest::Digest;
use crate::erofs::{Change, ImageWriter, Step, Tree, WriteError};
use crate::oci::{BlobError, Digests, HashingReader};

/// What came of importing a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImportedLayer {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// The layer was an EROFS image already.
    pub native: bool,
}

/// Reads a layer's blob, plain or compressed, and writes its EROFS image to the empty file `image`. What is known of its
/// digests is checked on the way; where this fails `image` holds nothing of use.
///
/// Memory use depends on the number of names in the layer and not on its size; `limits` bounds both.
///
/// # Errors
/// The blob is damaged or no archive, the archive has an entry that a layer cannot have or goes beyond a limit, or writing
/// failed.
pub fn import_layer(
    blob: impl Read,
    digests: Digests,
    limits: Limits,
    image: &File,
) -> Result<ImportedLayer, LayerError> {
    let mut blob = HashingReader::new(blob);
    let result = convert(&mut blob, digests, limits, image);
    match (result, blob.finish().and_then(|actual| BlobError::check(digests.blob, actual))) {
        // A damaged blob fails in many ways: the damage is the cause.
        (_, Err(error @ BlobError::Digest { .. })) => Err(LayerError::Blob(error)),
        (Err(error), _) => Err(error),
        (Ok(_), Err(error)) => Err(LayerError::Blob(error)),
        (Ok(imported), Ok(())) => Ok(imported),
    }
}

fn convert(blob: &mut dyn Read, digests: Digests, limits: Limits, image: &File) -> Result<ImportedLayer, LayerError> {
    let (blob, packed) = Counted::new(blob);
    let (_, plain) = unpack(blob).map_err(|source| ArchiveError::Read { offset: 0, entry: None, source })?;
    let mut plain = HashingReader::new(Bounded::new(plain, limits, packed));
    let mut prefix = Vec::with_capacity(native::PREFIX);
    let read = (&mut plain).take(native::PREFIX as u64).read_to_end(&mut prefix);
    read.map_err(|source| ArchiveError::Read { offset: 0, entry: None, source })?;
    let is_native = native::is_native(&prefix);
    let mut whole = Cursor::new(prefix).chain(&mut plain);
    if is_native {
        let bytes = native::take(&mut whole, image, limits)?;
        let diff_id = plain.finish().map_err(LayerError::DiffId)?;
        BlobError::check(digests.diff_id, diff_id).map_err(LayerError::DiffId)?;
        return Ok(ImportedLayer { diff_id, bytes, opaque_root: false, native: true });
    }
    // Reads of single headers would otherwise all reach the decompressor.
    let mut archive = TarStream::new(BufReader::with_capacity(128 << 10, &mut whole));
    let writer = ImageWriter::new(image).map_err(|source| LayerError::Write { entry: None, source })?;
    let mut writer = writer.limit(limits.unpacked_bytes);
    let (tree, journal) = read_archive(&mut archive, &mut writer, limits)?;
    // What follows the archive's end belongs to the layer's digest too.
    let offset = archive.offset();
    drop(archive);
    let diff_id = match plain.finish() {
        Err(BlobError::Read(source)) => Err(ArchiveError::Read { offset, entry: None, source }.into()),
        other => other.map_err(LayerError::DiffId),
    }?;
    BlobError::check(digests.diff_id, diff_id).map_err(LayerError::DiffId)?;

    let opaque_root = is_opaque(&journal);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&diff_id.as_bytes()[..16]);
    let written = writer.finish_layer(&tree, &journal, uuid);
    let written = written.map_err(|source| LayerError::Write { entry: None, source })?;
    Ok(ImportedLayer { diff_id, bytes: written.bytes, opaque_root, native: false })
}

/// Whether all that is below the layer is hidden before anything can depend on it.
fn is_opaque(journal: &[Step]) -> bool {
    let first = journal.iter().find(|step| step.change != Change::Put(Tree::ROOT));
    first.is_some_and(|step| step.path.is_empty() && step.change == Change::Opaque)
}

fn read_archive<R: Read>(
    archive: &mut TarStream<R>,
    writer: &mut ImageWriter<&File>,
    limits: Limits,
) -> Result<(Tree, Vec<Step>), LayerError> {
    let mut changes = Changes::new(limits);
    while let Some(entry) = archive.next()? {
        changes.apply(&entry, || {
            let data = match &entry.kind {
                TarKind::File(Some(map)) => writer.append_sparse(map, archive),
                _ => writer.append(archive),
            };
            data.map_err(|error| match error {
                WriteError::Read(source) => archive.read_error(source).into(),
                source => LayerError::Write { entry: Some(EntryName::new(&entry.name)), source },
            })
        })?;
    }
    Ok(changes.finish())
}

#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;

#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile_tests;
