//! Imports into the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek as _};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use tempfile::NamedTempFile;
use tracing::info;

use super::files::{io_error, open_lock, publish, write_atomically};
use super::record::{self, Image, ImageName, LayerRecord};
use super::{Store, StoreError, file_digest, verity};
use crate::archive::{FileId, Limits};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::import::{ImportedLayer, import_layer};
use crate::oci::{ImageSource, OciError, SourceImage, SourceLayer};

/// How an import goes about it.
#[derive(Clone)]
pub struct ImportOptions<'a> {
    /// Is told how far the import is, by several threads.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Ends the import early.
    pub cancel: Cancel,
    /// What each layer may cost.
    pub limits: Limits,
    /// Most layers read at a time.
    pub threads: NonZero<usize>,
}

impl Default for ImportOptions<'_> {
    fn default() -> Self {
        let threads = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        Self { progress: &|_| {}, cancel: Cancel::default(), limits: Limits::default(), threads }
    }
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Which layer of the image it is about, from 0.
    pub index: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// Digest of its blob, if that is known.
    pub blob: Option<Digest>,
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
        /// Size of the blob, if that is known by now.
        total: Option<u64>,
    },
    /// It is in the store now.
    Done,
}

/// A layer that the store has.
type Stored = (Digest, LayerRecord);

impl Store {
    /// Finds out what is at `path`; see [`ImageSource::open`].
    ///
    /// # Errors
    /// There is nothing that images can be imported from.
    pub fn open_source(&self, path: &Path, options: &ImportOptions<'_>) -> Result<ImageSource, StoreError> {
        // The store's own folders are never read.
        if path.is_dir() && self.own_id()?.holds(path).map_err(io_error("read", path))? {
            return Err(OciError::InStore { path: path.to_owned() }.into());
        }
        let source = ImageSource::open(path, &self.tmp(), options.limits, &options.cancel);
        source.map_err(|error| if options.cancel.is_cancelled() { StoreError::Cancelled } else { error.into() })
    }

    /// Brings an image into the store, under its digest and, if given, under `name`. Layers that are there already are not
    /// read; several are read at a time. A repeat after a failure goes on where that left off. A directory that the store is in is
    /// imported without it.
    ///
    /// # Errors
    /// A layer is missing or damaged, the store cannot be written, or the import was cancelled. Layers imported before that
    /// stay; the image does not appear, and nothing of an incomplete layer is left.
    pub fn import(
        &self,
        image: &SourceImage,
        name: Option<&ImageName>,
        options: &ImportOptions<'_>,
    ) -> Result<Image, StoreError> {
        let _lock = self.lock_for_import()?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for (digest, record) in self.import_layers(&image.layers, options)? {
            if record.opaque_root {
                layers.clear();
            }
            layers.push(digest);
        }
        let digest = image.digest.unwrap_or_else(|| {
            let text: Vec<_> = layers.iter().map(Digest::to_string).collect();
            Digest::of(text.join("\n").as_bytes())
        });
        let stored = Image { digest, layers, config: image.config.clone() };
        // Layers that cannot be put together are not an image; what has to be made for it exists when it runs.
        let layers = self.distinct_layers(&stored)?;
        self.make_stack(&stored, &layers, &self.unpack(&stored, &layers)?)?;
        for name in [Some(&ImageName::from(&digest)), name].into_iter().flatten() {
            let path = self.image_path(name);
            write_atomically(&self.tmp(), &path, &record::encode(&path, &stored)?)?;
        }
        Ok(stored)
    }

