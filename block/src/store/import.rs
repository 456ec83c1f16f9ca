//! Imports into the store.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek as _};

use tempfile::NamedTempFile;
use tracing::info;

use super::files::{io_error, open_lock, publish, write_atomically};
use super::record::{self, Image, ImageName, LayerRecord};
use super::{Store, StoreError, file_digest};
use crate::digest::LayerDigest;
use crate::import::import_layer;
use crate::oci::{OciImage, OciLayer, OciLayout};

/// How far an import is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// The layer it is about.
    pub layer: LayerDigest,
    /// Which layer of the image that is, from 0.
    pub index: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// What happens to it.
    pub kind: ProgressKind,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProgressKind {
    /// It is in the store already and is not read.
    Present,
    /// So much of the blob has been read.
    Reading {
        /// Bytes read.
        bytes: u64,
        /// Size of the blob.
        total: u64,
    },
    /// It is in the store now.
    Done,
}

impl Store {
    /// Brings an image into the store, under the digest of its manifest and, if given, under `name`. Layers that are there
    /// already are not read. A repeat after a failure goes on where that left off.
    ///
    /// # Errors
    /// A layer is missing or damaged, or the store can't be written. Layers imported before that stay; the image does not
    /// appear.
    pub fn import(
        &self,
        layout: &OciLayout,
        image: &OciImage,
        name: Option<&ImageName>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, StoreError> {
        let _lock = self.lock_for_import()?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for (index, layer) in image.layers.iter().enumerate() {
            let mut report =
                |kind| progress(Progress { layer: layer.diff_id, index, layers: image.layers.len(), kind });
            let record = match self.checked_layer(&layer.diff_id) {
                Ok((_, record)) => {
                    report(ProgressKind::Present);
                    record
                }
                Err(_) => {
                    let record = self.import_layer(layout, layer, &mut report)?;
                    report(ProgressKind::Done);
                    record
                }
            };
            if record.opaque_root {
                layers.clear();
            }
            layers.push(layer.diff_id);
        }
        let stored = Image { digest: image.manifest, layers, config: image.config.clone() };
        for name in [Some(&ImageName::from(&image.manifest)), name].into_iter().flatten() {
            let path = self.image_path(name);
            write_atomically(&self.tmp(), &path, &record::encode(&path, &stored)?)?;
        }
        Ok(stored)
    }

    fn import_layer(
        &self,
        layout: &OciLayout,
        layer: &OciLayer,
        report: &mut dyn FnMut(ProgressKind),
    ) -> Result<LayerRecord, StoreError> {
        let blob = layout.open_blob(&layer.blob, layer.bytes)?;
        let mut counted = Counted { inner: blob, bytes: 0, total: layer.bytes, report };
        let tmp = self.tmp();
        let mut image = NamedTempFile::new_in(&tmp).map_err(io_error("create a file in", &tmp))?;
        let imported = import_layer(&mut counted, layer, image.as_file())
            .map_err(|source| StoreError::Layer { path: layout.blob_path(&layer.blob), source })?;
        let file = image.as_file_mut();
        let sha256 = file.rewind().and_then(|()| file_digest(file)).map_err(io_error("read", image.path()))?;
        publish(image, &self.layer_path(&layer.diff_id))?;
        let record = LayerRecord { bytes: imported.bytes, sha256, opaque_root: imported.opaque_root };
        let path = self.record_path(&layer.diff_id);
        write_atomically(&tmp, &path, &record::encode(&path, &record)?)?;
        info!(layer = %layer.diff_id, bytes = record.bytes, "imported a layer");
        Ok(record)
    }

    /// Joins the imports that run. The first one removes what interrupted ones left behind.
    fn lock_for_import(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => {
                let tmp = self.tmp();
                for entry in fs::read_dir(&tmp).map_err(io_error("list", &tmp))? {
                    let path = entry.map_err(io_error("list", &tmp))?.path();
                    fs::remove_file(&path).map_err(io_error("remove", &path))?;
                }
                lock.unlock().map_err(io_error("unlock", &path))?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        lock.lock_shared().map_err(io_error("lock", &path))?;
        Ok(lock)
    }
}

/// Reports what is read.
struct Counted<'a> {
    inner: File,
    bytes: u64,
    total: u64,
    report: &'a mut dyn FnMut(ProgressKind),
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.bytes += count as u64;
        (self.report)(ProgressKind::Reading { bytes: self.bytes, total: self.total });
        Ok(count)
    }
}
