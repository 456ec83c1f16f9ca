//! Layers that are EROFS images already (`application/vnd.erofs.layer.v1` of containerd 2.3, also packed with zstd): taken as they
//! are, after checks. Whiteouts and opaque markers are in overlayfs's form in them.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};

use crate::archive::Limits;
use crate::erofs::{BLOCK_SIZE, Blocks, Content, FileData, InodeId, Origin, ReadError, Tree, XattrName, read_layer};

/// Where an image's superblock begins; what is before is left to boot loaders.
const SUPERBLOCK: usize = 1024;
const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();

/// Bytes that [`is_native`] wants to see.
pub(super) const PREFIX: usize = SUPERBLOCK + MAGIC.len();

/// What of overlayfs's own attributes says nothing about other files.
const HARMLESS: [&[u8]; 4] =
    [b"trusted.overlay.impure", b"trusted.overlay.nlink", b"trusted.overlay.origin", b"trusted.overlay.uuid"];

/// What a layer cannot say.
#[derive(Debug, thiserror::Error)]
pub enum NativeProblem {
    /// Copying failed.
    #[error("it cannot be copied")]
    Copy(#[source] io::Error),
    /// It is damaged, or has what layers cannot have.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It would lead overlayfs elsewhere.
    #[error("a file has the attribute `{}`, which gives overlayfs instructions", .0.escape_ascii())]
    Attribute(Vec<u8>),
    /// More than a layer may take.
    #[error("it is larger than the limit of {0} bytes")]
    Limit(u64),
}

/// Whether a layer that begins with `prefix` is an EROFS image. Nothing else begins like that: an archive whose first two blocks
/// are zeros is empty.
pub(super) fn is_native(prefix: &[u8]) -> bool {
    prefix
        .split_at_checked(SUPERBLOCK)
        .is_some_and(|(before, magic)| magic == MAGIC && before.iter().all(|byte| *byte == 0))
}

/// Copies a layer to `image`, filled up to a whole block, and checks it; how many bytes that are.
pub(super) fn take(layer: &mut dyn Read, image: &File, limits: Limits) -> Result<u64, NativeProblem> {
    let mut out = BufWriter::with_capacity(256 << 10, image);
    let bytes =
        io::copy(&mut layer.take(limits.unpacked_bytes.saturating_add(1)), &mut out).map_err(NativeProblem::Copy)?;
    if bytes > limits.unpacked_bytes {
        return Err(NativeProblem::Limit(limits.unpacked_bytes));
    }
    let whole = bytes.next_multiple_of(BLOCK_SIZE);
    io::copy(&mut io::repeat(0).take(whole - bytes), &mut out).map_err(NativeProblem::Copy)?;
    out.flush().map_err(NativeProblem::Copy)?;
    check(&read_layer(image, Origin::Native, 0)?.tree)?;
    Ok(whole)
}

fn check(tree: &Tree) -> Result<(), NativeProblem> {
    for id in tree.ids() {
        for (name, value) in &tree.metadata(id).xattrs {
            let is_marker = *name == XattrName::overlay_opaque() && value == b"y" && tree.directory(id).is_some();
            if name.is_overlay() && !is_marker && !HARMLESS.contains(&&*name.to_bytes()) {
                return Err(NativeProblem::Attribute(name.to_bytes()));
            }
        }
    }
    Ok(())
}

/// A file of `tree` whose end lies behind its inode, which only a mount of its own layer can show.
pub(crate) fn inlined(tree: &Tree) -> Option<InodeId> {
    let is_inlined =
        |id: &InodeId| matches!(tree.content(*id), Content::File(FileData { blocks: Blocks::Tail { .. }, .. }));
    tree.ids().find(is_inlined)
}

#[cfg(test)]
#[path = "native_test.rs"]
pub(super) mod tests;
