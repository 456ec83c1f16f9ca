//! The layer store: a directory of EROFS layers and images, both named by digest.
//!
//! ```text
//! format                  "bellows layer store 1"
//! lock                    held shared by imports, exclusively by removals
//! layers/<hex>.erofs      one layer, named by the digest of its uncompressed archive (its diff_id), or a stack's fix-up
//! layers/<hex>.json       its record: size and digest of the file; a layer without a record is not there
//! images/<name>.json      an image's layers and how to run it
//! flat/<hex>.erofs        metadata of a flat image, named by a digest of its layers' digests; made again where it is missing
//! flat/<hex>.json         its record
//! stacks/<hex>.json       whether the layers of an image, stacked, need a fix-up on top, which is a layer of that name; made again
//!                         where it is missing
//! profiles/<hex>.json     the pages that a run of an image read, named by the image's digest; optional
//! tmp/                    what imports are writing
//! ```
//!
//! Files come into the store by a rename after their content has reached the disk, so a crash leaves the old state or the
//! new one; of two imports of the same layer the later rename wins, with the same bytes. Files are read-only and, where the
//! file system has it, sealed with fs-verity. A user of a layer holds a shared lock on its file, and a locked file is not
//! removed.

mod files;
mod flat;
mod images;
mod import;
mod read_set;
mod record;
mod stack;
mod unpack;
mod verity;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::erofs::{ReadError, WriteError};
use crate::flat::UnpackError;
use crate::import::LayerError;
use crate::oci::OciError;
use crate::stored_file::StoredFile;
use files::{io_error, open_lock, open_or_create_dir, write_atomically};

pub use images::{Collected, NamedImage};
pub use import::{ImportOptions, Progress, ProgressKind};
use record::LayerRecord;
pub use record::{Image, ImageName, ParseImageNameError};
pub use stack::Stack;
pub use verity::can_seal;

const FORMAT: &str = "bellows layer store 1\n";

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused something.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A directory of something else.
    #[error("`{path}` is not empty and not a layer store")]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version.
    #[error("the layer store `{path}` has the format `{actual}`; this version reads `{}`", FORMAT.trim_end())]
    Format {
        /// The store's directory.
        path: PathBuf,
        /// What its `format` file says.
        actual: String,
    },
    /// A record that is not valid JSON, or has the wrong content.
    #[error("the record `{path}` is damaged: {source}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// No such layer.
    #[error("layer {digest} is not in the store `{path}`")]
    NoLayer {
        /// The layer.
        digest: Digest,
        /// The store's directory.
        path: PathBuf,
    },
    /// No such image.
    #[error("image `{name}` is not in the store `{path}`")]
    NoImage {
        /// The image.
        name: ImageName,
        /// The store's directory.
        path: PathBuf,
    },
    /// A stored layer of another size than its record says.
    #[error("layer {digest}: `{path}` has {actual} bytes, its record says {expected}")]
    Size {
        /// The layer.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// Recorded size.
        expected: u64,
        /// The file's size.
        actual: u64,
    },
    /// A stored layer with other content than its record says.
    #[error("layer {digest}: `{path}` has the digest {actual}, its record says {expected}")]
    Content {
        /// The layer.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// Recorded digest of the file.
        expected: Digest,
        /// The file's digest.
        actual: Digest,
    },
    /// The image's documents are wrong.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// A layer's metadata is damaged.
    #[error("layer {digest}: `{path}` cannot be read")]
    Tree {
        /// The layer.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ReadError,
    },
    /// The image's layers cannot be unpacked over each other.
    #[error("layer {digest}, {number} of {layers} from below")]
    Unpack {
        /// The layer.
        digest: Digest,
        /// Which it is, from 1.
        number: usize,
        /// How many the image has.
        layers: usize,
        /// The cause.
        #[source]
        source: UnpackError,
    },
    /// A layer that came as an EROFS image and has what only a mount of its own can show.
    #[error(
        "layer {layer} came as an EROFS image with ends of files in its metadata (`mkfs.erofs -Enoinline_data` leaves them out): \
         the image has no flat shape, only `layers`"
    )]
    NotFlat {
        /// The layer.
        layer: Digest,
    },
    /// A flat image could not be made.
    #[error("cannot write the flat image {digest}")]
    Flat {
        /// What it would be known by.
        digest: Digest,
        /// The cause.
        #[source]
        source: WriteError,
    },
    /// A stack's fix-up could not be made.
    #[error("cannot write the fix-up {digest}")]
    Fixup {
        /// What it would be known by.
        digest: Digest,
        /// The cause.
        #[source]
        source: WriteError,
    },
    /// Another process works on the store.
    #[error("an import to the layer store `{path}` is running")]
    Busy {
        /// The store's directory.
        path: PathBuf,
    },
    /// A read set that names files of other images, or is too large.
    #[error("the profile `{path}` {wrong}")]
    ReadSet {
        /// Its file.
        path: PathBuf,
        /// The cause.
        wrong: String,
    },
    /// The caller cancelled it.
    #[error("it was cancelled")]
    Cancelled,
    /// A layer could not be imported.
    #[error("cannot import the layer `{path}`")]
    Layer {
        /// The layer's blob.
        path: PathBuf,
        /// The cause.
        #[source]
        source: LayerError,
    },
}

