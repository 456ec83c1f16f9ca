//! Errors of images and registries.

use std::io;
use std::path::PathBuf;

use super::blob::BlobError;
use super::platform::Platform;
use crate::archive::{ArchiveError, EntryName};
use crate::digest::Digest;

/// Deepest nesting of indexes.
pub(super) const MAX_INDEX_DEPTH: usize = 4;
/// Most documents that are read to find an image.
pub(super) const MAX_DOCUMENTS: usize = 256;

/// An image that cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file is missing or unreadable.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A dangling link in an archive.
    #[error("`{path}` is a link to `{target}`, which leads to no file in the archive")]
    Link {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: EntryName,
    },
    /// An incomplete image.
    #[error("`{path}` looks like an image, since it has `{sign}`, but it has no `{missing}`")]
    Incomplete {
        /// The directory or archive.
        path: PathBuf,
        /// The file that only images have.
        sign: EntryName,
        /// The file that is missing.
        missing: &'static str,
    },
    /// An image one directory too deep.
    #[error(
        "the image in `{path}` is below its directory `{directory}`: give that directory, or an archive of what is in it"
    )]
    Below {
        /// The directory or archive.
        path: PathBuf,
        /// The directory in it.
        directory: EntryName,
    },
    /// An archive from before images had configurations.
    #[error("`{path}` has `repositories` but no `manifest.json`: save the image again with Docker 1.10 or later")]
    Legacy {
        /// The archive.
        path: PathBuf,
    },
    /// A layer without a name.
    #[error("`{path}` has no name for layer {number} of `{image}`: the archive leaves the layer out")]
    LayerName {
        /// The manifest.
        path: PathBuf,
        /// The image.
        image: String,
        /// Which layer, from 1.
        number: usize,
    },
    /// A directory that an import would write to while it reads it.
    #[error("`{path}` is in the layer store and cannot be imported to it")]
    InStore {
        /// The directory.
        path: PathBuf,
    },
    /// An archive without a single byte.
    #[error("`{path}` is empty")]
    Empty {
        /// The archive.
        path: PathBuf,
    },
    /// A directory, pipe or device where a file should be.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A JSON document that is too large to be one.
    #[error("`{path}` has at least {actual} bytes; it should have at most {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, as far as it was read.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Not JSON, or not the document it should be.
    #[error("`{path}` is not valid: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A document of the wrong type.
    #[error("`{path}` {reason}")]
    Document {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: &'static str,
    },
    /// A version this code doesn't know.
    #[error("`{path}`: {field} is `{actual}`, expected `{expected}`")]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        actual: String,
        /// What it should be.
        expected: String,
    },
    /// A file of another size than its descriptor says.
    #[error("blob `{path}` has {actual} bytes, its descriptor says {expected}")]
    Size {
        /// The file.
        path: PathBuf,
        /// The descriptor's size.
        expected: u64,
        /// The file's size.
        actual: u64,
    },
    /// A file with other content than its name says.
    #[error("blob `{path}` is damaged")]
    Blob {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BlobError,
    },
    /// No manifest fits.
    #[error("`{path}` has no image for {platform}{}; it has: {found}", .reference.as_ref().map(|r| format!(" called `{r}`")).unwrap_or_default())]
    NoImage {
        /// The index.
        path: PathBuf,
        /// What was looked for.
        platform: Box<Platform>,
        /// The tag that was looked for.
        reference: Option<String>,
        /// What the index lists.
        found: String,
    },
    /// Several manifests fit.
    #[error("`{path}` has several images for {platform}: {found}; name one of them")]
    Ambiguous {
        /// The index.
        path: PathBuf,
        /// What was looked for.
        platform: Box<Platform>,
        /// What fits.
        found: String,
    },
    /// An index of more than can be looked through.
    #[error("`{path}` has more than {MAX_DOCUMENTS} entries that could be the image: name one of them")]
    TooManyImages {
        /// The index.
        path: PathBuf,
    },
    /// Indexes that point to indexes without end.
    #[error("the indexes in `{path}` nest deeper than {MAX_INDEX_DEPTH}")]
    Depth {
        /// The first index.
        path: PathBuf,
    },
    /// A damaged archive, or a file that is not one.
    #[error("cannot read the archive `{path}`")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<ArchiveError>,
    },
    /// An archive of more files than any image has.
    #[error("the archive `{path}` has more than {limit} files, and is not a root file system")]
    TooManyFiles {
        /// The archive.
        path: PathBuf,
        /// The most allowed.
        limit: usize,
    },
    /// A compressed archive could not be unpacked beside the store.
    #[error("cannot unpack `{path}`")]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A registry does not give what it was asked for.
    #[error("cannot get `{url}`")]
    Registry {
        /// What it was asked for.
        url: String,
        /// Why not.
        #[source]
        source: RegistryError,
    },
    /// Manifest and configuration disagree.
    #[error("image {manifest} has {layers} layers but {diff_ids} diff_ids")]
    LayerCount {
        /// Digest of the manifest.
        manifest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Entries of `rootfs.diff_ids` in the configuration.
        diff_ids: usize,
    },
}

