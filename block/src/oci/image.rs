//! An image that was found, and its layers, which were not read yet.

use std::io::Read;
use std::path::{Path, PathBuf};
#[cfg(feature = "registry")]
use std::sync::Arc;

use super::blob::Digests;
use super::error::OciError;
use super::file_set::{FileSet, open_regular};
#[cfg(feature = "registry")]
use super::registry::Repository;
use super::spec::ImageConfig;
use crate::archive::{DirectoryArchive, FileId};
use crate::digest::Digest;

/// An image whose documents were read and checked, and whose layers were not.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// Its identity: the digest of its manifest, or of its configuration where it has no manifest. `None` for a root file
    /// system that has neither.
    pub digest: Option<Digest>,
    /// How to run it.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<SourceLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct SourceLayer {
    /// What it should be.
    pub digests: Digests,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Member {
        files: FileSet,
        name: String,
        bytes: Option<u64>,
    },
    Archive(PathBuf),
    Directory(PathBuf),
    #[cfg(feature = "registry")]
    Remote {
        repository: Arc<Repository>,
        digest: Digest,
        bytes: u64,
    },
}

impl SourceLayer {
    pub(super) fn member(files: &FileSet, name: String, bytes: Option<u64>, digests: Digests) -> Self {
        Self { digests, place: Place::Member { files: files.clone(), name, bytes } }
    }

    /// One in a registry.
    #[cfg(feature = "registry")]
    pub(super) fn remote(repository: &Arc<Repository>, digest: Digest, bytes: u64, diff_id: Option<Digest>) -> Self {
        let digests = Digests { blob: Some(digest), diff_id };
        Self { digests, place: Place::Remote { repository: Arc::clone(repository), digest, bytes } }
    }

    /// A root file system: a directory, or an archive.
    pub(super) fn root_fs(path: &Path) -> Self {
        let path = path.to_owned();
        let place = if path.is_dir() { Place::Directory(path) } else { Place::Archive(path) };
        Self { digests: Digests::default(), place }
    }

    /// What messages call it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match &self.place {
            Place::Member { files, name, .. } => files.path(name),
            Place::Archive(path) | Place::Directory(path) => path.clone(),
            #[cfg(feature = "registry")]
            Place::Remote { repository, digest, .. } => repository.path(digest),
        }
    }

    /// Opens its blob; says how many bytes that has, if that is known. The content is not checked.
    ///
    /// # Errors
    /// It is missing, no regular file, or of another size than its descriptor says; or the registry does not give it.
    pub fn open(&self) -> Result<(Option<u64>, Box<dyn Read + Send>), OciError> {
        self.open_without(None)
    }

    /// The same; a directory is read without the directory `left_out`, which it must not be part of.
    pub(crate) fn open_without(
        &self,
        left_out: Option<FileId>,
    ) -> Result<(Option<u64>, Box<dyn Read + Send>), OciError> {
        match &self.place {
            Place::Member { files, name, bytes } => {
                let piece = files.open(name)?;
                let actual = piece.left();
                match bytes {
                    Some(expected) if *expected != actual => {
                        Err(OciError::Size { path: files.path(name), expected: *expected, actual })
                    }
                    _ => Ok((Some(actual), Box::new(piece))),
                }
            }
            Place::Archive(path) => {
                let (file, bytes) = open_regular(path)?;
                Ok((Some(bytes), Box::new(file)))
            }
            Place::Directory(path) => {
                let read = |source| OciError::Read { path: path.clone(), source };
                if left_out.map_or(Ok(false), |directory| directory.holds(path)).map_err(read)? {
                    return Err(OciError::InStore { path: path.clone() });
                }
                Ok((None, Box::new(DirectoryArchive::new(path.clone(), left_out))))
            }
            #[cfg(feature = "registry")]
            Place::Remote { repository, digest, bytes } => Ok((Some(*bytes), repository.open(digest, *bytes)?)),
        }
    }
}