/// Details of a layer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LayerDetails {
    /// The layer.
    #[serde(flatten)]
    pub layer: StoredFile,
    /// Digest of its file.
    pub sha256: Digest,
    /// It hides everything below it. Not written: no image has anything below such a layer.
    #[serde(skip)]
    pub opaque_root: bool,
    /// The digest of fs-verity that the file system holds the file to, where it does.
    pub verity: Option<Digest>,
}

/// A layer store. Any number of processes may use the same one.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`; an empty or missing directory becomes one.
    ///
    /// # Errors
    /// It is not a store, has another format, or is not accessible.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { root: root.into() };
        let format = store.root.join("format");
        match fs::read_to_string(&format) {
            Ok(text) if text == FORMAT => return Ok(store),
            Ok(actual) => {
                let actual = actual.trim_end().chars().take(100).collect();
                return Err(StoreError::Format { path: store.root, actual });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &format)(error)),
        }
        fs::create_dir_all(&store.root).map_err(io_error("create", &store.root))?;
        for entry in fs::read_dir(&store.root).map_err(io_error("list", &store.root))? {
            let name = entry.map_err(io_error("list", &store.root))?.file_name();
            // Another process may be making the same store, or was interrupted when it did.
            if !["layers", "images", "flat", "stacks", "profiles", "tmp", "lock", "format"]
                .iter()
                .any(|known| name == *known)
            {
                return Err(StoreError::NotAStore { path: store.root });
            }
        }
        // So that no import takes the files below for leftovers.
        let path = store.lock_path();
        let lock = open_lock(&path)?;
        lock.lock_shared().map_err(io_error("lock", &path))?;
        for directory in ["layers", "images", "tmp"] {
            open_or_create_dir(&store.root.join(directory))?;
        }
        write_atomically(&store.tmp(), &format, FORMAT.as_bytes())?;
        Ok(store)
    }

    /// The store's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The file that imports and removals lock.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The folders that runs of images add to, beside its lock: of what can be made again. Those that are missing are made.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn folders_of_runs(&self) -> Result<[PathBuf; 4], StoreError> {
        let folders = ["tmp", "flat", "stacks", "profiles"].map(|name| self.root.join(name));
        folders.iter().try_for_each(|folder| open_or_create_dir(folder))?;
        Ok(folders)
    }

    /// The image called `name`: the name it was imported under, or its manifest's digest.
    ///
    /// # Errors
    /// It is missing, or its record is damaged.
    pub fn image(&self, name: &ImageName) -> Result<Image, StoreError> {
        record::read(&self.image_path(name))?
            .ok_or_else(|| StoreError::NoImage { name: name.clone(), path: self.root.clone() })
    }

    /// The layer `digest`.
    ///
    /// # Errors
    /// It is not there, its record is damaged, or its file has another size than that says.
    pub fn layer(&self, digest: &Digest) -> Result<StoredFile, StoreError> {
        self.checked_layer(digest).map(|(layer, _)| layer)
    }

    /// The layers of `image`, lowest first.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn layers(&self, image: &Image) -> Result<Vec<StoredFile>, StoreError> {
        image.layers.iter().map(|digest| self.layer(digest)).collect()
    }

    /// Reads the whole file of a layer and compares it with its record.
    ///
    /// # Errors
    /// As [`Store::layer`], or the content is another.
    pub fn verify(&self, digest: &Digest) -> Result<StoredFile, StoreError> {
        let (layer, record) = self.checked_layer(digest)?;
        let mut file = File::open(&layer.path).map_err(io_error("open", &layer.path))?;
        let actual = file_digest(&mut file).map_err(io_error("read", &layer.path))?;
        if actual != record.sha256 {
            return Err(StoreError::Content { digest: *digest, path: layer.path, expected: record.sha256, actual });
        }
        Ok(layer)
    }

    /// All that is known of a layer without reading it.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn inspect(&self, digest: &Digest) -> Result<LayerDetails, StoreError> {
        let (layer, record) = self.checked_layer(digest)?;
        let verity = File::open(&layer.path).and_then(|file| verity::measure(&file));
        let verity = verity.map_err(io_error("open", &layer.path))?;
        Ok(LayerDetails { layer, sha256: record.sha256, opaque_root: record.opaque_root, verity })
    }

    fn checked_layer(&self, digest: &Digest) -> Result<(StoredFile, LayerRecord), StoreError> {
        let record: LayerRecord = record::read(&self.record_path(digest))?
            .ok_or_else(|| StoreError::NoLayer { digest: *digest, path: self.root.clone() })?;
        let path = self.layer_path(digest);
        let actual = fs::metadata(&path).map_err(io_error("open", &path))?.len();
        if actual != record.bytes {
            return Err(StoreError::Size { digest: *digest, path, expected: record.bytes, actual });
        }
        Ok((StoredFile { digest: *digest, path, bytes: actual }, record))
    }

    fn layer_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.erofs", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.json", digest.hex()))
    }

    fn image_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("images").join(name.file_name())
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

fn file_digest(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match io::Read::read(file, &mut buffer)? {
            0 => return Ok(Digest::finish(hasher)),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;

#[cfg(test)]
#[path = "crash_test.rs"]
mod crash_tests;
