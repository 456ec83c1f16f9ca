//! What an image is imported from.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
#[cfg(feature = "registry")]
use std::sync::Arc;

use super::blob::Digests;
use super::dir::DirImage;
use super::docker::DockerArchive;
use super::error::OciError;
use super::file_set::FileSet;
use super::form::Form;
use super::layout::OciLayout;
use super::platform::Platform;
#[cfg(feature = "registry")]
use super::registry::{RegistryImage, RegistryOptions, RegistryReference, Repository};
use super::spec::ImageConfig;
use crate::archive::{Bounded, Counted, DirectoryArchive, FileId, Limits, TarStream};
use crate::cancel::Cancel;
use crate::compression::{Compression, unpack};
use crate::digest::Digest;

/// Somewhere that images are in.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// An OCI image layout.
    Layout(OciLayout),
    /// What `docker save` writes: an archive, or a directory with its content.
    Docker(DockerArchive),
    /// What skopeo writes to a directory (`dir:`).
    Dir(DirImage),
    /// A directory, or an archive, that is a root file system.
    RootFs(PathBuf),
    /// A registry.
    #[cfg(feature = "registry")]
    Registry(RegistryImage),
}

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

impl ImageSource {
    /// Finds out what is at `path`: an image layout, what `docker save` writes, what skopeo does (`dir:`), or else a root file
    /// system; as a directory or an archive. Archives may be compressed; one with an image in it is unpacked to a file without a
    /// name in `spool`, where it may take as much as `limits` allow for a layer.
    ///
    /// # Errors
    /// There is nothing, or it is damaged; or it must be an image, but lacks something.
    pub fn open(path: &Path, spool: &Path, limits: Limits, cancel: &Cancel) -> Result<Self, OciError> {
        let read = |source| OciError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(read)?.is_dir() {
            return Self::of(Form::of_directory(path)?, path, || Ok(FileSet::Directory(path.to_owned())));
        }
        let unpack_error = |source| OciError::Unpack { path: path.to_owned(), source };
        let open = || {
            let (packed, count) = Counted::new(cancel.reader(open_regular(path)?.0));
            let (compression, stream) = unpack(packed).map_err(unpack_error)?;
            Ok((compression, Bounded::new(stream, limits, count)))
        };
        let (compression, stream) = open()?;
        let form = if compression == Compression::None {
            let (file, length) = open_regular(path)?;
            let archive = TarStream::new(BufReader::with_capacity(4096, file));
            Form::of_archive(path, archive, |archive| archive.pass_data(length))
        } else {
            Form::of_archive(path, TarStream::new(stream), |_| Ok(()))
        };
        Self::of(form?, path, || {
            let file = if compression == Compression::None {
                open_regular(path)?.0
            } else {
                let mut spooled = tempfile::tempfile_in(spool).map_err(unpack_error)?;
                io::copy(&mut open()?.1, &mut spooled).map_err(unpack_error)?;
                spooled.rewind().map_err(unpack_error)?;
                spooled
            };
            FileSet::archive(path, file)
        })
    }

    fn of(form: Form, path: &Path, files: impl FnOnce() -> Result<FileSet, OciError>) -> Result<Self, OciError> {
        Ok(match form {
            Form::Layout => Self::Layout(OciLayout::of(files()?)?),
            Form::Docker => Self::Docker(DockerArchive::of(files()?)),
            Form::Dir => Self::Dir(DirImage::of(files()?)),
            Form::RootFs => Self::RootFs(path.to_owned()),
        })
    }

    /// Asks a registry for an image. `cancel` ends this and all that is read from the image later.
    ///
    /// # Errors
    /// The registry does not answer or refuses it, or what it gives is not what it should be.
    #[cfg(feature = "registry")]
    pub fn registry(
        reference: &RegistryReference,
        options: &RegistryOptions,
        cancel: &Cancel,
    ) -> Result<Self, OciError> {
        RegistryImage::open(reference, options, cancel).map(Self::Registry)
    }

    /// Finds the image for `platform`, called `reference` where that is given. A root file system is an image for any; in a
    /// registry the name has said which.
    ///
    /// # Errors
    /// There is no such image, or several; or one of its documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        match self {
            Self::Layout(layout) => layout.image(platform, reference),
            Self::Docker(archive) => archive.image(platform, reference),
            Self::Dir(image) => image.image(platform, reference),
            #[cfg(feature = "registry")]
            Self::Registry(image) => image.image(platform),
            Self::RootFs(path) => {
                let place = if path.is_dir() { Place::Directory(path.clone()) } else { Place::Archive(path.clone()) };
                let layer = SourceLayer { digests: Digests::default(), place };
                Ok(SourceImage { digest: None, config: ImageConfig::default(), layers: vec![layer] })
            }
        }
    }
}

/// Opens a regular file and says its size; a pipe in its place does not block.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), OciError> {
    let read = |source| OciError::Read { path: path.to_owned(), source };
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(OciError::NotAFile { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
#[path = "source_test.rs"]
mod tests;
