//! Images in whatever they come as: a registry, an OCI image layout as a directory or an archive, an archive of Docker's, or
//! just a root file system. Every document is checked by its digest.

mod blob;
mod blobs;
mod dir;
mod docker;
mod error;
mod file_set;
mod form;
mod image;
mod index;
mod layout;
mod names;
mod platform;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "registry")]
mod registry_image;
mod source;
mod spec;
mod words;

pub use blob::{BlobError, Digests, HashingReader};
pub use dir::DirImage;
pub use docker::DockerArchive;
pub use error::{OciError, RegistryError};
pub use image::{SourceImage, SourceLayer};
pub use layout::OciLayout;
pub use platform::{ParsePlatformError, Platform};
#[cfg(feature = "registry")]
pub use registry::{
    AuthFile, CredentialSource, Credentials, ParseProxyError, ParseReferenceError, Proxies, RegistryOptions,
    RegistryReference, Retries, Retry,
};
pub use source::ImageSource;
pub use spec::ImageConfig;