    /// Imports what is missing of `layers`, several at a time.
    fn import_layers(&self, layers: &[SourceLayer], options: &ImportOptions<'_>) -> Result<Vec<Stored>, StoreError> {
        // An image may have the same layer twice.
        let mut seen = BTreeMap::new();
        let first = |(index, layer): (usize, &SourceLayer)| match layer.digests.diff_id {
            Some(digest) => *seen.entry(digest).or_insert(index),
            None => index,
        };
        let first: Vec<_> = layers.iter().enumerate().map(first).collect();
        let distinct: Vec<_> = first.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let results: Vec<_> = layers.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        // One failure ends all; the cause is the one that is told.
        let failed = Cancel::default();
        let work = || {
            while let Some(&index) = distinct.get(next.fetch_add(1, Ordering::Relaxed)) {
                if options.cancel.is_cancelled() || failed.is_cancelled() {
                    return;
                }
                let result = self.import_one(&layers[index], index, layers.len(), options, &failed);
                if result.is_err() && failed.is_cancelled() {
                    return;
                }
                if result.is_err() {
                    failed.cancel();
                }
                *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            }
        };
        let threads = options.threads.get().min(distinct.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        if options.cancel.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        let mut stored = BTreeMap::new();
        let mut results = results.into_iter().map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut error = None;
        for (index, result) in results.by_ref().enumerate() {
            match result {
                Some(Ok(layer)) => drop(stored.insert(index, layer)),
                Some(Err(failure)) => error = error.or(Some(failure)),
                None => {}
            }
        }
        match error {
            Some(error) => Err(error),
            None => first.iter().map(|index| stored.get(index).copied().ok_or(StoreError::Cancelled)).collect(),
        }
    }

    fn import_one(
        &self,
        layer: &SourceLayer,
        index: usize,
        layers: usize,
        options: &ImportOptions<'_>,
        failed: &Cancel,
    ) -> Result<Stored, StoreError> {
        let blob = layer.digests.blob;
        let report = |kind| (options.progress)(Progress { index, layers, blob, kind });
        if let Some(digest) = layer.digests.diff_id
            && let Ok((_, record)) = self.checked_layer(&digest)
        {
            report(ProgressKind::Present);
            return Ok((digest, record));
        }
        // A registry may take its time.
        report(ProgressKind::Reading { bytes: 0, total: None });
        let (total, blob) = layer.open_without(Some(self.own_id()?))?;
        let blob = Counted { inner: failed.reader(options.cancel.reader(blob)), bytes: 0, total, report: &report };
        let tmp = self.tmp();
        let mut image = NamedTempFile::new_in(&tmp).map_err(io_error("create a file in", &tmp))?;
        let imported = import_layer(blob, layer.digests, options.limits, image.as_file())
            .map_err(|source| StoreError::Layer { path: layer.path(), source })?;
        let digest = imported.diff_id;
        let file = image.as_file_mut();
        let sha256 = file.rewind().and_then(|()| file_digest(file)).map_err(io_error("read", image.path()))?;
        publish(image, &self.layer_path(&digest), verity::enable)?;
        let ImportedLayer { bytes, opaque_root, native, .. } = imported;
        let record = LayerRecord { bytes, sha256, opaque_root, native };
        let path = self.record_path(&digest);
        write_atomically(&tmp, &path, &record::encode(&path, &record)?)?;
        info!(layer = %digest, bytes = record.bytes, "imported a layer");
        report(ProgressKind::Done);
        Ok((digest, record))
    }

    fn own_id(&self) -> Result<FileId, StoreError> {
        FileId::of(&self.root).map_err(io_error("open", &self.root))
    }

    /// Joins the imports that run. The first one removes what interrupted ones left behind.
    pub(super) fn lock_for_import(&self) -> Result<File, StoreError> {
        let path = self.lock_path();
        let lock = open_lock(&path)?;
        match lock.try_lock() {
            Ok(()) => {
                self.remove_leftovers()?;
                lock.unlock().map_err(io_error("unlock", &path))?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        lock.lock_shared().map_err(io_error("lock", &path))?;
        Ok(lock)
    }

    /// Removes what interrupted imports left behind; only while none runs.
    pub(super) fn remove_leftovers(&self) -> Result<(), StoreError> {
        let tmp = self.tmp();
        for entry in fs::read_dir(&tmp).map_err(io_error("list", &tmp))? {
            let path = entry.map_err(io_error("list", &tmp))?.path();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }
}

/// Reports what is read.
struct Counted<'a, R> {
    inner: R,
    bytes: u64,
    total: Option<u64>,
    report: &'a dyn Fn(ProgressKind),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.bytes += count as u64;
        (self.report)(ProgressKind::Reading { bytes: self.bytes, total: self.total });
        Ok(count)
    }
}
