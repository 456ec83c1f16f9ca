//! The JSON documents of the OCI image specification 1.1, as far as an import needs them.
//!
//! Unknown fields are ignored, as the specification demands; known ones must have the right type, or may be `null` where they may be
//! missing. Media types are often wrong, so content decides what a document is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::error::OciError;
use super::platform::RawPlatform;
use super::words::quoted;
use crate::digest::Digest;

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media types of configurations that don't belong to images: the empty one, and that of Docker's plugins.
const NO_CONFIGS: [&str; 2] = ["application/vnd.oci.empty.v1+json", "application/vnd.docker.plugin.v1+json"];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    /// A hint: what it describes says itself what it is.
    pub media_type: Option<String>,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<RawPlatform>,
    pub artifact_type: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// One of which nothing else is known.
    pub const fn of(digest: Digest, size: u64) -> Self {
        Self { media_type: None, digest, size, platform: None, artifact_type: None, annotations: None }
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// What an image layout's index calls it: names, or only tags.
    pub fn names(&self) -> Vec<&str> {
        // containerd has the whole name in a key of its own, and the tag in the specification's.
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        keys.into_iter().filter_map(|key| self.annotation(key)).filter(|name| !name.is_empty()).collect()
    }

    /// Its type if it describes something attached to an image, not an image.
    pub fn artifact(&self) -> Option<&str> {
        let attached = self.annotation("vnd.docker.reference.type");
        attached.or_else(|| artifact_type(self.artifact_type.as_deref()))
    }

    /// Its media type, empty where it has none.
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or_default()
    }
}

/// The artifact type of something that is not an image. Some registries fill the field in for images too, with the type of their
/// configuration.
fn artifact_type(stated: Option<&str>) -> Option<&str> {
    stated.filter(|kind| !kind.is_empty() && ![CONFIG, DOCKER_CONFIG].contains(kind))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayoutFile {
    pub image_layout_version: String,
}

/// What a document is. Registries keep the kinds apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DocumentKind {
    /// A manifest or an index.
    Manifest,
    /// An image's configuration.
    Config,
}

/// An index or a manifest; its content says which.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    artifact_type: Option<String>,
    subject: Option<IgnoredAny>,
    /// Of the first schema.
    fs_layers: Option<IgnoredAny>,
}

/// A document that lists images, or one that is an image's.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Box<Manifest>),
}

#[derive(Debug)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    artifact_type: Option<String>,
    attached: bool,
}

impl Document {
    /// Reads the document that messages call `path`.
    pub fn parse(path: &Path, data: &[u8]) -> Result<Self, OciError> {
        let raw: RawDocument = parse(path, data)?;
        let wrong = |reason| OciError::Document { path: path.to_owned(), reason };
        let version = if raw.fs_layers.is_some() { 1 } else { raw.schema_version.unwrap_or(2) };
        expect_field(path, "schemaVersion", &version, "2")?;
        let stated = raw.media_type.as_deref().unwrap_or_default();
        let (index, manifest) =
            ([INDEX, DOCKER_INDEX].contains(&stated), [MANIFEST, DOCKER_MANIFEST].contains(&stated));
        let (lists, describes) = (raw.manifests.is_some(), raw.layers.is_some() || raw.config.is_some());
        // Two readers could take it for two images (CVE-2021-41190).
        if (lists || index) && (describes || manifest) {
            return Err(wrong("is a manifest and an index at once"));
        }
        if lists || index {
            return Ok(Self::Index(raw.manifests.unwrap_or_default()));
        }
        if !describes {
            return Err(wrong("is neither a manifest nor an index: it lacks `config`, `layers` and `manifests`"));
        }
        let config = raw.config.ok_or_else(|| wrong("is a manifest without `config`"))?;
        let (layers, attached) = (raw.layers.unwrap_or_default(), raw.subject.is_some());
        Ok(Self::Manifest(Box::new(Manifest { config, layers, artifact_type: raw.artifact_type, attached })))
    }
}

impl Manifest {
    /// Its artifact type if it is not an image's.
    pub fn artifact(&self) -> Option<&str> {
        let config = Some(self.config.media_type()).filter(|kind| NO_CONFIGS.contains(kind));
        artifact_type(self.artifact_type.as_deref()).or(config)
    }

    /// Whether it looks like something attached to an image, such as a signature, though it may be an image.
    pub fn is_doubtful(&self) -> bool {
        let vendor =
            |kind: &str| kind.starts_with("application/vnd.") && !kind.contains("layer") && !kind.contains("rootfs");
        let foreign = |layer: &Descriptor| layer.media_type().ends_with("json") || vendor(layer.media_type());
        self.attached || (!self.layers.is_empty() && self.layers.iter().all(foreign))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(flatten)]
    pub platform: RawPlatform,
    pub config: Option<RawConfig>,
    rootfs: Option<RootFs>,
}

impl ConfigFile {
    /// Checks it against the number of layers that `image` has; the digests of their archives.
    pub fn diff_ids(&self, path: &Path, image: Digest, layers: usize) -> Result<&[Digest], OciError> {
        let rootfs = self.rootfs.as_ref();
        let kind = rootfs.and_then(|rootfs| rootfs.kind.as_deref()).filter(|kind| !kind.is_empty());
        expect_field(path, "rootfs.type", &kind.unwrap_or("layers"), "layers")?;
        let diff_ids = rootfs.and_then(|rootfs| rootfs.diff_ids.as_deref()).unwrap_or_default();
        if layers != diff_ids.len() {
            return Err(OciError::LayerCount { manifest: image, layers, diff_ids: diff_ids.len() });
        }
        Ok(diff_ids)
    }
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<Digest>>,
}

/// Lists are `null` as often as they are missing: both mean empty.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawConfig {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Words of a command; old tools wrote a single one as a text (Docker, `strslice`).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        match words {
            Words::Many(words) => words,
            Words::One(word) => vec![word],
        }
    }
}

/// What an image says about running it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// First words of the command, which arguments don't replace.
    pub entrypoint: Vec<String>,
    /// The rest of the command unless the user gives another.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Directory the command starts in; empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
}

impl ImageConfig {
    /// The command to run: the entrypoint, then `arguments`, or the image's own where there are none.
    #[must_use]
    pub fn argv(&self, arguments: &[String]) -> Vec<String> {
        let rest = if arguments.is_empty() { &self.cmd } else { arguments };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }
}

impl From<RawConfig> for ImageConfig {
    fn from(raw: RawConfig) -> Self {
        Self {
            entrypoint: raw.entrypoint.map(Into::into).unwrap_or_default(),
            cmd: raw.cmd.map(Into::into).unwrap_or_default(),
            env: raw.env.unwrap_or_default(),
            working_dir: raw.working_dir.unwrap_or_default(),
            user: raw.user.unwrap_or_default(),
        }
    }
}

pub(super) fn expect_field(
    path: &Path,
    field: &'static str,
    actual: &impl std::fmt::Display,
    expected: &str,
) -> Result<(), OciError> {
    let actual = actual.to_string();
    if actual == expected {
        return Ok(());
    }
    Err(OciError::Field { path: path.to_owned(), field, actual: quoted(actual), expected: expected.to_owned() })
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, data: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(data).map_err(|error| OciError::Json { path: path.to_owned(), reason: quoted(error) })
}
