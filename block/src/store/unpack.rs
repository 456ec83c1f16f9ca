//! The layers of an image and what unpacking them would give.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use super::files::io_error;
use super::record::Image;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::erofs::{LayerTree, Origin, read_layer};
use crate::flat::{Unpacked, unpack};
use crate::stored_file::StoredFile;

/// An image's layers, read and unpacked.
pub(super) struct UnpackedLayers {
    /// Each layer once.
    pub trees: Vec<LayerTree>,
    pub unpacked: Unpacked,
}

impl Store {
    /// The layers of `image`, each once, lowest first: one that it has several times is where it is last.
    pub(super) fn distinct_layers(&self, image: &Image) -> Result<Vec<StoredFile>, StoreError> {
        distinct(&image.layers).iter().map(|digest| self.layer(digest)).collect()
    }

    /// Unpacks `image`, which has the distinct `layers`, in memory.
    pub(super) fn unpack(&self, image: &Image, layers: &[StoredFile]) -> Result<UnpackedLayers, StoreError> {
        let trees = layers.iter().zip(1..).map(|(layer, device)| {
            let file = File::open(&layer.path).map_err(io_error("open", &layer.path))?;
            let (_, record) = self.checked_layer(&layer.digest)?;
            let origin = if record.native { Origin::Native } else { Origin::Import };
            read_layer(&file, origin, device).map_err(|source| StoreError::Tree {
                digest: layer.digest,
                path: layer.path.clone(),
                source,
            })
        });
        let trees: Vec<_> = trees.collect::<Result<_, _>>()?;
        let index: BTreeMap<_, _> = layers.iter().map(|layer| layer.digest).zip(0..).collect();
        let order: Vec<_> = image.layers.iter().filter_map(|digest| index.get(digest).copied()).collect();
        let unpacked = unpack(&trees, &order).map_err(|source| StoreError::Unpack {
            digest: image.layers.get(source.layer).copied().unwrap_or(image.digest),
            number: source.layer + 1,
            layers: image.layers.len(),
            source,
        })?;
        Ok(UnpackedLayers { trees, unpacked })
    }
}

/// Each layer once, in the place of its last occurrence.
pub(super) fn distinct(layers: &[Digest]) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut distinct: Vec<_> = layers.iter().rev().filter(|layer| seen.insert(**layer)).copied().collect();
    distinct.reverse();
    distinct
}