impl OciError {
    /// Whether a file is not there, as those of other platforms often are.
    pub(super) fn is_of_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a registry refuses to send part of a blob.
    #[cfg(feature = "registry")]
    pub(super) const fn is_of_range(&self) -> bool {
        matches!(self, Self::Registry { source: RegistryError::Status { status: 416, .. }, .. })
    }

    /// Whether something is sound, but not what it was taken for; it may be something else beside an image.
    pub(super) const fn is_of_other_content(&self) -> bool {
        matches!(self, Self::Json { .. } | Self::Document { .. } | Self::Field { .. } | Self::LayerCount { .. })
    }
}

/// A registry's refusal or failure.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It is unreachable, stopped answering, or violates HTTP.
    #[error("the registry does not answer as it should: {0}")]
    Transport(io::Error),
    /// It refuses.
    #[error("`{place}` answers with the status {status}{}", if .message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// The host that answers.
        place: String,
        /// HTTP's number.
        status: u16,
        /// Its own words, if it has any.
        message: String,
    },
    /// It asks for credentials, and there are none for it.
    #[error(
        "the registry wants a user and a password: `docker login` or `podman login` keep them where they are found"
    )]
    NoCredentials,
    /// It asks for an unknown way of authentication.
    #[error("the registry asks for unsupported authentication `{0}`; supported: Basic, Bearer with a realm")]
    Challenge(String),
    /// The token server does not give a token.
    #[error("cannot get a token from `{realm}`")]
    Token {
        /// The token server.
        realm: String,
        /// Why not.
        #[source]
        source: Box<RegistryError>,
    },
    /// A token's document is not one.
    #[error("it is not valid: {0}")]
    Json(String),
    /// A credential helper fails.
    #[error("cannot get credentials from the program `docker-credential-{helper}`, which `{path}` names")]
    Helper {
        /// The file of credentials.
        path: PathBuf,
        /// The program's name.
        helper: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It asks for a password, but the credentials are a token.
    #[error("the registry wants a user and a password, and there is only a token for it")]
    NoPassword,
    /// It names an invalid URL.
    #[error("`{0}` is not the URL of a server")]
    Url(String),
    /// It redirects to an invalid URL.
    #[error("the registry redirects to `{0}`, which is not the URL of a server")]
    Location(String),
    /// It redirects too often.
    #[error("there are more than {0} redirects")]
    Redirects(usize),
    /// Its servers only serve content by digest.
    #[error("no server resolves tags: that needs the capability `resolve`")]
    NoServer,
    /// The configuration of a registry's servers is invalid.
    #[error("`{path}`: {problem}")]
    Hosts {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        problem: String,
    },
    /// Invalid credentials.
    #[error("the credentials in `{path}` are not a user and a password")]
    Credentials {
        /// The file of credentials.
        path: PathBuf,
    },
}
