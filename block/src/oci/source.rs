//! What an image is imported from.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
#[cfg(feature = "registry")]
use std::sync::Arc;

use super::blob::Digests;
use super::container::Container;
use super::docker::{self, DockerArchive};
use super::error::OciError;
use super::layout::{self, OciLayout};
#[cfg(feature = "registry")]
use super::registry::{RegistryImage, RegistryOptions, RegistryReference, Repository};
use super::spec::{ImageConfig, Platform};
use crate::archive::{Bounded, Counted, DirectoryArchive, Limits, TarStream};
use crate::cancel::Cancel;
use crate::compression::{Compression, unpack};
use crate::digest::LayerDigest;

/// Somewhere that images are in.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// An OCI image layout: a directory, or an archive of one.
    Layout(OciLayout),
    /// An archive of `docker save`.
    Docker(DockerArchive),
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
    pub digest: Option<LayerDigest>,
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
        files: Container,
        name: String,
        bytes: Option<u64>,
    },
    Archive(PathBuf),
    Directory(PathBuf),
    #[cfg(feature = "registry")]
    Remote {
        repository: Arc<Repository>,
        digest: LayerDigest,
        bytes: u64,
    },
}

impl SourceLayer {
    pub(super) fn member(files: &Container, name: String, bytes: Option<u64>, digests: Digests) -> Self {
        Self { digests, place: Place::Member { files: files.clone(), name, bytes } }
    }

    /// One in a registry.
    #[cfg(feature = "registry")]
    pub(super) fn remote(
        repository: &Arc<Repository>,
        digest: LayerDigest,
        bytes: u64,
        diff_id: Option<LayerDigest>,
    ) -> Self {
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
            Place::Directory(path) => Ok((None, Box::new(DirectoryArchive::new(path.clone())))),
            #[cfg(feature = "registry")]
            Place::Remote { repository, digest, bytes } => Ok((Some(*bytes), repository.open(digest, *bytes)?)),
        }
    }
}

impl ImageSource {
    /// Finds out what is at `path`: a directory with an image layout, an archive of one, an archive of Docker's, or else a
    /// root file system as a directory or an archive. Archives may be compressed; one with an image in it is unpacked to a
    /// file without a name in `spool`, where it may take as much as `limits` allow for a layer.
    ///
    /// # Errors
    /// There is nothing, or nothing of that kind, or it is damaged.
    pub fn open(path: &Path, spool: &Path, limits: Limits, cancel: &Cancel) -> Result<Self, OciError> {
        let read = |source| OciError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(read)?.is_dir() {
            // A damaged layout is no root file system.
            let is_layout = [layout::MARK, "index.json"].iter().any(|name| path.join(name).exists());
            return Ok(if is_layout { Self::Layout(OciLayout::open(path)?) } else { Self::RootFs(path.to_owned()) });
        }
        let archive = |source| OciError::Archive { path: path.to_owned(), source: Box::new(source) };
        let unpack_error = |source| OciError::Unpack { path: path.to_owned(), source };
        let open = || open_regular(path).map(|(file, _)| cancel.reader(file));
        let (compression, stream) = unpack(open()?).map_err(unpack_error)?;
        let first = TarStream::new(stream).next().map_err(archive)?;
        if !first.is_some_and(|entry| is_of_image(&entry.name)) {
            return Ok(Self::RootFs(path.to_owned()));
        }
        let file = if compression == Compression::None {
            open_regular(path)?.0
        } else {
            let (packed, count) = Counted::new(open()?);
            let (_, stream) = unpack(packed).map_err(unpack_error)?;
            let mut spooled = tempfile::tempfile_in(spool).map_err(unpack_error)?;
            io::copy(&mut Bounded::new(stream, limits, count), &mut spooled).map_err(unpack_error)?;
            spooled.rewind().map_err(unpack_error)?;
            spooled
        };
        let files = Container::archive(path, file)?;
        if files.has(docker::MANIFEST) && !files.has(layout::MARK) {
            Ok(Self::Docker(DockerArchive::of(files)))
        } else if files.has(layout::MARK) || files.has_digests() {
            // One that was cut short is no root file system.
            Ok(Self::Layout(OciLayout::of(files)?))
        } else {
            Ok(Self::RootFs(path.to_owned()))
        }
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

/// Whether an archive whose first entry is called `name` may hold an image. Those of root file systems begin with their own
/// directories.
fn is_of_image(name: &[u8]) -> bool {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let top = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    starts_with_digest(top)
        || [&b"blobs"[..], b"index.json", b"oci-layout", b"manifest.json", b"repositories"].contains(&top)
}

/// Whether a name begins as one does that is made of a digest.
pub(super) fn starts_with_digest(name: &[u8]) -> bool {
    name.len() >= 64 && name[..64].iter().all(u8::is_ascii_hexdigit)
}

/// Opens a regular file and says its size; a pipe in its place does not block.
fn open_regular(path: &Path) -> Result<(File, u64), OciError> {
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
