//! The costs of the demonstration on the host: reads of the layers' disk, page cache, memory.

use std::fs;
use std::io;

use bellows_block::page_cache::{evict, resident};
use bellows_block::{HostDisk, StoredFile};

use super::report::{DiskReport, LayerReport};
use crate::error::{CliError, io_error};

/// Layers whose files were dropped from the page cache, and the disk under them.
pub(super) struct Cold {
    layers: Vec<(StoredFile, u64)>,
    disk: Option<(HostDisk, u64)>,
}

impl Cold {
    pub(super) fn new(layers: &[StoredFile]) -> Result<Self, CliError> {
        let drop_cache = |layer: &StoredFile| {
            let path = &layer.path;
            evict(path).map_err(io_error("drop the page cache of", path))?;
            let left = resident(path).map_err(io_error("look into the page cache of", path))?.bytes();
            Ok((layer.clone(), left))
        };
        let disk = match layers.first() {
            Some(layer) => HostDisk::of(&layer.path).map_err(io_error("find the disk of", &layer.path))?,
            None => None,
        };
        let layers = layers.iter().map(drop_cache).collect::<Result<_, CliError>>()?;
        let disk = match disk {
            Some(disk) => {
                let read = disk.bytes_read().map_err(io_error("read the counters of", disk.name()))?;
                Some((disk, read))
            }
            None => None,
        };
        Ok(Self { layers, disk })
    }

    /// Bytes read from the disk since then.
    pub(super) fn disk_bytes_read(&self) -> Result<Option<u64>, CliError> {
        let Some((disk, before)) = &self.disk else { return Ok(None) };
        let now = disk.bytes_read().map_err(io_error("read the counters of", disk.name()))?;
        Ok(Some(now.saturating_sub(*before)))
    }

    pub(super) fn disk(&self, bytes_read_by_boot: Vec<u64>) -> Result<Option<DiskReport>, CliError> {
        let bytes_read = self.disk_bytes_read()?;
        let report = |(disk, _): &(HostDisk, u64), bytes_read| DiskReport {
            name: disk.name().to_owned(),
            bytes_read,
            bytes_read_by_boot,
        };
        Ok(self.disk.as_ref().zip(bytes_read).map(|(disk, bytes_read)| report(disk, bytes_read)))
    }

    pub(super) fn layers(&self) -> Result<Vec<LayerReport>, CliError> {
        let report = |(layer, before): &(StoredFile, u64)| {
            let resident = resident(&layer.path).map_err(io_error("look into the page cache of", &layer.path))?.bytes();
            Ok(LayerReport {
                digest: layer.digest.to_string(),
                bytes: layer.bytes,
                disk_bytes_read: self.disk.is_some().then(|| resident.saturating_sub(*before)),
                resident_bytes: resident,
            })
        };
        self.layers.iter().map(report).collect()
    }
}

const PAGE: u64 = 4096;

/// Resident memory of this process, shared pages included.
pub(super) fn process_rss() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    Ok(pages.unwrap_or(0) * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some() {
        assert!(process_rss().unwrap() > PAGE);
    }
}
