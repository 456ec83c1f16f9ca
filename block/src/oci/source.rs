//! What an image is imported from.

use std::fs;
use std::io::{self, BufReader, Seek as _};
use std::path::{Path, PathBuf};

use super::dir::DirImage;
use super::docker::DockerArchive;
use super::error::OciError;
use super::file_set::{FileSet, open_regular};
use super::form::Form;
use super::image::{SourceImage, SourceLayer};
use super::layout::OciLayout;
use super::platform::Platform;
#[cfg(feature = "registry")]
use super::registry::{RegistryOptions, RegistryReference};
#[cfg(feature = "registry")]
use super::registry_image::RegistryImage;
use super::spec::ImageConfig;
use crate::archive::{Bounded, Counted, Limits, TarStream};
use crate::cancel::Cancel;
use crate::compression::{Compression, unpack};

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
    /// No image matches, or several do; or one of the documents is missing, damaged or not supported.
    pub fn image(&self, platform: &Platform, reference: Option<&str>) -> Result<SourceImage, OciError> {
        match self {
            Self::Layout(layout) => layout.image(platform, reference),
            Self::Docker(archive) => archive.image(platform, reference),
            Self::Dir(image) => image.image(platform, reference),
            #[cfg(feature = "registry")]
            Self::Registry(image) => image.image(platform),
            Self::RootFs(path) => {
                let layers = vec![SourceLayer::root_fs(path)];
                Ok(SourceImage { digest: None, config: ImageConfig::default(), layers })
            }
        }
    }
}

#[cfg(test)]
#[path = "source_test.rs"]
mod tests;
