//! Images in whatever they come as: an OCI image layout as a directory or an archive, an archive of Docker's, or just a root
//! file system. Every document is checked by its digest.

mod blob;
mod container;
mod docker;
mod error;
mod layout;
mod source;
mod spec;

pub use blob::{BlobError, Digests, HashingReader};
pub use docker::DockerArchive;
pub use error::OciError;
pub use layout::OciLayout;
pub use source::{ImageSource, SourceImage, SourceLayer};
pub use spec::{ImageConfig, ParsePlatformError, Platform};
