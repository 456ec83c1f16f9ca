//! A flat image as a disk.

use std::io;

use bellows_disk::{Disk, DiskError, DiskId, SECTOR_SIZE};
use vm_memory::VolatileSlice;

use super::LayerDisk;
use crate::digest::Digest;
use crate::flat::FlatImage;
use crate::read_set::Recorded;

/// The files of a flat image behind each other, with zeros in between; read-only.
///
/// Each part is read as a [`LayerDisk`]: a truncated file fails only the requests that reach into it.
pub struct FlatDisk {
    /// By position.
    parts: Vec<Part>,
    bytes: u64,
    id: DiskId,
}

struct Part {
    start: u64,
    end: u64,
    digest: Digest,
    disk: LayerDisk,
}

impl FlatDisk {
    /// Opens all files of an image.
    ///
    /// # Errors
    /// One is missing, not a regular file, or of another size than recorded.
    pub fn open(image: &FlatImage) -> Result<Self, DiskError> {
        let parts = image.files().into_iter().map(|(start, layer)| {
            let end = start
                .checked_add(layer.bytes)
                .ok_or_else(|| DiskError::Unaligned { path: layer.path.clone(), actual: layer.bytes })?;
            Ok(Part { start, end, digest: layer.digest, disk: LayerDisk::open(&layer)? })
        });
        let parts = parts.collect::<Result<Vec<_>, DiskError>>()?;
        let bytes = parts.last().map_or(0, |part| part.end);
        Ok(Self { parts, bytes, id: DiskId::from(&image.digest) })
    }

    /// Records what is read of it from now on.
    #[must_use]
    pub fn recorded(self) -> Recorded<Self> {
        let files = self.parts.iter().map(|part| (part.start..part.end, part.digest)).collect();
        Recorded::new(self, files)
    }

    /// The part that holds byte `offset`, or the one behind the gap that it lies in.
    fn part(&self, offset: u64) -> Option<&Part> {
        self.parts.get(self.parts.partition_point(|part| part.end <= offset))
    }
}

fn zero(slice: &VolatileSlice<'_>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut rest = *slice;
    while !rest.is_empty() {
        // Copies no more than fits into `rest`.
        rest.copy_from(&ZEROS[..]);
        let Ok(next) = rest.offset(rest.len().min(ZEROS.len())) else { return };
        rest = next;
    }
}

impl Disk for FlatDisk {
    fn sectors(&self) -> u64 {
        self.bytes / SECTOR_SIZE
    }

    fn id(&self) -> DiskId {
        self.id
    }

    fn read_at(&self, mut offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        // Nearly all requests stay within one layer.
        if let Some(part) = self.part(offset)
            && part.start <= offset
            && end <= part.end
        {
            return part.disk.read_at(offset - part.start, buffers);
        }
        for buffer in buffers {
            let mut done = 0;
            while done < buffer.len() {
                let part = self.part(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
                let is_gap = offset < part.start;
                let limit = if is_gap { part.start } else { part.end } - offset;
                let count = usize::try_from(limit).map_or(buffer.len() - done, |limit| limit.min(buffer.len() - done));
                let piece = buffer.subslice(done, count).map_err(io::Error::other)?;
                if is_gap {
                    zero(&piece);
                } else {
                    part.disk.read_at(offset - part.start, &[piece])?;
                }
                done += count;
                offset += count as u64;
            }
        }
        Ok(())
    }
}
